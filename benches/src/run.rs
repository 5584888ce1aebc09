//! `hapax-bench run`: measures every row, round by round, and writes the page.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::machine::Machine;
use crate::page;
use crate::plan::{Mode, Plan};
use crate::postgres::Postgres;
use crate::replica::Release;
use crate::results::Results;
use crate::rows::{by_hand, claim_latency, creation, growth, heartbeats, peers, replays, tutorial, wake_ups, work};

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(value_enum)]
    mode: Mode,
    /// A release build of hapax.
    #[arg(long, value_name = "FILE", default_value = "target/release/hapax")]
    server: PathBuf,
    /// A folder on a disk, for temporary data.
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    data: PathBuf,
    /// Folder for the page and its chart. A smoke run writes none.
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    docs: PathBuf,
}

#[derive(clap::Args)]
pub struct PageArguments {
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    docs: PathBuf,
}

/// What every row needs.
pub struct Setting {
    pub postgres: Postgres,
    pub release: Release,
    pub plan: Plan,
}

/// The stored figures, so that the page can be written again when its text changes.
const RESULTS: &str = "target/bench/results.json";

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let began = Instant::now();
    let plan = arguments.mode.plan();
    let settings: Vec<_> = plan.settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let setting = Setting {
        postgres: Postgres::start(&arguments.data)?,
        release: Release::new(&arguments.server, &settings)?,
        plan,
    };
    let machine = Machine::look(&setting.postgres)?;
    let rounds = setting.plan.rounds;
    let mut results =
        Results { mode: arguments.mode, rounds, machine, rows: Vec::new(), memory: Vec::new(), notes: Vec::new() };

    let submissions = if setting.plan.submissions {
        Some((growth::Stored::fill(&setting, &mut results)?, replays::Replayed::create(&setting)?))
    } else {
        None
    };
    let queues = claim_latency::Queues::fill(&setting, &mut results)?;
    let peers = peers::installed(&setting, &mut results);
    for round in 1..=rounds {
        println!("round {round} of {rounds}, after {} s", began.elapsed().as_secs());
        creation::measure(&setting, &mut results)?;
        if let Some((stored, replayed)) = &submissions {
            by_hand::measure(&setting, &mut results)?;
            tutorial::measure(&setting, &mut results)?;
            replayed.measure(&setting, &mut results)?;
            stored.measure(&setting, &mut results)?;
        }
        work::measure(&setting, &mut results)?;
        queues.measure(&setting, &mut results)?;
        claim_latency::measure_snapshot(&setting, &mut results)?;
        heartbeats::measure(&setting, &mut results)?;
        wake_ups::measure(&setting, &mut results)?;
        peers::measure(&setting, &peers, &mut results)?;
    }
    if let Some((_, replayed)) = &submissions {
        replayed.measure_memory(&setting, &mut results)?;
    }
    println!("measured in {} s", began.elapsed().as_secs());

    if arguments.mode != Mode::Smoke {
        keep(&results)?;
        page::write(&results, &arguments.docs)?;
    } else {
        // A smoke run checks that the page can be written.
        page::write(&results, setting.postgres.folder())?;
    }
    Ok(())
}

/// Writes the page of the last run again.
pub fn write_page(arguments: &PageArguments) -> anyhow::Result<()> {
    page::write(&serde_json::from_slice(&fs::read(RESULTS)?)?, &arguments.docs)
}

fn keep(results: &Results) -> anyhow::Result<()> {
    let path = Path::new(RESULTS);
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    Ok(fs::write(path, serde_json::to_vec_pretty(results)?)?)
}
