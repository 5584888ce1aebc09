//! Measures Hapax's performance claims. `make bench` runs all of it; `hapax-bench quick` compares builds during
//! development.
//!
//! Each file answers one question: `load` sends, `requests` and `workers` build the requests, `account` measures the
//! cost, `postgres` is the database, `replica` (on a `ledger`) and `handlers` are the servers, `rows` are the measured rows,
//! `plan` is their duration, `results` holds the figures, and `page` writes the page.

#![forbid(unsafe_code)]

mod account;
mod handlers;
mod ledger;
mod load;
mod machine;
mod measurement;
mod page;
mod plan;
mod postgres;
mod quick;
mod replica;
mod requests;
mod results;
mod rows;
mod run;
mod workers;

use std::process::ExitCode;

use clap::Parser;

/// Measure Hapax.
#[derive(Parser)]
enum Command {
    /// Run everything and write the page.
    Run(run::Arguments),
    /// Measure one build of the server, or compare two.
    Quick(quick::Arguments),
    /// Write the page of the last run again.
    Page(run::PageArguments),
    /// Run one of the baseline handlers.
    #[command(subcommand, hide = true)]
    Handler(handlers::Handler),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Run(arguments) => run::run(&arguments),
        Command::Quick(arguments) => quick::run(&arguments),
        Command::Page(arguments) => run::write_page(&arguments),
        Command::Handler(handler) => handler.serve(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hapax-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
