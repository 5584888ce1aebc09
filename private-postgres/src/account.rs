//! The user that PostgreSQL runs as, because it refuses to run as root.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use crate::Error;

/// The user that PostgreSQL runs as, if it is not the current user.
#[derive(Clone, Copy)]
pub struct Account {
    pub user: u32,
    pub group: u32,
}

impl Account {
    /// `None` if the current user is not root.
    pub fn to_run_as() -> Result<Option<Self>, Error> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let found = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| Some(Self { user: number("-u", name)?, group: number("-g", name)? }));
        found.map(Some).ok_or(Error::NoUser)
    }

    /// The first folder on the path, `path` included, that this user cannot enter.
    pub fn barred_from(self, path: &Path) -> Option<PathBuf> {
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

/// A user or group id from the program `id`, which knows all account databases of the machine.
fn number(flag: &str, name: &str) -> Option<u32> {
    let output = Command::new("id").args([OsStr::new(flag), OsStr::new(name)]).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
