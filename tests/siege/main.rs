//! `make siege`: attacks by one caller on the service, each bounded in count and in time, over loopback. For each it
//! measures what the attack takes from the service and from another tenant, before and during the attack.
//!
//! Servers run with the defaults of `hapax serve`, on a PostgreSQL that writes to the disk.

#![expect(clippy::unwrap_used, reason = "a siege that cannot go on has failed")]

#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../harness/mod.rs"]
mod harness;

mod bodies;
mod fairness;
mod field;
mod logs;
mod memory;
mod neighbour;
mod readers;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use field::{Field, Size};
use harness::OwnPostgres;

/// One line of the table.
pub struct Row {
    /// What was sent.
    pub attack: String,
    /// What came of it.
    pub result: String,
    /// The other tenant before the attack, and during it.
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
/// Longer than any attack lasts; only a defect takes as long.
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
    let descriptors = field::raise_descriptor_limit();
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
    let field = Field::prepare(postgres, size).await;
    match name {
        "slow-readers" => vec![readers::slow(&field).await],
        "chunked-bodies" => vec![bodies::chunked(&field).await],
        "large-batches" => vec![bodies::large_batches(&field).await],
        "unknown-tokens" => fairness::unknown_tokens(&field).await,
        "queues" => fairness::queues(&field).await,
        "parsing" => vec![fairness::parsing(&field).await],
        "empty-lines" => vec![fairness::empty_lines(&field).await],
        "taken-keys" => vec![fairness::taken_keys(&field).await],
        _ => vec![logs::lines(&field).await],
    }
}

fn print(name: &str, row: Row) {
    let [before, during] = row.neighbour.unwrap_or_default();
    println!("| {name}: {} | {} | {before} | {during} |", row.attack, row.result);
}
