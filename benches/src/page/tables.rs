//! The tables of figures, in Markdown.

use crate::machine::Machine;
use crate::measurement::{Measurement, Spread};
use crate::replica::SETTINGS;
use crate::results::{Results, grouped};

/// The median, with the least and the greatest round in parentheses.
pub fn rows(results: &Results) -> String {
    let mut table = "| row | a second | p50 | p99 | p99.9 | server | PostgreSQL | load | WAL | refused |\n\
                     |---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let mut rows: Vec<_> = results.rows.iter().map(|(row, measurements)| (row.to_string(), measurements)).collect();
    // Grouped by letter, in the order of the measurement.
    rows.sort_by_key(|(name, _)| name.chars().next());
    for (name, measurements) in rows {
        let cell = |figure: fn(&Measurement) -> Option<f64>, shown: fn(f64) -> String| {
            spread(Spread::of(measurements.iter().filter_map(figure)), shown)
        };
        let refused: u64 = measurements.iter().map(|measurement| measurement.refused).sum();
        table += &format!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {refused} |\n",
            cell(|measurement| Some(measurement.per_second), whole),
            cell(|measurement| measurement.p50_us, milliseconds),
            cell(|measurement| measurement.p99_us, milliseconds),
            cell(|measurement| measurement.p999_us, milliseconds),
            cell(|measurement| measurement.server_us, whole),
            cell(|measurement| measurement.postgres_us, whole),
            cell(|measurement| measurement.load_us, whole),
            cell(|measurement| measurement.wal_bytes, whole),
        );
    }
    table
}

fn spread(spread: Option<Spread>, shown: fn(f64) -> String) -> String {
    match spread {
        None => "–".to_owned(),
        Some(spread) => {
            format!("{} ({}–{})", shown(spread.median), shown(spread.least), shown(spread.greatest))
        }
    }
}

fn whole(value: f64) -> String {
    grouped(value.round() as u64)
}

fn milliseconds(microseconds: f64) -> String {
    let value = microseconds / 1e3;
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

pub fn memory(results: &Results) -> String {
    let mut table = "| a server | most memory | of which the replay cache may take |\n|---|---|---|\n".to_owned();
    for memory in &results.memory {
        let (bytes, limit) = (memory.bytes >> 20, memory.replay_cache_limit_bytes >> 20);
        table += &format!("| {} | {bytes} MiB | {limit} MiB |\n", memory.when);
    }
    table
}

pub fn machine(machine: &Machine) -> String {
    let crates: Vec<String> = machine.crates.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let lines = [
        ("processor", format!("{}, {} cores", machine.processor, machine.cores)),
        ("memory", format!("{:.1} GiB", machine.memory_bytes as f64 / f64::from(1 << 30))),
        ("kernel", machine.kernel.clone()),
        ("file system of the data", machine.file_system.clone()),
        ("PostgreSQL", machine.postgres.clone()),
        ("pgbench", machine.pgbench.clone()),
        ("compiler", machine.rustc.clone()),
        ("crates", crates.join(", ")),
        ("commit", machine.commit.clone()),
        ("day", machine.day.clone()),
    ];
    let lines = lines.iter().map(|(name, value)| format!("| {name} | {value} |\n"));
    "| | |\n|---|---|\n".to_owned() + &lines.collect::<String>()
}

pub fn settings() -> String {
    SETTINGS.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}
