//! `make siege`: attacks by one client, bounded in number and time, over loopback. Measures what each attack costs the
//! service and another tenant, before and during the attack.
//!
//! Servers run with the defaults of `hapax serve`, on a durable PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a siege that cannot go on has failed")]

#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../harness/mod.rs"]
mod harness;

mod bodies;
mod fairness;
mod logs;
mod memory;
mod neighbour;
mod readers;
mod target;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::OwnPostgres;
use target::{Size, Target};

/// A row of the printed table.
pub struct Row {
    /// What was sent.
    pub attack: String,
    /// The outcome.
    pub result: String,
    /// The other tenant's figures before and during the attack.
    pub neighbour: Option<[String; 2]>,
}

const ATTACKS: [(&str, &str); 9] = [
    ("slow-readers", "connections without a token that hardly read the answer they asked for"),
    ("chunked-bodies", "bodies without a token that never end"),
    ("large-batches", "many batches of 16 MiB at once, of one token"),
    ("unknown-tokens", "batch heads with random tokens while token look-ups stall"),
    ("queues", "GET /queues over queues of 10,001 jobs"),
    ("parsing", "1 MiB arrays of small numbers"),
    ("empty-lines", "1 MiB bodies of empty lines"),
    ("taken-keys", "small batches whose keys stand for jobs of 1 MB"),
    ("log-lines", "batches of invalid lines"),
];
/// Longer than any attack lasts unless there is a defect.
const ATTACK_ENDS: Duration = Duration::from_secs(180);

#[tokio::main]
async fn main() -> ExitCode {
    let (flags, names): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let is_known = |name: &String| ATTACKS.iter().any(|(known, _)| known == name);
    if flags.iter().any(|flag| flag != "--small") || !names.iter().all(is_known) {
        eprintln!("usage: siege [--small] [attack…]; without a name, all of:");
        ATTACKS.iter().for_each(|(name, what)| eprintln!("  {name:<16}{what}"));
        return ExitCode::FAILURE;
    }
    let size = if flags.is_empty() { Size::Full } else { Size::Small };
    let descriptors = target::raise_descriptor_limit();
    let postgres = OwnPostgres::start().await;
    println!("{descriptors} file descriptors, {} cores", std::thread::available_parallelism().unwrap());
    println!("\n| attack | result | neighbour before | neighbour during |\n|---|---|---|---|");
    let mut ended = true;
    for (name, _) in ATTACKS.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|wanted| wanted == name)) {
        let began = Instant::now();
        match tokio::time::timeout(ATTACK_ENDS, attack(name, &postgres, size)).await {
            Ok(rows) => rows.into_iter().for_each(|row| print(name, row)),
            Err(_) => {
                println!("| {name} | not over after {} s | | |", began.elapsed().as_secs());
                ended = false;
            }
        }
        eprintln!("{name}: {} s", began.elapsed().as_secs());
    }
    if ended { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn attack(name: &str, postgres: &OwnPostgres, size: Size) -> Vec<Row> {
    let target = Target::prepare(postgres, size).await;
    match name {
        "slow-readers" => vec![readers::slow(&target).await],
        "chunked-bodies" => vec![bodies::chunked(&target).await],
        "large-batches" => vec![bodies::large_batches(&target).await],
        "unknown-tokens" => fairness::unknown_tokens(&target).await,
        "queues" => fairness::queues(&target).await,
        "parsing" => vec![fairness::parsing(&target).await],
        "empty-lines" => vec![fairness::empty_lines(&target).await],
        "taken-keys" => vec![fairness::taken_keys(&target).await],
        _ => vec![logs::lines(&target).await],
    }
}

fn print(name: &str, row: Row) {
    let [before, during] = row.neighbour.unwrap_or_default();
    println!("| {name}: {} | {} | {before} | {during} |", row.attack, row.result);
}
