//! A PostgreSQL of our own: found, made, started, and stopped with us, whatever ends us.
//!
//! It listens on a Unix socket only, which nobody but its owner (and root) can reach, so it asks for no password. As
//! root, whom PostgreSQL refuses to run as, it becomes the user `postgres`, or `nobody`.

mod account;
mod programs;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

use account::Account;
use programs::Programs;

/// Where the cluster is kept.
pub enum Place {
    /// In this folder, or not at all.
    Exactly(PathBuf),
    /// In this folder, or, where the user that PostgreSQL runs as cannot reach it, in one that it can.
    AtOrElsewhere(PathBuf),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// As PostgreSQL comes.
    Full,
    /// For data that is thrown away: nothing waits for the disk.
    None,
}

/// A running PostgreSQL. Dropped, it is stopped; if this process is killed, it stops by itself.
pub struct PrivatePostgres {
    child: Child,
    socket: PathBuf,
    /// A folder for the socket alone, where the cluster's path is no place for one.
    short: Option<tempfile::TempDir>,
}

/// Crash recovery after a kill can take its time.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long a predecessor, told to stop by its parent's end, may take to leave the cluster.
const PREDECESSOR_DEADLINE: Duration = Duration::from_secs(20);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// What PostgreSQL calls a fast shutdown, then an immediate one.
const FAST: [Signal; 3] = [Signal::INT, Signal::QUIT, Signal::KILL];

impl PrivatePostgres {
    /// Makes the cluster if there is none, and starts PostgreSQL on it. It lives no longer than the calling thread.
    ///
    /// # Errors
    /// In words for the person at the terminal.
    pub fn start(place: &Place, durability: Durability) -> anyhow::Result<Self> {
        let account = Account::to_run_as()?;
        let folder = cluster_folder(place, account)?;
        let programs = Programs::find(&folder)?;
        if let Some(unreachable) = account.and_then(|account| account.barred_from(&programs.folder)) {
            bail!("PostgreSQL's programs are behind {}, which they cannot be run from", unreachable.display());
        }
        let cluster = folder.join(CLUSTER);
        if !cluster.exists() {
            make_cluster(&programs, &folder, account)?;
        }
        let short = short_socket_folder(&cluster, account)?;
        let socket = short.as_ref().map_or(cluster.as_path(), tempfile::TempDir::path).to_owned();
        let began = Instant::now();
        loop {
            // A predecessor that is on its way out may be gone by the time that ours has failed because of it.
            let occupied = cluster.join("postmaster.pid").exists();
            let child = programs.serve(&folder, &socket, account, durability)?;
            let mut postgres = Self { child, socket: socket.clone(), short: None };
            if postgres.becomes_ready(&cluster)? {
                postgres.short = short;
                return Ok(postgres);
            }
            if !occupied || began.elapsed() > PREDECESSOR_DEADLINE {
                bail!("PostgreSQL does not start; the end of {}:\n{}", LOG, log_tail(&folder));
            }
            std::thread::sleep(POLL * 10);
        }
    }

    /// Returns when it has ended by itself.
    ///
    /// # Errors
    /// Always: that is nothing to go on from.
    pub async fn ended<T>(&mut self) -> anyhow::Result<T> {
        const LOOK: Duration = Duration::from_millis(500);
        while self.child.try_wait()?.is_none() {
            tokio::time::sleep(LOOK).await;
        }
        bail!("PostgreSQL has ended; {} in its folder says why", LOG);
    }

    /// The URL of one of its databases, fit for libpq as for sqlx.
    pub fn url(&self, database: &str) -> String {
        let host: String = self.socket.as_os_str().as_encoded_bytes().iter().map(percent_encoded).collect();
        // In full, so that nothing in anybody's environment (PGPORT, PGSSLMODE) has a say.
        format!("postgres://postgres@localhost:5432/{database}?host={host}&sslmode=disable")
    }

    /// Ends all sessions and stops, everything written.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end(&FAST)
    }

    /// Ends at once, as in a crash: nothing is written, and the next start has to recover.
    ///
    /// # Errors
    /// When it could not even be killed.
    pub fn stop_immediately(mut self) -> anyhow::Result<()> {
        self.end(&FAST[1..])
    }

    /// `false` if it has ended instead.
    fn becomes_ready(&mut self, cluster: &Path) -> anyhow::Result<bool> {
        let began = Instant::now();
        let own_id = self.child.id().to_string();
        while began.elapsed() < START_DEADLINE {
            if self.child.try_wait()?.is_some() {
                return Ok(false);
            }
            // The eighth line of the file is the state; the first tells whether the file is this server's.
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

/// Into a draft that is renamed when it is whole, so that a kill in the middle leaves nothing half made.
fn make_cluster(programs: &Programs, folder: &Path, account: Option<Account>) -> anyhow::Result<()> {
    eprintln!("hapax: making a PostgreSQL database in {}", folder.display());
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

/// The folder that the cluster is kept in, made and within reach of the user that PostgreSQL runs as.
fn cluster_folder(place: &Place, account: Option<Account>) -> anyhow::Result<PathBuf> {
    let (Place::Exactly(folder) | Place::AtOrElsewhere(folder)) = place;
    let Some((account, barrier)) = account.and_then(|account| Some((account, account.barred_from(folder)?))) else {
        return Ok(folder.clone());
    };
    match place {
        Place::Exactly(folder) => bail!(
            "{} is behind {}, where the user that PostgreSQL runs as (root is not allowed to) may not go; choose \
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
                bail!("{} is not ours", elsewhere.display());
            }
            eprintln!(
                "hapax: keeping PostgreSQL's data in {}, since its user may not go through {}",
                elsewhere.display(),
                barrier.display(),
            );
            Ok(elsewhere)
        }
    }
}

/// `None` where the cluster itself can hold the socket: a socket's path is short, and PostgreSQL takes a list of
/// folders, separated by commas.
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

/// RFC 3986, leaving the slash, which a query may hold.
fn percent_encoded(byte: &u8) -> String {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}
