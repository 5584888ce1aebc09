//! The workers: processes of examples/worker.py.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::Balancer;

/// The shortest that a worker may ask for.
pub const LEASE: Duration = Duration::from_secs(5);
/// The queue that the workers serve.
pub const QUEUE: &str = "work";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/worker.py");

/// Checks that Python can run the workers. The error says what to do.
pub fn find_python() -> Result<(), String> {
    let checked = Command::new("python3").args([SCRIPT, "--help"]).stdout(Stdio::null()).status();
    match checked {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("python3 cannot run examples/worker.py. See the message above.".to_owned()),
        Err(error) => Err(format!(
            "python3 was not found ({error}). The workers of this demonstration are Python programs. Install Python 3 \
             (on Debian: apt-get install python3), and run it again."
        )),
    }
}

/// Killed with the demonstration.
pub struct Workers(Vec<(String, Child)>);

impl Workers {
    pub fn start(count: usize, balancer: &Balancer, token: &str) -> Self {
        let started = (1..=count).map(|number| {
            let (name, base) = (format!("worker-{number}"), format!("http://{}", balancer.address));
            let mut command = Command::new("python3");
            command.args([SCRIPT, "--base", &base, "--queue", QUEUE, "--name", &name]);
            command.args(["--lease-seconds", &LEASE.as_secs().to_string()]).env("HAPAX_TOKEN", token);
            (name, command.stdin(Stdio::null()).spawn().unwrap())
        });
        Self(started.collect())
    }

    /// `kill -9`.
    pub fn kill(&mut self, name: &str) {
        let place = self.0.iter().position(|(worker, _)| worker == name).unwrap();
        let (_, mut killed) = self.0.remove(place);
        killed.kill().unwrap();
        killed.wait().unwrap();
    }

    /// Sends SIGTERM to all. Returns how many there were, and how many of them ended with success.
    pub async fn stop(mut self) -> (usize, usize) {
        let mut children: Vec<Child> = self.0.drain(..).map(|(_, child)| child).collect();
        for child in &children {
            // Fails if the worker has already ended, which the status shows.
            let _gone = kill_process(Pid::from_child(child), Signal::TERM);
        }
        let ended = tokio::task::spawn_blocking(move || {
            let successes = children.iter_mut().filter_map(|child| child.wait().unwrap().success().then_some(()));
            (successes.count(), children.len())
        });
        let (successes, workers) = ended.await.unwrap();
        (workers, successes)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}
