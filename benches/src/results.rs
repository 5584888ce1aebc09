//! The measured figures, by row and round.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::measurement::{Measurement, Spread};
use crate::plan::Mode;

/// Everything that the page needs.
#[derive(Serialize, Deserialize)]
pub struct Results {
    pub mode: Mode,
    pub rounds: usize,
    pub machine: Machine,
    pub rows: Vec<(Row, Vec<Measurement>)>,
    pub memory: Vec<Memory>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// The measured rows. The letters are those of the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Row {
    /// A: new keys, on an empty ledger.
    Hapax { connections: usize },
    /// A: the same with payloads of another size.
    Payload { bytes: usize },
    /// B: the same two inserts sent by pgbench.
    ByHand { clients: usize },
    /// C: a handler as tutorials write it.
    Tutorial { pool: u32, connections: usize },
    /// D: one key, replayed.
    OneKey,
    /// D: keys drawn from many, replayed.
    ManyKeys { keys: u64 },
    /// D: the same bytes, answered by a handler that does nothing else.
    Bare,
    /// E: new keys, on a ledger with this many.
    Filled { keys: u64 },
    /// E: new keys, while expired ones are purged.
    Purging,
    /// F: another job queue.
    Peer { name: String, version: String, clients: usize },
    /// H: workers that claim waiting jobs and report their results.
    Work { workers: usize, jobs_at_once: u32 },
    /// I: claims of one worker, while so many jobs wait, behind urgent jobs of the future.
    Waiting { waiting: u64, urgent_tomorrow: u64 },
    /// I: claims of one worker, after so many jobs have passed under an open snapshot.
    Snapshot { passed: u64 },
    /// J: heartbeats of claims with so many jobs.
    Heartbeats { jobs: u32 },
    /// K: a waiting worker and a submission, to the same replica or each to one of two.
    WakeUp { replicas: usize },
    /// L: jobs from their submission to their end.
    Life { workers: usize },
    /// L: the same in another job queue.
    PeerLife { name: String, version: String, clients: usize },
}

/// The peak memory of a server.
#[derive(Clone, Serialize, Deserialize)]
pub struct Memory {
    pub when: String,
    pub bytes: u64,
    /// The limit of the replay cache.
    pub replay_cache_limit_bytes: u64,
}

impl Results {
    pub fn add(&mut self, row: Row, measurement: Measurement) {
        match self.rows.iter_mut().find(|(known, _)| *known == row) {
            Some((_, measurements)) => measurements.push(measurement),
            None => self.rows.push((row, vec![measurement])),
        }
    }

    /// Adds a note to the page that something is missing, once.
    pub fn leave_out(&mut self, note: &str) {
        if !self.notes.iter().any(|known| known == note) {
            println!("  {note}");
            self.notes.push(note.to_owned());
        }
    }

    /// One figure of a row over all rounds; `None` if it was not measured.
    pub fn spread(&self, row: &Row, figure: impl Fn(&Measurement) -> Option<f64>) -> Option<Spread> {
        let (_, measurements) = self.rows.iter().find(|(known, _)| known == row)?;
        Spread::of(measurements.iter().filter_map(figure))
    }

    pub fn median(&self, row: &Row, figure: impl Fn(&Measurement) -> Option<f64>) -> Option<f64> {
        self.spread(row, figure).map(|spread| spread.median)
    }

    /// The ratio of two rows, round by round, so that a slow round affects both.
    pub fn ratio(
        &self,
        (above, below): (&Row, &Row),
        figure: impl Fn(&Measurement) -> Option<f64> + Copy,
    ) -> Option<Spread> {
        let of = |row: &Row| self.rows.iter().find(|(known, _)| known == row).map(|(_, measurements)| measurements);
        let rounds = of(above)?.iter().zip(of(below)?);
        Spread::of(rounds.filter_map(|(above, below)| Some(figure(above)? / figure(below)?)))
    }

    pub fn per_second(&self, row: &Row) -> Option<f64> {
        self.median(row, |measurement| Some(measurement.per_second))
    }

    /// Of the matching rows, the one with the highest median throughput.
    pub fn best(&self, meant: impl Fn(&Row) -> bool) -> Option<&Row> {
        let rows = self.rows.iter().map(|(row, _)| row).filter(|row| meant(row));
        rows.max_by(|one, other| f64::total_cmp(&self.throughput(one), &self.throughput(other)))
    }

    fn throughput(&self, row: &Row) -> f64 {
        self.per_second(row).unwrap_or_default()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hapax { connections: 1 } => write!(f, "A Hapax, 1 connection"),
            Self::Hapax { connections } => write!(f, "A Hapax, {connections} connections"),
            Self::Payload { bytes } => write!(f, "A Hapax, payload of {bytes} bytes"),
            Self::ByHand { clients: 1 } => write!(f, "B by hand, 1 client"),
            Self::ByHand { clients } => write!(f, "B by hand, {clients} clients"),
            Self::Tutorial { pool, connections } => {
                write!(f, "C tutorial, {connections} connections, pool of {pool}")
            }
            Self::OneKey => write!(f, "D Hapax, one key replayed"),
            Self::ManyKeys { keys } => write!(f, "D Hapax, {} keys replayed", grouped(*keys)),
            Self::Bare => write!(f, "D bare handler"),
            Self::Filled { keys } => write!(f, "E Hapax, {} keys stored", grouped(*keys)),
            Self::Purging => write!(f, "E Hapax, expired keys being purged"),
            Self::Peer { name, version, clients } => write!(f, "F {name} {version}, {clients} clients"),
            Self::Work { workers, jobs_at_once: 1 } => write!(f, "H {workers} workers, one job a claim"),
            Self::Work { workers, jobs_at_once } => write!(f, "H {workers} workers, {jobs_at_once} jobs a claim"),
            Self::Waiting { waiting, urgent_tomorrow: 0 } => write!(f, "I claims, {} jobs wait", grouped(*waiting)),
            Self::Waiting { waiting, urgent_tomorrow } => {
                let (waiting, urgent_tomorrow) = (grouped(*waiting), grouped(*urgent_tomorrow));
                write!(f, "I claims, {waiting} jobs wait behind {urgent_tomorrow} of tomorrow")
            }
            Self::Snapshot { passed: 0 } => write!(f, "I claims, before jobs passed"),
            Self::Snapshot { passed } => {
                write!(f, "I claims, {} jobs passed under an open snapshot", grouped(*passed))
            }
            Self::Heartbeats { jobs: 1 } => write!(f, "J heartbeats, claims of one job"),
            Self::Heartbeats { jobs } => write!(f, "J heartbeats, claims of {jobs} jobs"),
            Self::WakeUp { replicas: 1 } => write!(f, "K waiting worker, same replica"),
            Self::WakeUp { .. } => write!(f, "K waiting worker, other replica"),
            Self::Life { workers } => write!(f, "L Hapax, {workers} workers"),
            Self::PeerLife { name, version, clients } => write!(f, "L {name} {version}, {clients} clients"),
        }
    }
}

/// With a comma before every three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_have_commas() {
        assert_eq!([7, 999, 1000, 1_234_567].map(grouped), ["7", "999", "1,000", "1,234,567"]);
    }
}
