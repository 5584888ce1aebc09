//! examples/worker.py, which docs/workers.md shows, against a server. Without python3, `make test` skips this file.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Client, Ledger, until};

/// Killed with the test.
struct Worker(Child);

impl Worker {
    /// With the shortest lease, so that the first heartbeat comes after a second.
    fn start(server: &Client, token: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/worker.py");
        let base = format!("http://{}", server.address);
        let mut command = Command::new("python3");
        command.args([script, "--base", &base, "--queue", "work", "--lease-seconds", "5", "--name", "the example"]);
        Self(command.env("HAPAX_TOKEN", token).stdin(Stdio::null()).spawn().unwrap())
    }

    /// Sends SIGTERM. Returns whether the worker exited with success.
    async fn stop(mut self) -> bool {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        until("the worker ends", async || self.0.try_wait().unwrap()).await.success()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

async fn submit(server: &Client, key: &str, payload: Value) -> String {
    server.submit(key, json!({ "type": "t", "queue": "work", "payload": payload })).await.job_id()
}

async fn until_state(server: &Client, id: &str, state: &str) -> Value {
    until(format!("job {id} is {state}"), async || {
        let job = server.get(&format!("/jobs/{id}")).await.json();
        (job["state"] == state).then_some(job)
    })
    .await
}

#[tokio::test]
async fn the_example_worker_runs_stops_and_releases_jobs() {
    let ledger = Ledger::new().await;
    // No lease is lost, however slow the machine is.
    let settings = [("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h"), ("HAPAX__CLAIMS__RETRY_DELAY_MIN", "1ms")];
    let server = ledger.serve_with(&settings).await;
    let failing = submit(&server, "failing", json!({ "fail_once": true })).await;
    let worker = Worker::start(&server, &ledger.token);
    let done = until_state(&server, &failing, "succeeded").await;
    assert_eq!((&done["attempt"], &done["result"]), (&json!(2), &json!({ "attempt": 2 })));

    let endless = json!({ "milliseconds": 3_600_000 });
    let cancelled = submit(&server, "cancelled", endless.clone()).await;
    until_state(&server, &cancelled, "running").await;
    server.cancel(&cancelled).await;
    until_state(&server, &cancelled, "cancelled").await;

    let released = submit(&server, "released", endless).await;
    let running = until_state(&server, &released, "running").await;
    assert_eq!(running["attempt"], 1);
    assert!(worker.stop().await);
    let job = server.get(&format!("/jobs/{released}")).await.json();
    assert_eq!((&job["state"], &job["attempt"]), (&json!("queued"), &json!(0)));
}
