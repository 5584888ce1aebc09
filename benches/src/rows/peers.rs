//! F and L: other job queues, each with its own client library, run by `benches/peers/run`.

use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::measurement::Measurement;
use crate::plan::USUAL_CONNECTIONS;
use crate::results::{Results, Row};
use crate::rows::found;
use crate::run::Setting;

const SETUP: &str = "benches/peers/setup";
const RUN: &str = "benches/peers/run";
const DATABASE: &str = "peer";

/// The output of a peer's program.
#[derive(Deserialize)]
struct Report {
    peer: String,
    version: String,
    jobs: f64,
    seconds: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
}

/// What a peer is put to.
#[derive(Clone, Copy)]
enum Task {
    Insert,
    /// Jobs are also worked on.
    Life,
}

/// The peers that can do [`Task::Life`].
const WITH_LIFE: [&str; 2] = ["graphile-worker", "pg-boss"];

/// The planned peers that can be installed here.
pub fn installed(setting: &Setting, results: &mut Results) -> Vec<&'static str> {
    let peers = setting.plan.peers.iter().copied();
    peers
        .filter(|peer| {
            println!("installing {peer}");
            let status = Command::new(SETUP).arg(peer).status();
            let there = status.is_ok_and(|status| status.success());
            if !there {
                results.leave_out(&format!("F has no {peer}: it could not be installed here."));
            }
            there
        })
        .collect()
}

pub fn measure(setting: &Setting, peers: &[&str], results: &mut Results) -> anyhow::Result<()> {
    for peer in peers {
        for &clients in setting.plan.peer_clients {
            measure_one(setting, peer, Task::Insert, clients, results);
        }
        if WITH_LIFE.contains(peer) {
            measure_one(setting, peer, Task::Life, USUAL_CONNECTIONS, results);
        }
    }
    Ok(())
}

/// A peer's failure must not end the run.
fn measure_one(setting: &Setting, peer: &str, task: Task, clients: usize, results: &mut Results) {
    match report(setting, peer, task, clients) {
        Ok(report) => {
            let (name, version) = (report.peer.clone(), report.version.clone());
            let row = match task {
                Task::Insert => Row::Peer { name, version, clients },
                Task::Life => Row::PeerLife { name, version, clients },
            };
            found(results, row, report.into());
        }
        Err(error) => results.leave_out(&format!("F and L: {peer} with {clients} clients failed: {error:#}")),
    }
}

fn report(setting: &Setting, peer: &str, task: Task, clients: usize) -> anyhow::Result<Report> {
    let Setting { postgres, plan, .. } = setting;
    postgres.make_database(DATABASE)?;
    let mut command = Command::new(RUN);
    command.args([peer, "--database-url", &postgres.url(DATABASE), "--clients", &clients.to_string()]);
    command.args(["--seconds", &plan.times.measured.as_secs().to_string()]);
    if let Task::Life = task {
        command.arg("--life");
    }
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default());
    let said = String::from_utf8(output.stdout)?;
    serde_json::from_str(&said).with_context(|| format!("{RUN} said {said}"))
}

impl From<Report> for Measurement {
    fn from(report: Report) -> Self {
        Self {
            per_second: report.jobs / report.seconds,
            p50_us: report.p50_us,
            p99_us: report.p99_us,
            ..Self::default()
        }
    }
}
