//! The command line, a file for each subcommand.

mod admin;
mod config;
mod dev;
mod health;
mod key;
mod metrics;
mod migrate;
pub mod private_postgres;
mod purge;
mod serve;
mod with_postgres;

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use sqlx::PgConnection;

use crate::configuration::{Configuration, Overrides};
use crate::database::{self, Schema};
use crate::server;

/// An HTTP job service on PostgreSQL on which every retry is harmless.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// A TOML file with settings; HAPAX_CONFIG names one, too.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API.
    Serve(serve::Arguments),
    /// Serve the API on a private PostgreSQL that lives in a folder: nothing to prepare.
    Dev(dev::Arguments),
    /// Bring the database's schema up to date.
    Migrate,
    /// Delete expired keys once, for cron; every server does it all the time.
    Purge,
    /// Create and list tenants.
    #[command(subcommand)]
    Tenant(admin::TenantCommand),
    /// Create, list and revoke access tokens.
    #[command(subcommand)]
    Token(admin::TokenCommand),
    /// Look keys up.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Ask a server on this machine whether it is alive, for a container's health check.
    Health(health::Arguments),
    /// Print what each metric means, in Markdown.
    Metrics,
    /// Print the effective settings, secrets hidden.
    Config,
    /// Run a command with DATABASE_URL naming a PostgreSQL of its own, which is thrown away afterwards.
    WithPostgres(with_postgres::Arguments),
}

/// Does what the command line says.
///
/// # Errors
/// In words for the person who typed it: [`explain`] writes them.
pub fn run() -> anyhow::Result<ExitCode> {
    let Arguments { config, command } = Arguments::parse();
    let overrides = Overrides { file: config, ..Overrides::default() };
    match command {
        Command::Serve(arguments) => serve::run(arguments, overrides)?,
        Command::Dev(arguments) => dev::run(arguments, overrides)?,
        Command::Migrate => migrate::run(&Configuration::load(&overrides)?)?,
        Command::Purge => purge::run(&Configuration::load(&overrides)?)?,
        Command::Tenant(command) => admin::tenant(command, &Configuration::load(&overrides)?)?,
        Command::Token(command) => admin::token(command, &Configuration::load(&overrides)?)?,
        Command::Key(command) => key::run(command, &Configuration::load(&overrides)?)?,
        Command::Health(arguments) => health::run(&arguments, &Configuration::load(&overrides)?)?,
        Command::Metrics => metrics::run()?,
        Command::Config => config::run(&Configuration::load(&overrides)?)?,
        Command::WithPostgres(arguments) => return with_postgres::run(arguments),
    }
    Ok(ExitCode::SUCCESS)
}

/// An error as it is shown, each cause once.
pub fn explain(error: &anyhow::Error) -> String {
    database::with_causes(error.as_ref())
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    /// For what cannot be cancelled, such as a name that is being resolved.
    const LEFT_BEHIND: Duration = Duration::from_secs(1);
    runtime.shutdown_timeout(LEFT_BEHIND);
    done
}

/// Writes a line for whoever called, and says so if nobody can read it.
fn print(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("standard output cannot be written")
}

/// One connection to a database whose schema fits.
async fn connect(configuration: &Configuration) -> anyhow::Result<PgConnection> {
    let mut connection = server::connect(&server::database_settings(configuration)?).await?;
    if database::fitness(&mut connection).await?.0 == Schema::Unfit {
        bail!("the database's schema is not the one this release needs; run `hapax migrate` first");
    }
    Ok(connection)
}
