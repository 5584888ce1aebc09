//! The performance targets, and whether this run reaches them.

use crate::measurement::{Measurement, Spread};
use crate::plan::{MANY_CONNECTIONS, MILLION, Plan, USUAL_CONNECTIONS};
use crate::results::{Results, Row, grouped};
use crate::rows::{claim_latency, heartbeats, work};

/// A performance target.
struct Target {
    what: String,
    bound: Bound,
    unit: &'static str,
    /// Over the rounds; the median counts. `None` if it was not measured.
    value: Option<Spread>,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    MoreThan(f64),
    LessThan(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::MoreThan(bound) => value > bound,
            Self::LessThan(bound) => value < bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::MoreThan(bound) => format!("> {bound}"),
            Self::LessThan(bound) => format!("< {bound}"),
        }
    }
}

/// Memory limit of a server besides its replay cache, in MiB.
const MEMORY_MIB: f64 = 64.0;

pub fn table(results: &Results) -> String {
    let mut table = "| what | target | measured | |\n|---|---|---|---|\n".to_owned();
    for target in throughput(results).into_iter().chain(others(results)).chain(workers(results)) {
        let (measured, verdict) = match target.value {
            None => ("–".to_owned(), "not run"),
            Some(value) if target.bound.holds(value.median) => (shown(value, target.unit), "reached"),
            Some(value) => (shown(value, target.unit), "**not reached**"),
        };
        let unit = target.unit;
        table += &format!("| {} | {}{unit} | {measured} | {verdict} |\n", target.what, target.bound.text());
    }
    table
}

fn shown(Spread { least, median, greatest }: Spread, unit: &str) -> String {
    // Only significant digits, but enough that a missed target does not look reached.
    let digits = |value: f64| if value >= 10.0 { format!("{value:.1}") } else { format!("{value:.2}") };
    let rounds = if least < greatest { format!(" ({}–{})", digits(least), digits(greatest)) } else { String::new() };
    format!("{}{unit}{rounds}", digits(median))
}

fn throughput(results: &Results) -> Vec<Target> {
    let busy = Row::Hapax { connections: MANY_CONNECTIONS };
    let by_hand = results.best(|row| matches!(row, Row::ByHand { .. }));
    let tutorial = results.best(|row| matches!(row, Row::Tutorial { .. }));
    let peer = results.best(|row| matches!(row, Row::Peer { .. }));
    let many = results.best(|row| matches!(row, Row::ManyKeys { .. }));
    let ratio = |what: &str, bound, above: Option<&Row>, below: Option<&Row>| {
        let rows = above.zip(below);
        let value = rows.and_then(|rows| results.ratio(rows, |measurement| Some(measurement.per_second)));
        Target { what: what.to_owned(), bound, unit: "", value }
    };
    let hapax = Some(&busy);
    let mut targets = vec![
        ratio("New jobs, 256 connections, relative to by hand (B), best", Bound::AtLeast(4.0), hapax, by_hand),
        ratio("New jobs, 256 connections, relative to tutorial (C), best", Bound::AtLeast(5.0), hapax, tutorial),
        ratio("New jobs, 256 connections, relative to the best peer (F)", Bound::MoreThan(1.0), hapax, peer),
        ratio(
            "Replays of one key, relative to a bare handler (D)",
            Bound::AtLeast(0.85),
            Some(&Row::OneKey),
            Some(&Row::Bare),
        ),
        ratio("Replays of many keys, relative to a bare handler (D)", Bound::AtLeast(0.7), many, Some(&Row::Bare)),
    ];
    for keys in [MILLION, 10 * MILLION] {
        let what = format!("New jobs with {} keys stored, relative to an empty database (E)", grouped(keys));
        targets.push(ratio(&what, Bound::AtLeast(0.8), Some(&Row::Filled { keys }), hapax));
    }
    let what = "New jobs while expired keys are purged, relative to an empty database (E)";
    targets.push(ratio(what, Bound::AtLeast(0.8), Some(&Row::Purging), hapax));
    targets
}

fn others(results: &Results) -> Vec<Target> {
    let (alone, busy) = (Row::Hapax { connections: 1 }, Row::Hapax { connections: MANY_CONNECTIONS });
    let target = |what: &str, bound, value| Target { what: what.to_owned(), bound, unit: "", value };
    let server_to_postgres = |measurement: &Measurement| Some(measurement.server_us? / measurement.postgres_us?);
    let beside_cache = results
        .memory
        .iter()
        .map(|memory| memory.bytes.saturating_sub(memory.replay_cache_limit_bytes) as f64 / f64::from(1 << 20));
    vec![
        target(
            "p99 while expired keys are purged, relative to an empty database (E)",
            Bound::AtMost(2.0),
            results.ratio((&Row::Purging, &busy), |measurement| measurement.p99_us),
        ),
        target(
            "p50 of one connection, relative to by hand with one client (B)",
            Bound::AtMost(1.2),
            results.ratio((&alone, &Row::ByHand { clients: 1 }), |measurement| measurement.p50_us),
        ),
        target(
            "CPU for a job, 256 connections: server relative to PostgreSQL (A)",
            Bound::LessThan(1.0),
            results.spread(&busy, server_to_postgres),
        ),
        Target {
            what: "Most memory beyond what the replay cache may take (G)".to_owned(),
            bound: Bound::AtMost(MEMORY_MIB),
            unit: " MiB",
            value: beside_cache.reduce(f64::max).and_then(|most| Spread::of([most])),
        },
    ]
}

/// The life of a job with its workers.
fn workers(results: &Results) -> Vec<Target> {
    let target = |what: &str, bound, unit, value| Target { what: what.to_owned(), bound, unit, value };
    let busy = Row::Hapax { connections: MANY_CONNECTIONS };
    let postgres_us = |measurement: &Measurement| measurement.postgres_us;
    let all_us = |measurement: &Measurement| Some(measurement.server_us? + measurement.postgres_us?);
    let hot_percent = |measurement: &Measurement| Some(measurement.hot_share? * 100.0);
    let [few, many] = [heartbeats::FEW_JOBS, heartbeats::MANY_JOBS].map(|jobs| Row::Heartbeats { jobs });
    let mut targets = vec![
        target(
            "CPU of PostgreSQL to claim and report one job, 64 workers (H)",
            Bound::AtMost(120.0),
            " µs",
            results.spread(&work::ONE.row(), postgres_us),
        ),
        target(
            "The same for one of 100 jobs, 8 workers, relative to a new job, 256 connections (A)",
            Bound::LessThan(1.0),
            "",
            results.ratio((&work::HUNDRED.row(), &busy), postgres_us),
        ),
    ];
    targets.extend(claim_latencies(results));
    targets.extend([
        target(
            "Updates by heartbeats that are HOT, 100 jobs a claim (J)",
            Bound::AtLeast(99.0),
            " %",
            results.spread(&many, hot_percent),
        ),
        target(
            "CPU of server and PostgreSQL for a heartbeat of 100 jobs, relative to one job (J)",
            Bound::AtMost(2.0),
            "",
            results.ratio((&many, &few), all_us),
        ),
    ]);
    targets.extend(wake_ups(results));
    let life = Row::Life { workers: USUAL_CONNECTIONS };
    let peer = results.best(|row| matches!(row, Row::PeerLife { .. }));
    targets.extend([
        target(
            "Jobs from submission to end, 64 workers, relative to the best peer (L)",
            Bound::MoreThan(2.0),
            "",
            peer.and_then(|peer| results.ratio((&life, peer), |measurement| Some(measurement.per_second))),
        ),
        target(
            "WAL of a job from submission to end, 64 workers (L)",
            Bound::AtMost(3000.0),
            " bytes",
            results.spread(&life, |measurement| measurement.wal_bytes),
        ),
    ]);
    targets
}

fn claim_latencies(results: &Results) -> [Target; 2] {
    let Plan { waiting, urgent_tomorrow, passed, .. } = results.mode.plan();
    let few_wait = Row::Waiting { waiting: claim_latency::WAITING, urgent_tomorrow: 0 };
    let p99_us = |measurement: &Measurement| measurement.p99_us;
    [
        Target {
            what: format!(
                "p99 of a claim with {} waiting jobs behind {} urgent ones of tomorrow, relative to {} (I)",
                grouped(waiting),
                grouped(urgent_tomorrow),
                grouped(claim_latency::WAITING),
            ),
            bound: Bound::AtMost(2.0),
            unit: "",
            value: results.ratio((&Row::Waiting { waiting, urgent_tomorrow }, &few_wait), p99_us),
        },
        Target {
            what: format!(
                "p99 of a claim after {} jobs passed under an open snapshot, relative to before (I)",
                grouped(passed),
            ),
            bound: Bound::AtMost(3.0),
            unit: "",
            value: results.ratio((&Row::Snapshot { passed }, &Row::Snapshot { passed: 0 }), p99_us),
        },
    ]
}

fn wake_ups(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    for (replicas, which) in [(1, "same"), (2, "other")] {
        let row = Row::WakeUp { replicas };
        let p50_ms = results.spread(&row, |measurement| Some(measurement.p50_us? / 1e3));
        let p99_ms = results.spread(&row, |measurement| Some(measurement.p99_us? / 1e3));
        for (quantile, bound, value) in [("p50", 5.0, p50_ms), ("p99", 20.0, p99_ms)] {
            let what = format!("{quantile} from a new job to the answer of a waiting worker, {which} replica (K)");
            targets.push(Target { what, bound: Bound::AtMost(bound), unit: " ms", value });
        }
    }
    targets
}
