//! The rows, by the letters of the page.

pub mod by_hand;
pub mod claim_latency;
pub mod creation;
mod fill;
pub mod growth;
pub mod heartbeats;
pub mod peers;
pub mod replays;
pub mod tutorial;
pub mod wake_ups;
pub mod work;

use crate::measurement::Measurement;
use crate::results::{Results, Row};

/// Stores a result and prints it.
fn found(results: &mut Results, row: Row, measurement: Measurement) {
    let microseconds = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    println!(
        "  {:<50} {:>8.0}/s  p50 {:>7} µs  p99 {:>7} µs{}",
        row.to_string(),
        measurement.per_second,
        microseconds(measurement.p50_us),
        microseconds(measurement.p99_us),
        if measurement.refused > 0 { format!("  {} refused", measurement.refused) } else { String::new() },
    );
    results.add(row, measurement);
}
