//! `hapax with-postgres`: runs one command, such as the test suite, with a temporary database.

use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;

use anyhow::Context;
use private_postgres::{Durability, Place};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::{block_on, postgres};

#[derive(clap::Args)]
pub struct Arguments {
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Returns the command's exit code.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("hapax-").tempdir()?;
    // If we are root, PostgreSQL runs as another user, who must be able to enter the folder. Only that user can read
    // the cluster in it.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))?;
    let postgres = postgres::start(Place::Exactly(folder.path().to_owned()), Durability::None)?;
    let status = command(&arguments.command, &postgres.url("postgres"));
    postgres.stop()?;
    let code = status?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn command(words: &[String], url: &str) -> anyhow::Result<std::process::ExitStatus> {
    let (program, arguments) = words.split_first().context("a command is required")?;
    block_on(async {
        // Ctrl-C also reaches the command. So this process only waits for it and cleans up.
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .env("DATABASE_URL", url)
            // This variable overrides DATABASE_URL, and may name a database that the command must not touch.
            .env("HAPAX__DATABASE__URL", url)
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        let process = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        loop {
            tokio::select! {
                status = child.wait() => return Ok(status?),
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {
                    if let Some(process) = process {
                        kill_process(process, Signal::TERM)?;
                    }
                }
            }
        }
    })
}
