//! The files of a cluster: its folder, the folder of its socket, its log.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::failed;
use crate::programs::Programs;
use crate::{Error, Notice, Options, Place};

pub const CLUSTER: &str = "postgres";
pub const LOG: &str = "postgres.log";

/// The folder to keep the cluster in. The user that PostgreSQL runs as can reach it.
pub fn choose_folder(options: &Options, account: Option<Account>) -> Result<PathBuf, Error> {
    let (Place::Exactly(folder) | Place::AtOrElsewhere { folder, .. }) = &options.place;
    let Some((account, barrier)) = account.and_then(|account| Some((account, account.barred_from(folder)?))) else {
        return Ok(folder.clone());
    };
    let Place::AtOrElsewhere { elsewhere, .. } = &options.place else {
        return Err(Error::UnreachableFolder { folder: folder.clone(), barrier });
    };
    let unusable = || failed(format!("{} cannot be used", elsewhere.display()));
    if !elsewhere.exists() {
        fs::create_dir(elsewhere).map_err(unusable())?;
        fs::set_permissions(elsewhere, fs::Permissions::from_mode(0o711)).map_err(unusable())?;
    }
    let owner = fs::symlink_metadata(elsewhere).map_err(unusable())?.uid();
    if account.barred_from(elsewhere).is_some() || owner != 0 {
        return Err(Error::UnsafeFolder(elsewhere.clone()));
    }
    (options.notify)(&Notice::Elsewhere { elsewhere: elsewhere.clone(), barrier });
    Ok(elsewhere.clone())
}

/// Creates the cluster in a draft folder and renames it when it is complete. So a kill leaves no incomplete cluster.
pub fn create(programs: &Programs, folder: &Path, account: Option<Account>, options: &Options) -> Result<(), Error> {
    (options.notify)(&Notice::CreatesCluster { folder: folder.to_owned() });
    let draft = folder.join("postgres.half-made");
    let unwritable = || failed(format!("{} cannot be written", draft.display()));
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(unwritable())?;
    }
    fs::create_dir(&draft).map_err(unwritable())?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o700)).map_err(unwritable())?;
    if let Some(account) = account {
        chown(&draft, Some(account.user), Some(account.group)).map_err(unwritable())?;
    }
    let mut command = programs.command("initdb", folder, account);
    command.arg(format!("--username={}", options.role));
    command.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions", "-D"]).arg(&draft);
    let output = command.output().map_err(failed("initdb cannot be started"))?;
    if !output.status.success() {
        return Err(Error::InitdbFailed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    fs::rename(&draft, folder.join(CLUSTER)).map_err(unwritable())
}

/// `None` if the socket can be in the cluster's folder. A socket's path has a maximum length, and PostgreSQL reads the
/// setting as a list of folders, separated by commas.
pub fn short_socket_folder(cluster: &Path, account: Option<Account>) -> Result<Option<tempfile::TempDir>, Error> {
    const SOCKET_PATH_MAX: usize = 107;
    let path = cluster.join(".s.PGSQL.5432.lock");
    let bytes = path.as_os_str().as_encoded_bytes();
    if path.to_str().is_some() && bytes.len() <= SOCKET_PATH_MAX && !bytes.iter().any(|byte| b",\"' \\".contains(byte))
    {
        return Ok(None);
    }
    let unwritable = || failed("a folder for the socket cannot be made in /tmp");
    let folder = tempfile::Builder::new().prefix("private-postgres-").tempdir_in("/tmp").map_err(unwritable())?;
    if let Some(account) = account {
        chown(folder.path(), Some(account.user), Some(account.group)).map_err(unwritable())?;
    }
    Ok(Some(folder))
}

pub fn last_log_lines(folder: &Path) -> String {
    const LINES: usize = 10;
    let log = fs::read_to_string(folder.join(LOG)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
