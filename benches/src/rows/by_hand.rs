//! B: the two inserts sent by hand with pgbench, over the same socket, with prepared statements.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::account::Accounts;
use crate::ledger::Times;
use crate::measurement::{Measurement, Spread};
use crate::requests::{Payload, words};
use crate::results::{Results, Row};
use crate::rows::found;
use crate::run::Setting;

const DATABASE: &str = "by_hand";
/// The length of the answer that Hapax stores.
const ANSWER_BYTES: usize = 245;

pub fn measure(setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
    let Setting { postgres, plan, .. } = setting;
    if !postgres.program("pgbench")?.exists() {
        results.leave_out("B was not run: PostgreSQL came without pgbench.");
        return Ok(());
    }
    for &clients in plan.by_hand_clients {
        postgres.make_database(DATABASE)?;
        postgres.run(DATABASE, include_str!("by_hand_tables.sql"))?;
        found(results, Row::ByHand { clients }, pgbench(setting, clients, plan.times)?);
    }
    Ok(())
}

fn pgbench(setting: &Setting, clients: usize, times: Times) -> anyhow::Result<Measurement> {
    let Setting { postgres, .. } = setting;
    let folder = tempfile::tempdir_in(postgres.folder())?;
    let script = folder.path().join("transaction.sql");
    // pgbench would read a colon before a digit as a variable.
    let payload = Payload::Mail.json().replace(":12", ": 12");
    let transaction = include_str!("by_hand_transaction.sql").replace("PAYLOAD", &payload);
    fs::write(&script, transaction.replace("RESPONSE", &words(ANSWER_BYTES)))?;
    let run = |seconds: u64, log: &[&str]| {
        let mut command = Command::new(postgres.program("pgbench")?);
        command.args(["--no-vacuum", "--protocol=prepared", &format!("--client={clients}")]);
        command.args([format!("--jobs={}", clients.min(2)), format!("--time={}", seconds.max(1))]).args(log);
        command.arg("--file").arg(&script).arg(postgres.url(DATABASE)).current_dir(folder.path());
        let output = command.output()?;
        ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    run(times.warm_up.as_secs(), &[])?;
    let accounts = Accounts { server: None, postmaster: postgres.postmaster() };
    let before = accounts.read()?;
    // Per-transaction log lines, only where they do not affect the result.
    let said = run(times.measured.as_secs(), if clients == 1 { &["--log"] } else { &[] })?;
    let spent = accounts.read()? - before;
    let transactions = number_after(&said, "number of transactions actually processed: ")?;
    let p50_us = if clients == 1 { Some(median_latency_us(folder.path())?) } else { None };
    Ok(Measurement {
        per_second: number_after(&said, "tps = ")?,
        p50_us,
        postgres_us: Some(spent.postgres.as_secs_f64() * 1e6 / transactions),
        ..Measurement::default()
    })
}

fn number_after(text: &str, words: &str) -> anyhow::Result<f64> {
    let (_, rest) = text.split_once(words).with_context(|| format!("pgbench does not say {words}: {text}"))?;
    let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(rest.len());
    Ok(rest[..end].parse()?)
}

/// From pgbench's log, whose third column is in microseconds.
fn median_latency_us(folder: &Path) -> anyhow::Result<f64> {
    let mut latencies = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgbench_log")) {
            let log = fs::read_to_string(path)?;
            latencies.extend(log.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
        }
    }
    Ok(Spread::of(latencies).context("pgbench has written no log")?.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_after_its_words() {
        let text = "number of transactions actually processed: 2870\ntps = 957.25 (without initial connection time)\n";
        assert_eq!(number_after(text, "tps = ").unwrap(), 957.25);
        assert_eq!(number_after(text, "processed: ").unwrap(), 2870.0);
        assert!(number_after(text, "latency average = ").is_err());
    }
}
