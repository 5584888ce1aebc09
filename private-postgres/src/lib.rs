//! A PostgreSQL for one process, for development and tests.
//!
//! [`PrivatePostgres::start`] finds the installed programs, creates a cluster if there is none, and starts it. What the
//! caller can rely on:
//!
//! - PostgreSQL ends when the thread that started it ends, even if the process is killed. Linux only.
//! - A later start on the same folder finds all committed data. A kill at any moment leaves no incomplete cluster.
//! - It listens only on a Unix socket that nobody but its owner and root can reach, so it needs no password.
//! - If the current user is root, PostgreSQL runs as the user `postgres` or `nobody`, because it refuses root.

mod account;
mod cluster;
mod error;
mod options;
mod programs;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use options::{Durability, Notice, Options, Place};

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::process::{Pid, Signal, kill_process};

use account::Account;
use cluster::{CLUSTER, LOG};
use error::failed;
use programs::Programs;

/// A running PostgreSQL. It stops when this is dropped or when this process is killed.
#[derive(Debug)]
pub struct PrivatePostgres {
    child: Child,
    role: String,
    log: PathBuf,
    socket: PathBuf,
    /// A separate folder for the socket, if the cluster's path is not suitable for one.
    short: Option<tempfile::TempDir>,
    notify: fn(&Notice),
}

/// Long, because crash recovery can take some time.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long a previous PostgreSQL, which stops because its parent has ended, may take to release the cluster.
const PREDECESSOR_DEADLINE: Duration = Duration::from_secs(20);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// PostgreSQL's fast shutdown, then its immediate shutdown, then a kill.
const FAST: [Signal; 3] = [Signal::INT, Signal::QUIT, Signal::KILL];

impl PrivatePostgres {
    /// Creates the cluster if it does not exist, and starts PostgreSQL on it. PostgreSQL stops when the calling thread
    /// ends.
    ///
    /// # Errors
    /// With a text for the user.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let account = Account::to_run_as()?;
        let folder = cluster::choose_folder(options, account)?;
        let programs = Programs::find(options.programs.as_deref(), &folder)?;
        if let Some(unreachable) = account.and_then(|account| account.barred_from(&programs.folder)) {
            return Err(Error::UnreachablePrograms(unreachable));
        }
        let cluster = folder.join(CLUSTER);
        if !cluster.exists() {
            cluster::create(&programs, &folder, account, options)?;
        }
        let short = cluster::short_socket_folder(&cluster, account)?;
        let socket = short.as_ref().map_or(cluster.as_path(), tempfile::TempDir::path).to_owned();
        let log = folder.join(LOG);
        let began = Instant::now();
        loop {
            // Checked before the start: a previous PostgreSQL that makes ours fail may have ended by the time we look.
            let occupied = cluster.join("postmaster.pid").exists();
            let child = programs.serve(&folder, &socket, account, options.durability)?;
            let mut postgres = Self {
                child,
                role: options.role.clone(),
                log: log.clone(),
                socket: socket.clone(),
                short: None,
                notify: options.notify,
            };
            if postgres.becomes_ready(&cluster)? {
                postgres.short = short;
                return Ok(postgres);
            }
            if !occupied || began.elapsed() > PREDECESSOR_DEADLINE {
                return Err(Error::DoesNotStart { log, last_lines: cluster::last_log_lines(&folder) });
            }
            std::thread::sleep(POLL * 10);
        }
    }

    /// Checks that PostgreSQL has not ended unexpectedly.
    ///
    /// # Errors
    /// [`Error::Ended`] if it has.
    pub fn check_running(&mut self) -> Result<(), Error> {
        if self.has_ended()? { Err(Error::Ended { log: self.log.clone() }) } else { Ok(()) }
    }

    /// The URL of one of its databases, for libpq and sqlx. A new cluster has the database `postgres`.
    pub fn url(&self, database: &str) -> String {
        let host = percent_encode(self.socket.as_os_str().as_encoded_bytes(), ENCODED);
        let role = percent_encode(self.role.as_bytes(), ENCODED);
        // Every part is explicit, so that environment variables such as PGPORT and PGSSLMODE have no effect.
        format!("postgres://{role}@localhost:5432/{database}?host={host}&sslmode=disable")
    }

    /// Ends all sessions, writes everything to disk and stops.
    ///
    /// # Errors
    /// If it cannot be stopped.
    pub fn stop(mut self) -> Result<(), Error> {
        self.end(&FAST)
    }

    /// Stops immediately, as in a crash. Nothing is written to disk, and the next start has to recover.
    ///
    /// # Errors
    /// If it cannot be stopped.
    pub fn stop_immediately(mut self) -> Result<(), Error> {
        self.end(&FAST[1..])
    }

    /// Waits until PostgreSQL is ready. Returns `false` if it has ended instead.
    fn becomes_ready(&mut self, cluster: &Path) -> Result<bool, Error> {
        let began = Instant::now();
        let own_id = self.child.id().to_string();
        while began.elapsed() < START_DEADLINE {
            if self.has_ended()? {
                return Ok(false);
            }
            // The eighth line of the file is the state. The first line is the process id, so it shows whether the file
            // is from this server.
            let file = fs::read_to_string(cluster.join("postmaster.pid")).unwrap_or_default();
            let lines: Vec<&str> = file.lines().map(str::trim).collect();
            if lines.first() == Some(&own_id.as_str()) && lines.get(7) == Some(&"ready") {
                return Ok(true);
            }
            std::thread::sleep(POLL);
        }
        Err(Error::NotReady { seconds: START_DEADLINE.as_secs() })
    }

    fn end(&mut self, signals: &[Signal]) -> Result<(), Error> {
        for signal in signals.iter().copied() {
            if self.has_ended()? {
                return Ok(());
            }
            let _gone_already = kill_process(Pid::from_child(&self.child), signal);
            let began = Instant::now();
            while began.elapsed() < STOP_DEADLINE {
                if self.has_ended()? {
                    return Ok(());
                }
                std::thread::sleep(POLL);
            }
        }
        Err(Error::DoesNotStop)
    }

    fn has_ended(&mut self) -> Result<bool, Error> {
        let status = self.child.try_wait().map_err(failed("PostgreSQL's process cannot be observed"))?;
        Ok(status.is_some())
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if let Err(error) = self.end(&FAST) {
            (self.notify)(&Notice::DoesNotStop(error));
        }
    }
}

/// All but the unreserved characters (RFC 3986) and the slash, which a query may contain.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
