//! The performance targets, and whether this run reaches them.

use crate::measurement::{Measurement, Spread};
use crate::plan::{MANY_CONNECTIONS, MILLION};
use crate::results::{Results, Row, grouped};

/// A performance target.
struct Target {
    claim: String,
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
    let mut table = "| claim | target | measured | |\n|---|---|---|---|\n".to_owned();
    for target in throughput(results).into_iter().chain(others(results)) {
        let (measured, verdict) = match target.value {
            None => ("–".to_owned(), "not run"),
            Some(value) if target.bound.holds(value.median) => (shown(value, target.unit), "reached"),
            Some(value) => (shown(value, target.unit), "**not reached**"),
        };
        let unit = target.unit;
        table += &format!("| {} | {}{unit} | {measured} | {verdict} |\n", target.claim, target.bound.text());
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
    let ratio = |claim: &str, bound, above: Option<&Row>, below: Option<&Row>| {
        let rows = above.zip(below);
        let value = rows.and_then(|rows| results.ratio(rows, |measurement| Some(measurement.per_second)));
        Target { claim: claim.to_owned(), bound, unit: "", value }
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
        let claim = format!("New jobs with {} keys stored, relative to an empty database (E)", grouped(keys));
        targets.push(ratio(&claim, Bound::AtLeast(0.8), Some(&Row::Filled { keys }), hapax));
    }
    let claim = "New jobs while expired keys are purged, relative to an empty database (E)";
    targets.push(ratio(claim, Bound::AtLeast(0.8), Some(&Row::Purging), hapax));
    targets
}

fn others(results: &Results) -> Vec<Target> {
    let (alone, busy) = (Row::Hapax { connections: 1 }, Row::Hapax { connections: MANY_CONNECTIONS });
    let target = |claim: &str, bound, value| Target { claim: claim.to_owned(), bound, unit: "", value };
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
            claim: "Most memory beyond what the replay cache may take (G)".to_owned(),
            bound: Bound::AtMost(MEMORY_MIB),
            unit: " MiB",
            value: beside_cache.reduce(f64::max).and_then(|most| Spread::of([most])),
        },
    ]
}
