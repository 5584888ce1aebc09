//! What a run measures, and for how long.

use serde::{Deserialize, Serialize};

use crate::ledger::Times;

/// The kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Checks that the programs work. Its figures are meaningless.
    Smoke,
    /// About a quarter of an hour.
    Short,
    /// Includes the long parts: peers, a million replayed keys, ten million stored keys.
    Full,
    /// The rows with workers as in a full run, and of the others only the one that they are compared with.
    Workers,
}

pub struct Plan {
    /// How often every row is measured.
    pub rounds: usize,
    pub times: Times,
    /// Longer, because a large ledger needs time to settle.
    pub growth: Times,
    /// Shorter than the purge of a million expired keys.
    pub purging: Times,
    /// The number of keys that replays are drawn from.
    pub replayed_keys: u64,
    /// Ledgers to fill beforehand, by their number of keys and jobs.
    pub filled: &'static [u64],
    pub expired_keys: u64,
    /// How many jobs wait, and how many urgent jobs of the future are before them.
    pub waiting: u64,
    pub urgent_tomorrow: u64,
    /// How many jobs pass under an open snapshot.
    pub passed: u64,
    /// How many jobs are submitted while a worker waits, for each way.
    pub wake_ups: u64,
    pub connections: &'static [usize],
    pub payload_bytes: &'static [usize],
    pub by_hand_clients: &'static [usize],
    pub tutorial_pools: &'static [u32],
    pub tutorial_connections: &'static [usize],
    pub peers: &'static [&'static str],
    /// In how many clients the peers insert jobs.
    pub peer_clients: &'static [usize],
    /// Whether the rows without workers are measured, beyond new keys.
    pub submissions: bool,
    /// Additional settings of the servers.
    pub settings: &'static [(&'static str, &'static str)],
}

pub const MILLION: u64 = 1_000_000;
/// For rows that do not vary the number of connections.
pub const USUAL_CONNECTIONS: usize = 64;
pub const MANY_CONNECTIONS: usize = 256;

const SHORT: Plan = Plan {
    rounds: 3,
    times: Times::of(1, 4),
    growth: Times::of(2, 4),
    purging: Times::of(2, 4),
    replayed_keys: 100_000,
    filled: &[MILLION],
    expired_keys: MILLION,
    waiting: 100_000,
    urgent_tomorrow: 10_000,
    passed: 50_000,
    wake_ups: 100,
    connections: &[1, 8, USUAL_CONNECTIONS, MANY_CONNECTIONS],
    payload_bytes: &[64, 1024, 16 * 1024],
    by_hand_clients: &[1, 4, 8, 16, 32, 64],
    tutorial_pools: &[8, 16],
    tutorial_connections: &[8, 64, 256],
    peers: &[],
    peer_clients: &[],
    submissions: true,
    settings: &[],
};

const FULL: Plan = Plan {
    times: Times::of(1, 5),
    growth: Times::of(8, 15),
    purging: Times::of(2, 6),
    replayed_keys: MILLION,
    filled: &[MILLION, 10 * MILLION],
    waiting: MILLION,
    urgent_tomorrow: 100_000,
    passed: 200_000,
    wake_ups: 200,
    peers: &["graphile-worker", "pg-boss", "procrastinate", "apalis-postgres"],
    peer_clients: &[8, 32, 64],
    ..SHORT
};

const WORKERS: Plan = Plan {
    filled: &[],
    connections: &[MANY_CONNECTIONS],
    payload_bytes: &[],
    peers: &["graphile-worker", "pg-boss"],
    peer_clients: &[],
    submissions: false,
    ..FULL
};

const SMOKE: Plan = Plan {
    rounds: 1,
    times: Times::of(0, 1),
    growth: Times::of(0, 1),
    purging: Times::of(1, 1),
    replayed_keys: 500,
    filled: &[1000],
    expired_keys: 100_000,
    waiting: 2000,
    urgent_tomorrow: 1000,
    passed: 1000,
    wake_ups: 5,
    connections: &[1, MANY_CONNECTIONS],
    payload_bytes: &[16 * 1024],
    by_hand_clients: &[1, 8],
    tutorial_pools: &[8],
    tutorial_connections: &[8],
    // May run next to a compiler, and its latencies do not matter, so servers wait longer before they refuse.
    settings: &[("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "5s"), ("HAPAX__DATABASE__CONNECT_TIMEOUT", "5s")],
    ..SHORT
};

impl Mode {
    pub fn plan(self) -> Plan {
        match self {
            Self::Smoke => SMOKE,
            Self::Short => SHORT,
            Self::Full => FULL,
            Self::Workers => WORKERS,
        }
    }
}
