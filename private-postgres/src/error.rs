use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why PostgreSQL does not run. Every text is for a person, and says what to do where there is something to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    #[error("PostgreSQL's programs are not on this machine: install Debian's package `postgresql`")]
    NoPrograms,
    #[error(
        "the database in {} was created by PostgreSQL {wanted}, but only {} is installed: install that version, or move \
         the folder away",
        .folder.display(),
        .found.join(", ")
    )]
    OtherVersion { folder: PathBuf, wanted: String, found: Vec<String> },
    #[error("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`")]
    NoUser,
    #[error("the user that PostgreSQL runs as cannot enter {}, where its programs are", .0.display())]
    UnreachablePrograms(PathBuf),
    #[error(
        "the user that PostgreSQL runs as (it refuses root) cannot reach {}, because it cannot enter {}; choose another \
         folder",
        .folder.display(),
        .barrier.display()
    )]
    UnreachableFolder { folder: PathBuf, barrier: PathBuf },
    /// Another user could have prepared the second folder of [`Place::AtOrElsewhere`](crate::Place).
    #[error("{} is not owned by root, or PostgreSQL's user cannot enter it", .0.display())]
    UnsafeFolder(PathBuf),
    #[error("initdb failed:\n{0}")]
    InitdbFailed(String),
    #[error("PostgreSQL does not start; the last lines of {}:\n{last_lines}", .log.display())]
    DoesNotStart { log: PathBuf, last_lines: String },
    #[error("PostgreSQL is not ready after {seconds} s")]
    NotReady { seconds: u64 },
    #[error("PostgreSQL has ended unexpectedly; see {}", .log.display())]
    Ended { log: PathBuf },
    #[error("PostgreSQL does not stop")]
    DoesNotStop,
    #[error("{action}")]
    Io { action: String, source: io::Error },
}

/// For `map_err`: an error of the operating system, with what failed.
pub fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    |source| Error::Io { action: action.into(), source }
}
