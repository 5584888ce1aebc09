//! A PostgreSQL of our own: found, made, started, and stopped with us, whatever ends us.
//!
//! It listens on a Unix socket only, which nobody but its owner (and root) can reach, so it asks for no password. As
//! root, whom PostgreSQL refuses to run as, it becomes the user `postgres`, or `nobody`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, geteuid, getpid, getppid, kill_process, set_parent_process_death_signal, setsid};
use sha2::{Digest, Sha256};

use crate::configuration;

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

    /// The URL of one of its databases, fit for libpq as for sqlx.
    pub fn url(&self, database: &str) -> String {
        let host: String = self.socket.as_os_str().as_encoded_bytes().iter().map(percent_encoded).collect();
        format!("postgres://postgres@localhost/{database}?host={host}")
    }

    /// Ends all sessions and stops, everything written.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end()
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

    fn end(&mut self) -> anyhow::Result<()> {
        for signal in [Signal::INT, Signal::QUIT, Signal::KILL] {
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
        if let Err(error) = self.end() {
            eprintln!("hapax: {error:#}");
        }
    }
}

const CLUSTER: &str = "postgres";
const LOG: &str = "postgres.log";

/// PostgreSQL's programs, all of one version.
struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// HAPAX_POSTGRES_BIN, then what `pg_config` says, then the newest of Debian's; of the version that the cluster
    /// was made with, where there is one.
    fn find(folder: &Path) -> anyhow::Result<Self> {
        let wanted = fs::read_to_string(folder.join(CLUSTER).join("PG_VERSION")).ok();
        let wanted = wanted.as_deref().map(str::trim);
        let mut found = Vec::new();
        for folder in Self::candidates() {
            let Some(version) = version_of(&folder) else { continue };
            if wanted.is_none_or(|wanted| version == wanted) {
                return Ok(Self { folder });
            }
            found.push(version);
        }
        match wanted {
            Some(wanted) if !found.is_empty() => bail!(
                "the database in {} was made by PostgreSQL {wanted}, and here is only {}: install that version, or \
                 move the folder away",
                folder.display(),
                found.join(", "),
            ),
            _ => bail!(
                "PostgreSQL's programs are not on this machine: install Debian's package `postgresql`, or set \
                 HAPAX_POSTGRES_BIN to the folder that holds `postgres` and `initdb`"
            ),
        }
    }

    fn candidates() -> Vec<PathBuf> {
        let set = configuration::variable("HAPAX_POSTGRES_BIN").map(PathBuf::from);
        let asked = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().ok();
        let asked = asked.and_then(|output| String::from_utf8(output.stdout).ok()).map(|line| line.trim().into());
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut debian: Vec<(u32, PathBuf)> = versions
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .collect();
        debian.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
        set.into_iter().chain(asked).chain(debian.into_iter().map(|(_, folder)| folder)).collect()
    }

    fn serve(
        &self,
        folder: &Path,
        socket: &Path,
        account: Option<Account>,
        durability: Durability,
    ) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(folder.join(LOG))?;
        let mut command = self.command("postgres", folder, account);
        command.arg("-D").arg(folder.join(CLUSTER)).stdout(log.try_clone()?).stderr(log);
        command.args(["-c", "listen_addresses=", "-c", "unix_socket_permissions=0700", "-c", "max_connections=200"]);
        command.arg("-c").arg(format!("unix_socket_directories={}", socket.display()));
        if durability == Durability::None {
            command.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        }
        command.spawn().context("PostgreSQL cannot be started")
    }

    /// A program that runs as the right user, and is told to stop when the thread that started it ends.
    #[expect(unsafe_code, reason = "what happens between fork and exec cannot be said otherwise")]
    fn command(&self, program: &str, folder: &Path, account: Option<Account>) -> Command {
        let mut command = Command::new(self.folder.join(program));
        command.current_dir(folder).stdin(Stdio::null()).env("LC_ALL", "C");
        if let Some(account) = account {
            command.uid(account.user).gid(account.group);
        }
        let parent = getpid();
        // SAFETY: only system calls that are safe between fork and exec; nothing is allocated. The signal is asked
        // for after the change of user, which would clear it, and the parent is looked at again in case it died
        // before. A session of its own keeps the terminal's Ctrl-C away.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::INT))?;
                if getppid() != Some(parent) {
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                }
                setsid()?;
                Ok(())
            });
        }
        command
    }
}

/// The major version of the programs in a folder, such as `15`; `None` if there are none to run a cluster with.
fn version_of(folder: &Path) -> Option<String> {
    if !folder.join("initdb").exists() {
        return None;
    }
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    Some(version.split(['.', 'b', 'r', 'd']).next()?.to_owned())
}

/// Into a draft that is renamed when it is whole, so that a kill in the middle leaves nothing half made.
fn make_cluster(programs: &Programs, folder: &Path, account: Option<Account>) -> anyhow::Result<()> {
    eprintln!("hapax: making a PostgreSQL database in {}", folder.display());
    let draft = folder.join("postgres.new");
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
    if bytes.len() <= SOCKET_PATH_MAX && !bytes.iter().any(|byte| b",\"' \\".contains(byte)) {
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

/// The user that PostgreSQL runs as, where it is not ours.
#[derive(Clone, Copy)]
struct Account {
    user: u32,
    group: u32,
}

impl Account {
    /// `None` unless we are root.
    fn to_run_as() -> anyhow::Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let found = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| Some(Self { user: number("-u", name)?, group: number("-g", name)? }));
        let account = found.context("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`")?;
        Ok(Some(account))
    }

    /// The first folder on the way to `path`, itself included, that this user may not pass.
    fn barred_from(self, path: &Path) -> Option<PathBuf> {
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        let barred = way.into_iter().find(|folder| {
            let Ok(metadata) = fs::metadata(folder) else { return false };
            let passable = match metadata.mode() {
                mode if metadata.uid() == self.user => mode & 0o100,
                mode if metadata.gid() == self.group => mode & 0o010,
                mode => mode & 0o001,
            };
            passable == 0
        });
        barred.map(Path::to_owned)
    }
}

/// Asked of `id`, which knows every source of accounts that this machine has.
fn number(flag: &str, name: &str) -> Option<u32> {
    let output = Command::new("id").args([OsStr::new(flag), OsStr::new(name)]).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// RFC 3986, leaving the slash, which a query may hold.
fn percent_encoded(byte: &u8) -> String {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}
