//! The page. template.md has the text; all figures come from the run.

mod chart;
mod tables;
mod targets;

use std::fs;
use std::path::Path;

use crate::plan::{Mode, Plan};
use crate::results::{Results, grouped};

/// Writes benchmarks.md and benchmarks.svg into a folder.
pub fn write(results: &Results, folder: &Path) -> anyhow::Result<()> {
    fs::write(folder.join("benchmarks.svg"), chart::draw(results))?;
    let page = folder.join("benchmarks.md");
    fs::write(&page, fill(results))?;
    println!("{} is written", page.display());
    Ok(())
}

fn fill(results: &Results) -> String {
    let plan = results.mode.plan();
    let command = match results.mode {
        Mode::Full => "make bench-full",
        Mode::Workers => "make bench-workers",
        Mode::Short | Mode::Smoke => "make bench",
    };
    let notes: String = results.notes.iter().map(|note| format!("- {note}\n")).collect();
    let missing = match results.mode {
        Mode::Full => String::new(),
        Mode::Workers => "- Of the rows without workers, only new jobs over 256 connections were run.\n".to_owned(),
        Mode::Short | Mode::Smoke => missing(&plan, &Mode::Full.plan()),
    };
    let parts = [
        ("command", command.to_owned()),
        ("rounds", results.rounds.to_string()),
        ("warm_up", plan.times.warm_up.as_secs().to_string()),
        ("measured", plan.times.measured.as_secs().to_string()),
        ("growth_warm_up", plan.growth.warm_up.as_secs().to_string()),
        ("growth_measured", plan.growth.measured.as_secs().to_string()),
        ("waiting", grouped(plan.waiting)),
        ("urgent_tomorrow", grouped(plan.urgent_tomorrow)),
        ("passed", grouped(plan.passed)),
        ("wake_ups", plan.wake_ups.to_string()),
        ("targets", targets::table(results)),
        ("rows", tables::rows(results)),
        ("memory", tables::memory(results)),
        ("machine", tables::machine(&results.machine)),
        ("settings", tables::settings()),
        ("notes", missing + &notes),
    ];
    let mut page = include_str!("template.md").to_owned();
    for (name, text) in parts {
        page = page.replace(&format!("{{{{{name}}}}}"), text.trim_end());
    }
    page
}

/// What a shorter run leaves out.
fn missing(plan: &Plan, full: &Plan) -> String {
    format!(
        "- The long rows were not run: ten million stored keys, and peers (`make bench-full`).\n\
         - The rows I are smaller than those that the targets are meant for: {} jobs waited behind {} of tomorrow instead \
         of {} behind {}, and {} passed under an open snapshot instead of {}.\n",
        grouped(plan.waiting),
        grouped(plan.urgent_tomorrow),
        grouped(full.waiting),
        grouped(full.urgent_tomorrow),
        grouped(plan.passed),
        grouped(full.passed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::measurement::Measurement;
    use crate::results::Row;

    fn results() -> Results {
        let machine = Machine {
            processor: "P".to_owned(),
            cores: 2,
            memory_bytes: 1 << 30,
            kernel: "K".to_owned(),
            file_system: "ext4".to_owned(),
            postgres: "15".to_owned(),
            pgbench: "15".to_owned(),
            rustc: "1".to_owned(),
            crates: vec![("sqlx".to_owned(), "0.9".to_owned())],
            commit: "c".to_owned(),
            day: "2026-11-22".to_owned(),
        };
        let rows = Vec::new();
        Results { mode: Mode::Short, rounds: 1, machine, rows, memory: Vec::new(), notes: vec!["N".to_owned()] }
    }

    fn measured(per_second: f64) -> Measurement {
        Measurement { per_second, ..Measurement::default() }
    }

    #[test]
    fn every_placeholder_of_the_page_is_filled_in() {
        let page = fill(&results());
        assert!(!page.contains("{{"), "{page}");
        assert!(page.contains("- N\n"), "{page}");
    }

    #[test]
    fn a_target_is_reached_not_reached_or_not_run() {
        let mut results = results();
        results.add(Row::Hapax { connections: 256 }, measured(5000.0));
        results.add(Row::ByHand { clients: 8 }, measured(1000.0));
        results.add(Row::Tutorial { pool: 8, connections: 8 }, measured(2000.0));
        let table = targets::table(&results);
        let verdict = |letter: &str| {
            let line = table.lines().find(|line| line.contains(letter)).unwrap();
            line.rsplit('|').nth(1).unwrap().trim().to_owned()
        };
        assert_eq!(verdict("by hand (B)"), "reached");
        assert_eq!(verdict("tutorial (C)"), "**not reached**");
        assert_eq!(verdict("peer (F)"), "not run");
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let mut results = results();
        // The second round is slow for both, the third for neither.
        for (ours, theirs) in [(4000.0, 1000.0), (400.0, 100.0), (5000.0, 1000.0)] {
            results.add(Row::Hapax { connections: 256 }, measured(ours));
            results.add(Row::ByHand { clients: 8 }, measured(theirs));
        }
        assert!(targets::table(&results).contains("by hand (B), best | ≥ 4 | 4.00 (4.00–5.00) | reached |"));
    }
}
