//! The measured claims of Hapax. `make bench` is the whole of it; `hapax-bench quick` is for whoever changes the server.
//!
//! Each file answers one question: who loads (`load`), with what (`requests`), what it costs (`account`), on which
//! database (`postgres`), against which server (`replica`), and whether the database agrees (`ledger`).

mod account;
mod ledger;
mod load;
mod measurement;
mod postgres;
mod quick;
mod replica;
mod requests;

use std::process::ExitCode;

use clap::Parser;

/// Measures Hapax.
#[derive(Parser)]
enum Command {
    /// One build of the server, or one against another.
    Quick(quick::Arguments),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Quick(arguments) => quick::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hapax-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
