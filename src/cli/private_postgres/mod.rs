//! A private PostgreSQL: its programs are found, its cluster is created and started, and it stops whenever this process
//! ends.
//!
//! It listens only on a Unix socket that nobody but its owner and root can reach, so it needs no password. If the
//! current user is root, PostgreSQL runs as the user `postgres` or `nobody`.

mod account;
mod programs;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

use account::Account;
use programs::Programs;

/// Where the cluster is kept.
pub enum Place {
    /// In this folder, otherwise fail.
    Exactly(PathBuf),
    /// In this folder, or in another one if the user that PostgreSQL runs as cannot reach it.
    AtOrElsewhere(PathBuf),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// PostgreSQL's defaults.
    Full,
    /// For temporary data: nothing waits for the disk.
    None,
}

/// A running PostgreSQL. It stops when this is dropped or when this process is killed.
pub struct PrivatePostgres {
    child: Child,
    socket: PathBuf,
    /// A separate folder for the socket, if the cluster's path is not suitable for one.
    short: Option<tempfile::TempDir>,
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
    pub fn start(place: &Place, durability: Durability) -> anyhow::Result<Self> {
        let account = Account::to_run_as()?;
        let folder = cluster_folder(place, account)?;
        let programs = Programs::find(&folder)?;
        if let Some(unreachable) = account.and_then(|account| account.barred_from(&programs.folder)) {
            bail!("the user that PostgreSQL runs as cannot enter {}, where its programs are", unreachable.display());
        }
        let cluster = folder.join(CLUSTER);
        if !cluster.exists() {
            make_cluster(&programs, &folder, account)?;
        }
        let short = short_socket_folder(&cluster, account)?;
        let socket = short.as_ref().map_or(cluster.as_path(), tempfile::TempDir::path).to_owned();
        let began = Instant::now();
        loop {
            // Checked before the start: a previous PostgreSQL that makes ours fail may have ended by the time we look.
            let occupied = cluster.join("postmaster.pid").exists();
            let child = programs.serve(&folder, &socket, account, durability)?;
            let mut postgres = Self { child, socket: socket.clone(), short: None };
            if postgres.becomes_ready(&cluster)? {
                postgres.short = short;
                return Ok(postgres);
            }
            if !occupied || began.elapsed() > PREDECESSOR_DEADLINE {
                bail!("PostgreSQL does not start; the last lines of {}:\n{}", LOG, log_tail(&folder));
            }
            std::thread::sleep(POLL * 10);
        }
    }

    /// Waits until PostgreSQL ends unexpectedly.
    ///
    /// # Errors
    /// Always, because the caller cannot continue without it.
    pub async fn ended<T>(&mut self) -> anyhow::Result<T> {
        const LOOK: Duration = Duration::from_millis(500);
        while self.child.try_wait()?.is_none() {
            tokio::time::sleep(LOOK).await;
        }
        bail!("PostgreSQL has ended unexpectedly; see {} in its folder", LOG);
    }

    /// The URL of one of its databases, for libpq and sqlx.
    pub fn url(&self, database: &str) -> String {
        /// All but the unreserved characters (RFC 3986) and the slash, which a query may contain.
        const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
        let host = percent_encode(self.socket.as_os_str().as_encoded_bytes(), ENCODED);
        // Every part is explicit, so that environment variables such as PGPORT and PGSSLMODE have no effect.
        format!("postgres://postgres@localhost:5432/{database}?host={host}&sslmode=disable")
    }

    /// Ends all sessions, writes everything to disk and stops.
    ///
    /// # Errors
    /// If it cannot be stopped.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end(&FAST)
    }

    /// Stops immediately, as in a crash. Nothing is written to disk, and the next start has to recover.
    ///
    /// # Errors
    /// If it cannot be stopped.
    pub fn stop_immediately(mut self) -> anyhow::Result<()> {
        self.end(&FAST[1..])
    }

    /// Waits until PostgreSQL is ready. Returns `false` if it has ended instead.
    fn becomes_ready(&mut self, cluster: &Path) -> anyhow::Result<bool> {
        let began = Instant::now();
        let own_id = self.child.id().to_string();
        while began.elapsed() < START_DEADLINE {
            if self.child.try_wait()?.is_some() {
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
        bail!("PostgreSQL is not ready after {} s", START_DEADLINE.as_secs());
    }

    fn end(&mut self, signals: &[Signal]) -> anyhow::Result<()> {
        for signal in signals.iter().copied() {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            let _gone_already = kill_process(Pid::from_child(&self.child), signal);
            let began = Instant::now();
            while began.elapsed() < STOP_DEADLINE {
                if self.child.try_wait()?.is_some() {
                    return Ok(());
                }
                std::thread::sleep(POLL);
            }
        }
        bail!("PostgreSQL does not stop");
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if let Err(error) = self.end(&FAST) {
            eprintln!("hapax: {}", crate::cli::explain(&error));
        }
    }
}

const CLUSTER: &str = "postgres";
const LOG: &str = "postgres.log";

/// Creates the cluster in a draft folder and renames it when it is complete. So a kill leaves no incomplete cluster.
fn make_cluster(programs: &Programs, folder: &Path, account: Option<Account>) -> anyhow::Result<()> {
    eprintln!("hapax: creating a PostgreSQL database in {}", folder.display());
    let draft = folder.join("postgres.half-made");
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    fs::create_dir(&draft)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o700))?;
    if let Some(account) = account {
        chown(&draft, Some(account.user), Some(account.group))?;
    }
    let mut command = programs.command("initdb", folder, account);
    command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions", "-D"]);
    let output = command.arg(&draft).output().context("initdb cannot be started")?;
    if !output.status.success() {
        bail!("initdb failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(fs::rename(&draft, folder.join(CLUSTER))?)
}

/// The folder of the cluster. The user that PostgreSQL runs as can reach it.
fn cluster_folder(place: &Place, account: Option<Account>) -> anyhow::Result<PathBuf> {
    let (Place::Exactly(folder) | Place::AtOrElsewhere(folder)) = place;
    let Some((account, barrier)) = account.and_then(|account| Some((account, account.barred_from(folder)?))) else {
        return Ok(folder.clone());
    };
    match place {
        Place::Exactly(folder) => bail!(
            "the user that PostgreSQL runs as (it refuses root) cannot reach {}, because it cannot enter {}; choose \
             another folder",
            folder.display(),
            barrier.display(),
        ),
        Place::AtOrElsewhere(folder) => {
            let digest = hex::encode(&Sha256::digest(folder.as_os_str().as_encoded_bytes())[..8]);
            let elsewhere = PathBuf::from(format!("/var/tmp/hapax-{digest}"));
            if !elsewhere.exists() {
                fs::create_dir(&elsewhere)?;
                fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o711))?;
            }
            if account.barred_from(&elsewhere).is_some() || fs::symlink_metadata(&elsewhere)?.uid() != 0 {
                bail!("{} is not owned by root, or PostgreSQL's user cannot enter it", elsewhere.display());
            }
            eprintln!(
                "hapax: PostgreSQL's data is in {}, because the user that PostgreSQL runs as cannot enter {}",
                elsewhere.display(),
                barrier.display(),
            );
            Ok(elsewhere)
        }
    }
}

/// `None` if the socket can be in the cluster's folder. A socket's path has a maximum length, and PostgreSQL reads the
/// setting as a list of folders, separated by commas.
fn short_socket_folder(cluster: &Path, account: Option<Account>) -> anyhow::Result<Option<tempfile::TempDir>> {
    const SOCKET_PATH_MAX: usize = 107;
    let path = cluster.join(".s.PGSQL.5432.lock");
    let bytes = path.as_os_str().as_encoded_bytes();
    if path.to_str().is_some() && bytes.len() <= SOCKET_PATH_MAX && !bytes.iter().any(|byte| b",\"' \\".contains(byte))
    {
        return Ok(None);
    }
    let folder = tempfile::Builder::new().prefix("hapax-").tempdir_in("/tmp")?;
    if let Some(account) = account {
        chown(folder.path(), Some(account.user), Some(account.group))?;
    }
    Ok(Some(folder))
}

fn log_tail(folder: &Path) -> String {
    const LINES: usize = 10;
    let log = fs::read_to_string(folder.join(LOG)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
