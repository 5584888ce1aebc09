//! The baselines: two HTTP servers of the same framework as Hapax, each in a process of its own.

mod bare;
mod queries;
mod tutorial;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

#[derive(clap::Subcommand)]
pub enum Handler {
    /// Answer every request with the same bytes.
    Bare {
        /// A file with a complete answer, head and body.
        #[arg(long)]
        answer: PathBuf,
    },
    /// Accept jobs with an idempotency key as tutorials do.
    Tutorial {
        #[arg(long)]
        database_url: String,
        /// Database connections.
        #[arg(long)]
        pool: u32,
    },
}

impl Handler {
    /// Prints its address, then serves until it is killed.
    pub fn serve(&self) -> anyhow::Result<()> {
        actix_web::rt::System::new().block_on(async {
            match self {
                Self::Bare { answer } => bare::serve(answer).await,
                Self::Tutorial { database_url, pool } => tutorial::serve(database_url, *pool).await,
            }
        })
    }
}

fn say(address: SocketAddr) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{address}")?)
}

/// A running handler. Killed on drop.
pub struct Serving {
    child: Child,
    pub address: SocketAddr,
}

impl Serving {
    /// Starts this program as the handler with these arguments.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("handler").args(arguments).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("its output is ours")?;
        let mut serving = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        serving.address = line.trim().parse().context("the handler does not serve")?;
        Ok(serving)
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}
