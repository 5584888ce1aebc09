//! `make demo` and `make drill`: demonstrate what Hapax guarantees, with the release binary and a durable PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a demonstration that cannot go on has failed")]

#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../harness/mod.rs"]
mod harness;

mod clients;
mod drill;
mod failures;
mod replicas;
mod tally;
mod workers;

use std::process::ExitCode;

use harness::OwnPostgres;

#[tokio::main]
async fn main() -> ExitCode {
    let kept = match std::env::args().nth(1).as_deref() {
        None => {
            if let Err(missing) = workers::find_python() {
                eprintln!("{missing}");
                return ExitCode::FAILURE;
            }
            replicas::show(&OwnPostgres::start().await).await
        }
        Some("drill") => drill::show(&OwnPostgres::start().await).await,
        Some(other) => {
            eprintln!("unknown argument {other}; expected drill or nothing");
            return ExitCode::FAILURE;
        }
    };
    println!("\n{}", if kept { "Every promise was kept." } else { "A PROMISE WAS BROKEN: see above." });
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a line with its verdict and returns the verdict.
fn verdict(holds: bool, what: &str) -> bool {
    println!("  {} {what}", if holds { "ok    " } else { "BROKEN" });
    holds
}
