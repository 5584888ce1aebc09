//! `hapax-bench quick`: measures one build of the server, or compares two, in two minutes.
//!
//! New keys over 1 and over 256 connections, and one key replayed over 64; or workers. Two builds take turns.

use std::path::PathBuf;
use std::time::Duration;

use crate::account::peak_memory_bytes;
use crate::ledger::{Ledger, Times};
use crate::measurement::{Measurement, Spread};
use crate::postgres::Postgres;
use crate::replica::Release;
use crate::requests::Payload;
use crate::rows::work;

#[derive(clap::Args)]
pub struct Arguments {
    /// A release build of hapax.
    #[arg(long, value_name = "FILE", default_value = "target/release/hapax")]
    server: PathBuf,
    /// A second build to compare with.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measured seconds per row, after a quarter of that as warm-up.
    #[arg(long, value_name = "SECONDS", default_value_t = 4.0)]
    seconds: f64,
    /// Bytes of JSON in a new job, at least 64, instead of a mail of 200.
    #[arg(long, value_name = "BYTES", conflicts_with = "workers")]
    payload: Option<usize>,
    /// Measure workers that claim jobs and report them: 64 one by one, and 8 by a hundred. CPU is per job, latencies are
    /// those of claims.
    #[arg(long)]
    workers: bool,
    /// A setting of the servers, such as HAPAX__INTAKE__CONNECTIONS=2; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// A folder on a disk, for temporary data.
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    data: PathBuf,
}

const ROWS: &[&str] = &["new keys,   1 connection ", "new keys, 256 connections", "one key,   64 connections"];
const WORKER_ROWS: &[&str] = &["64 workers,   1 job a claim ", " 8 workers, 100 jobs a claim"];

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let postgres = Postgres::start(&arguments.data)?;
    let measured = Duration::from_secs_f64(arguments.seconds);
    let times = Times { warm_up: measured / 4, measured };
    let payload = arguments.payload.map_or(Payload::Mail, Payload::Bytes);
    let binaries: Vec<&PathBuf> = [&arguments.server].into_iter().chain(&arguments.against).collect();
    let releases: Vec<Release> =
        binaries.iter().map(|binary| Release::new(binary, &arguments.settings)).collect::<anyhow::Result<_>>()?;
    let names = if arguments.workers { WORKER_ROWS } else { ROWS };
    let mut found: Vec<Vec<Vec<Measurement>>> = vec![Vec::new(); binaries.len()];
    for round in 1..=arguments.rounds {
        for ((binary, release), found) in binaries.iter().zip(&releases).zip(&mut found) {
            println!("round {round}, {}", binary.display());
            let rows = if arguments.workers {
                round_of_workers(&postgres, release, times)?
            } else {
                round_of(&postgres, release, payload, times)?
            };
            for (name, row) in names.iter().zip(&rows) {
                println!("  {name} {}", line(&[*row]));
            }
            found.push(rows);
        }
    }
    println!("\nmedians of {} rounds (least to greatest); CPU in microseconds a request or job", arguments.rounds);
    for (row, name) in names.iter().enumerate() {
        println!("{name}");
        let of_row = |found: &Vec<Vec<Measurement>>| found.iter().map(|rows| rows[row]).collect::<Vec<_>>();
        for (binary, found) in binaries.iter().zip(&found) {
            println!("  {}  {}", line(&of_row(found)), binary.display());
        }
        if let [first, second] = &found[..] {
            println!("  {}", comparison(&of_row(first), &of_row(second)));
        }
    }
    Ok(())
}

/// The ratio of the first build to the second, round by round.
fn comparison(first: &[Measurement], second: &[Measurement]) -> String {
    let ratio = |figure: fn(&Measurement) -> Option<f64>| {
        let rounds = first.iter().zip(second);
        let ratios = Spread::of(rounds.filter_map(|(first, second)| Some(figure(first)? / figure(second)?)));
        ratios.map_or_else(String::new, |Spread { least, median, greatest }| {
            format!("{median:.2} ({least:.2} to {greatest:.2})")
        })
    };
    format!(
        "the first to the second: throughput {}  p50 {}  CPU: server {}  PostgreSQL {}  WAL {}",
        ratio(|row| Some(row.per_second)),
        ratio(|row| row.p50_us),
        ratio(|row| row.server_us),
        ratio(|row| row.postgres_us),
        ratio(|row| row.wal_bytes),
    )
}

fn round_of(
    postgres: &Postgres,
    release: &Release,
    payload: Payload,
    times: Times,
) -> anyhow::Result<Vec<Measurement>> {
    let ledger = Ledger::empty(postgres, release, "quick")?;
    let replica = ledger.serve(&[])?;
    let rows = vec![
        ledger.create(&replica, 1, payload, times)?,
        ledger.create(&replica, 256, payload, times)?,
        ledger.replay_one(&replica, 64, times)?,
    ];
    println!("  memory {} MiB at the most", peak_memory_bytes(replica.process())? >> 20);
    Ok(rows)
}

fn round_of_workers(postgres: &Postgres, release: &Release, times: Times) -> anyhow::Result<Vec<Measurement>> {
    [work::ONE, work::HUNDRED].into_iter().map(|shape| work::drain(postgres, release, shape, times)).collect()
}

fn line(rows: &[Measurement]) -> String {
    let median = |value: fn(&Measurement) -> Option<f64>| {
        Spread::of(rows.iter().filter_map(value)).map_or(f64::NAN, |spread| spread.median)
    };
    let rate = Spread::of(rows.iter().map(|row| row.per_second));
    let wal = Spread::of(rows.iter().filter_map(|row| row.wal_bytes));
    let refused: u64 = rows.iter().map(|row| row.refused).sum();
    format!(
        "{:7.0}/s ({:.0} to {:.0})  p50 {:6.0} µs  p99 {:6.0} µs  p99.9 {:6.0} µs  CPU: server {:5.1}  PostgreSQL {:5.1}  load {:4.1}{}{}",
        rate.map_or(f64::NAN, |rate| rate.median),
        rate.map_or(f64::NAN, |rate| rate.least),
        rate.map_or(f64::NAN, |rate| rate.greatest),
        median(|row| row.p50_us),
        median(|row| row.p99_us),
        median(|row| row.p999_us),
        median(|row| row.server_us),
        median(|row| row.postgres_us),
        median(|row| row.load_us),
        wal.map_or_else(String::new, |wal| format!("  WAL {:4.0} bytes", wal.median)),
        if refused > 0 { format!("  REFUSED: {refused}") } else { String::new() },
    )
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a setting is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
