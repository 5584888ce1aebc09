//! The measured claims of Hapax. `make bench` is the whole of it; `hapax-bench quick` is for whoever changes the server.
//!
//! Each file answers one question. Who loads: `load`; with what: `requests`; what it costs: `account`; on which database:
//! `postgres`; against which server: `replica`, on a `ledger`, or one of the `handlers`; which rows there are: `rows`, for
//! how long: `plan`; what was found: `results`, and what is said of it: `page`.

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

use std::process::ExitCode;

use clap::Parser;

/// Measures Hapax.
#[derive(Parser)]
enum Command {
    /// Everything, and the page of it.
    Run(run::Arguments),
    /// One build of the server, or one against another.
    Quick(quick::Arguments),
    /// Write the page of the last run again.
    Page(run::PageArguments),
    /// Be one of the handlers that Hapax is held against.
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
