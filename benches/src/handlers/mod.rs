//! What Hapax is held against: two HTTP servers of the same framework, each a process of its own, like Hapax.

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
    /// Answers everything with the same bytes.
    Bare {
        /// A whole answer, head and body.
        #[arg(long)]
        answer: PathBuf,
    },
    /// Takes jobs under a key as tutorials do.
    Tutorial {
        #[arg(long)]
        database_url: String,
        /// Connections to the database.
        #[arg(long)]
        pool: u32,
    },
}

impl Handler {
    /// Serves until it is killed, and says first on which address.
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

/// A handler that serves. Dropped, it is killed.
pub struct Serving {
    child: Child,
    pub address: SocketAddr,
}

impl Serving {
    /// Starts this very program as the handler that these arguments ask for.
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
