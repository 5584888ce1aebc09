//! The command line. Each subcommand has its own file.

mod admin;
mod audit;
mod config;
mod dev;
mod errors;
mod health;
mod key;
mod metrics;
mod migrate;
mod postgres;
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

/// An HTTP job service on PostgreSQL in which every request is safe to retry.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// A TOML file with settings. The environment variable HAPAX_CONFIG can also name it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API.
    Serve(serve::Arguments),
    /// Serve the API on a private PostgreSQL in a folder, without any preparation.
    Dev(dev::Arguments),
    /// Bring the database's schema up to date.
    Migrate,
    /// Delete expired idempotency keys once, for example from cron. Every server also purges them continuously.
    Purge,
    /// Create, list and change tenants.
    #[command(subcommand)]
    Tenant(admin::TenantCommand),
    /// Create, list and revoke access tokens.
    #[command(subcommand)]
    Token(admin::TokenCommand),
    /// Look up idempotency keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Check the invariants that live in the data, while the service runs or not. Exits with 1 if one is violated.
    Audit(audit::Arguments),
    /// Check whether the server on this machine is alive, for a container's health check.
    Health(health::Arguments),
    /// Print the description of every metric, in Markdown.
    Metrics,
    /// Print the description of every error code, in Markdown.
    Errors,
    /// Print the effective settings, without secrets.
    Config,
    /// Run a command with DATABASE_URL set to a temporary PostgreSQL, which is deleted afterwards.
    WithPostgres(with_postgres::Arguments),
}

/// Runs the subcommand.
///
/// # Errors
/// With a text for the user, which [`explain`] formats.
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
        Command::Audit(arguments) => return audit::run(&arguments, &Configuration::load(&overrides)?),
        Command::Health(arguments) => health::run(&arguments, &Configuration::load(&overrides)?)?,
        Command::Metrics => metrics::run()?,
        Command::Errors => errors::run()?,
        Command::Config => config::run(&Configuration::load(&overrides)?)?,
        Command::WithPostgres(arguments) => return with_postgres::run(arguments),
    }
    Ok(ExitCode::SUCCESS)
}

/// Formats an error with all its causes, each of them once.
pub fn explain(error: &anyhow::Error) -> String {
    database::with_causes(error.as_ref())
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    /// For tasks that cannot be cancelled, such as a DNS look-up.
    const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    done
}

/// Writes a line to standard output. Unlike `println!`, it returns an error if that fails.
fn print(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("standard output cannot be written")
}

/// Opens one connection, and checks that the database has the schema of this release.
async fn connect(configuration: &Configuration) -> anyhow::Result<PgConnection> {
    let mut connection = server::connect(&server::database_settings(configuration)?).await?;
    if database::fitness(&mut connection).await?.0 == Schema::Unfit {
        bail!("the database's schema is not the one this release needs; run `hapax migrate` first");
    }
    Ok(connection)
}
