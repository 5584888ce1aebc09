use std::fmt;
use std::path::PathBuf;

use crate::Error;

/// What to start, and where.
#[derive(Clone, Debug)]
pub struct Options {
    pub place: Place,
    pub durability: Durability,
    /// The superuser of a new cluster. The URLs name it, too.
    pub role: String,
    /// A folder with `postgres` and `initdb`, to prefer to those that are installed.
    pub programs: Option<PathBuf>,
    /// Called with what a person may want to know.
    pub notify: fn(&Notice),
}

/// The folder that holds the cluster (`postgres`) and its log (`postgres.log`).
#[derive(Clone, Debug)]
pub enum Place {
    /// This folder, which exists. If the user that PostgreSQL runs as cannot reach it, the start fails.
    Exactly(PathBuf),
    /// `folder`, which exists, or `elsewhere` if the user that PostgreSQL runs as cannot reach `folder`. `elsewhere` is
    /// created if it does not exist, and must belong to root.
    AtOrElsewhere { folder: PathBuf, elsewhere: PathBuf },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// PostgreSQL's defaults.
    Full,
    /// For temporary data: nothing waits for the disk.
    None,
}

/// What a person may want to know. Its text has no full stop, so that a program can put its name before it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A cluster is created, which takes some seconds.
    CreatesCluster { folder: PathBuf },
    /// The cluster is in the second folder of [`Place::AtOrElsewhere`].
    Elsewhere { elsewhere: PathBuf, barrier: PathBuf },
    /// A PostgreSQL that was dropped could not be stopped.
    DoesNotStop(Error),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreatesCluster { folder } => write!(f, "creating a PostgreSQL database in {}", folder.display()),
            Self::Elsewhere { elsewhere, barrier } => write!(
                f,
                "PostgreSQL's data is in {}, because the user that PostgreSQL runs as cannot enter {}",
                elsewhere.display(),
                barrier.display(),
            ),
            Self::DoesNotStop(error) => error.fmt(f),
        }
    }
}
