//! A server under load: `hapax serve` as in production, on a database of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tempfile::TempPath;

use crate::postgres::Postgres;

/// A Hapax binary.
#[derive(Clone)]
pub struct Release {
    binary: PathBuf,
    /// Settings of all its servers. They override [`SETTINGS`].
    settings: Vec<(String, String)>,
}

/// A running server. Killed on drop.
pub struct Replica {
    child: Child,
    log: TempPath,
    pub address: SocketAddr,
}

/// Differences from the defaults: one token sends all requests, and the log is parsed by a program.
pub const SETTINGS: [(&str, &str); 7] = [
    ("HAPAX__LOG__FORMAT", "json"),
    ("HAPAX__QUOTA__REQUESTS_PER_SECOND", "1000000"),
    ("HAPAX__QUOTA__REQUESTS_BURST", "1000000"),
    ("HAPAX__QUOTA__CREATIONS_PER_SECOND", "1000000"),
    ("HAPAX__QUOTA__CREATIONS_BURST", "1000000"),
    ("HAPAX__QUOTA__REPLAYS_PER_SECOND", "1000000"),
    ("HAPAX__QUOTA__REPLAYS_BURST", "1000000"),
];

const START_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

impl Release {
    pub fn new(binary: &Path, settings: &[(String, String)]) -> anyhow::Result<Self> {
        let binary = binary.canonicalize().with_context(|| format!("there is no {}", binary.display()))?;
        Ok(Self { binary, settings: settings.to_vec() })
    }

    /// Migrates a new database and creates a token with these scopes.
    pub fn prepare(&self, postgres: &Postgres, database: &str, scopes: &str) -> anyhow::Result<String> {
        let url = postgres.url(database);
        self.output(postgres, &["migrate"], &url)?;
        let token = self.output(
            postgres,
            &["token", "create", "--create-tenant", "--tenant", "bench", "--scope", scopes],
            &url,
        )?;
        Ok(token.trim().to_owned())
    }

    /// Starts a server. `settings` override all others.
    pub fn serve(&self, postgres: &Postgres, database: &str, settings: &[(&str, &str)]) -> anyhow::Result<Replica> {
        let log = tempfile::Builder::new().prefix("hapax-").suffix(".log").tempfile_in(postgres.folder())?;
        let mut command = self.command(postgres, &postgres.url(database));
        command.args(["serve", "--bind", "127.0.0.1:0"]).env("HAPAX__METRICS__BIND", "127.0.0.1:0");
        command.envs(self.settings.iter().cloned()).envs(settings.iter().copied()).stdout(log.reopen()?);
        let child = command.spawn().with_context(|| format!("{} cannot be started", self.binary.display()))?;
        let log = log.into_temp_path();
        let mut replica = Replica { child, log, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        replica.address = replica.listens_on()?;
        Ok(replica)
    }

    /// The default limit of the replay cache; `None` for a release without one.
    pub fn replay_cache_bytes(&self, postgres: &Postgres) -> anyhow::Result<Option<u64>> {
        let configuration = self.output(postgres, &["config"], &postgres.url("postgres"))?;
        let line = configuration.lines().find_map(|line| line.strip_prefix("replay_cache_bytes = "));
        Ok(line.map(str::parse).transpose()?)
    }

    fn output(&self, postgres: &Postgres, arguments: &[&str], url: &str) -> anyhow::Result<String> {
        let output = self.command(postgres, url).args(arguments).output()?;
        if !output.status.success() {
            bail!("hapax {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A command with only these environment variables.
    fn command(&self, postgres: &Postgres, url: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.env_clear().envs(SETTINGS).env("DATABASE_URL", url);
        command.current_dir(postgres.folder()).stdin(Stdio::null());
        command
    }
}

impl Replica {
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// The first warnings and errors of its log, for error messages.
    pub fn complaints(&self) -> String {
        const ENOUGH: usize = 5;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let grave = |line: &&str| [r#""level":"WARN""#, r#""level":"ERROR""#].iter().any(|level| line.contains(level));
        log.lines().filter(grave).take(ENOUGH).collect::<Vec<_>>().join("\n")
    }

    /// Waits for the log line that has the address.
    fn listens_on(&mut self) -> anyhow::Result<SocketAddr> {
        let began = Instant::now();
        while began.elapsed() < START_DEADLINE {
            let log = fs::read_to_string(&self.log)?;
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let serving = lines.into_iter().find(|line| line["message"] == "serving");
            if let Some(address) = serving.as_ref().and_then(|line| line["api"].as_str()) {
                return Ok(address.parse()?);
            }
            if self.child.try_wait()?.is_some() {
                bail!("the server has ended: {log}");
            }
            std::thread::sleep(POLL);
        }
        bail!("the server does not serve after {} s", START_DEADLINE.as_secs());
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // All answers have arrived and their jobs are committed, so a kill loses nothing.
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}
