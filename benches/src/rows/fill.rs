//! Keys and jobs that are inserted directly into the tables, to fill a ledger before a row.

use std::ops::RangeInclusive;

use crate::ledger::Ledger;
use crate::plan::MILLION;
use crate::postgres::Postgres;
use crate::requests::{BLANK, Payload};
use crate::results::grouped;

/// When the inserted jobs may start, and their priority.
#[derive(Clone, Copy)]
pub enum Due {
    Now,
    /// Tomorrow, but before all others.
    TomorrowAndUrgent,
}

/// Disk space of a key and its job, with indexes and WAL; a generous estimate.
const BYTES_A_KEY: u64 = 1800;
/// Disk space for the rest of the run.
const ROOM: u64 = 6 << 30;

/// Whether the disk has room for so many keys with their jobs.
pub fn fits(postgres: &Postgres, keys: u64) -> anyhow::Result<bool> {
    Ok(postgres.free_bytes()? >= keys * BYTES_A_KEY + ROOM)
}

/// Inserts keys and jobs. Two calls for one ledger must not share a number.
pub fn fill(postgres: &Postgres, ledger: &Ledger<'_>, numbers: RangeInclusive<u64>, due: Due) -> anyhow::Result<()> {
    let (priority, delay) = match due {
        Due::Now => ("2", "0"),
        Due::TomorrowAndUrgent => ("1", "1 day"),
    };
    let sql = include_str!("fill.sql").replace("PAYLOAD", &Payload::Mail.json()).replace("BLANK", BLANK);
    let sql = sql.replace("PRIORITY", priority).replace("DELAY", delay);
    let (mut first, end) = numbers.into_inner();
    while first <= end {
        let last = end.min(first + MILLION - 1);
        println!("filling a ledger with keys and jobs {} to {} of {}", grouped(first), grouped(last), grouped(end));
        let sql = sql.replace("FIRST", &first.to_string()).replace("LAST", &last.to_string());
        postgres.run(ledger.database(), &sql)?;
        first = last + 1;
    }
    Ok(())
}

/// Brings a filled ledger into a steady state: statistics exist, and nothing is left to be written.
pub fn make_steady(postgres: &Postgres, ledger: &Ledger<'_>) -> anyhow::Result<()> {
    postgres.run(ledger.database(), "vacuum (analyze)")?;
    postgres.run(ledger.database(), "checkpoint")
}
