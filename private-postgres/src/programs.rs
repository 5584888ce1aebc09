//! Finds PostgreSQL's programs and starts them.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::OFlags;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal, setsid};

use crate::account::Account;
use crate::cluster::{CLUSTER, LOG};
use crate::error::failed;
use crate::{Durability, Error};

/// A folder with PostgreSQL's programs, all of one version.
pub struct Programs {
    pub folder: PathBuf,
}

impl Programs {
    /// Tries the preferred folder, then the folder that `pg_config` names, then Debian's packages, newest first. If there
    /// is a cluster in `folder`, the programs must be of the version that created it.
    pub fn find(preferred: Option<&Path>, folder: &Path) -> Result<Self, Error> {
        let wanted = fs::read_to_string(folder.join(CLUSTER).join("PG_VERSION")).ok();
        let wanted = wanted.as_deref().map(str::trim);
        let mut found = Vec::new();
        for candidate in candidates(preferred) {
            let Ok(candidate) = candidate.canonicalize() else { continue };
            let Some(version) = version_of(&candidate) else { continue };
            if wanted.is_none_or(|wanted| version == wanted) {
                return Ok(Self { folder: candidate });
            }
            found.push(version);
        }
        match wanted {
            Some(wanted) if !found.is_empty() => {
                Err(Error::OtherVersion { folder: folder.to_owned(), wanted: wanted.to_owned(), found })
            }
            _ => Err(Error::NoPrograms),
        }
    }

    pub fn serve(
        &self,
        folder: &Path,
        socket: &Path,
        account: Option<Account>,
        durability: Durability,
    ) -> Result<Child, Error> {
        // In a folder that others can write to, a symbolic link could make root write to any file.
        let no_link = OFlags::NOFOLLOW.bits().cast_signed();
        let path = folder.join(LOG);
        let unwritable = || failed(format!("{} cannot be written", path.display()));
        let log = File::options().create(true).append(true).custom_flags(no_link).open(&path).map_err(unwritable())?;
        let errors = log.try_clone().map_err(unwritable())?;
        let mut command = self.command("postgres", folder, account);
        command.arg("-D").arg(folder.join(CLUSTER)).stdout(log).stderr(errors);
        command.args([
            "-c",
            "listen_addresses=",
            "-c",
            "port=5432",
            "-c",
            "unix_socket_permissions=0700",
            "-c",
            "max_connections=200",
        ]);
        command.arg("-c").arg(format!("unix_socket_directories={}", socket.display()));
        if durability == Durability::None {
            command.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        }
        command.spawn().map_err(failed("PostgreSQL cannot be started"))
    }

    /// A program that runs as the right user and gets SIGINT when the thread that started it ends.
    #[expect(unsafe_code, reason = "code between fork and exec needs `pre_exec`")]
    pub fn command(&self, program: &str, folder: &Path, account: Option<Account>) -> Command {
        let mut command = Command::new(self.folder.join(program));
        command.current_dir(folder).stdin(Stdio::null()).env("LC_ALL", "C");
        if let Some(account) = account {
            command.uid(account.user).gid(account.group);
        }
        let parent = getpid();
        // SAFETY: The closure makes only system calls that are safe between fork and exec, and allocates nothing.
        //
        // The signal is set after the change of user, because that change clears it. The parent is checked again,
        // because it may have died before the signal was set. The new session keeps the terminal's Ctrl-C away.
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

fn candidates(preferred: Option<&Path>) -> Vec<PathBuf> {
    let asked = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().ok();
    let asked = asked.and_then(|output| String::from_utf8(output.stdout).ok()).map(|line| line.trim().into());
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    debian.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let debian = debian.into_iter().map(|(_, folder)| folder);
    preferred.map(Path::to_owned).into_iter().chain(asked).chain(debian).collect()
}

/// The major version of the programs in a folder, such as `15`. `None` if the folder cannot run a cluster.
fn version_of(folder: &Path) -> Option<String> {
    if !folder.join("initdb").exists() {
        return None;
    }
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    Some(version.split(['.', 'b', 'r', 'd']).next()?.to_owned())
}
