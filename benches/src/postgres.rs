//! The PostgreSQL under test: private and durable, with default settings, in a temporary folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use private_postgres::{Durability, Options, Place, PrivatePostgres};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::account;

pub struct Postgres {
    server: PrivatePostgres,
    runtime: tokio::runtime::Runtime,
    postmaster: u32,
    folder: tempfile::TempDir,
    /// Set by an interrupt. Checked between statements and by the load, whose waiting a signal ends, so that everything
    /// that was started is stopped and removed.
    interrupted: Arc<AtomicBool>,
}

impl Postgres {
    /// Starts PostgreSQL in a new folder within `place`, which should be on a disk and not in memory.
    pub fn start(place: &Path) -> anyhow::Result<Self> {
        let interrupted = on_interrupt()?;
        let folder = tempfile::Builder::new().prefix("hapax-bench-").tempdir_in(place)?;
        // As root, PostgreSQL's user must be able to enter the folder. Its content is private to that user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
        let server = PrivatePostgres::start(&Options {
            place: Place::Exactly(folder.path().to_owned()),
            durability: Durability::Full,
            role: "postgres".to_owned(),
            programs: std::env::var_os("HAPAX_POSTGRES_BIN").map(PathBuf::from),
            notify: |notice| eprintln!("hapax-bench: {notice}"),
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let postmaster = runtime.block_on(find_postmaster(&server.url("postgres")))?;
        Ok(Self { server, runtime, postmaster, folder, interrupted })
    }

    pub fn postmaster(&self) -> u32 {
        self.postmaster
    }

    pub fn url(&self, database: &str) -> String {
        self.server.url(database)
    }

    /// The folder of the databases. Other temporary files may go there, too.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Free space on its disk.
    pub fn free_bytes(&self) -> anyhow::Result<u64> {
        let disk = rustix::fs::statvfs(self.folder.path())?;
        Ok(disk.f_bavail * disk.f_frsize)
    }

    /// One of PostgreSQL's own programs, of the same version.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        Ok(fs::read_link(format!("/proc/{}/exe", self.postmaster))?.with_file_name(name))
    }

    /// Replaces a database by an empty one, and flushes everything to the disk.
    pub fn make_database(&self, name: &str) -> anyhow::Result<()> {
        self.run("postgres", &format!("drop database if exists {name} with (force)"))?;
        self.run("postgres", &format!("create database {name}"))?;
        self.run("postgres", "checkpoint")
    }

    /// Runs statements without a result, separated by semicolons.
    pub fn run(&self, database: &str, sql: &str) -> anyhow::Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.server.url(database)).await?;
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
            Ok(connection.close().await?)
        })
    }

    /// Queries one value. Finds the tables of Hapax without their schema, which an older build to compare with has not.
    pub fn ask<T>(&self, database: &str, sql: &str) -> anyhow::Result<T>
    where
        T: Send + Unpin + for<'row> sqlx::Decode<'row, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        self.runtime.block_on(async {
            let options: PgConnectOptions = self.server.url(database).parse()?;
            let mut connection = options.options([("search_path", "hapax, public")]).connect().await?;
            let value = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok(value)
        })
    }

    /// Does some work while another session has an open snapshot.
    pub fn with_snapshot<T>(&self, database: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        const OPEN: &str = "begin isolation level repeatable read; select 1";
        let mut connection = self.runtime.block_on(PgConnection::connect(&self.server.url(database)))?;
        self.runtime.block_on(sqlx::raw_sql(OPEN).execute(&mut connection))?;
        let done = work();
        self.runtime.block_on(connection.close())?;
        done
    }

    /// Bytes of WAL since the creation of this PostgreSQL.
    pub fn wal_bytes(&self) -> anyhow::Result<u64> {
        let bytes: i64 = self.ask("postgres", "select (pg_current_wal_lsn() - '0/0')::bigint")?;
        Ok(u64::try_from(bytes)?)
    }
}

/// A second interrupt ends the program immediately.
fn on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::default();
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupted))?;
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

/// The postmaster: the parent of the backend that answers.
async fn find_postmaster(url: &str) -> anyhow::Result<u32> {
    let mut connection = PgConnection::connect(url).await?;
    let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await?;
    let postmaster = account::parent(u32::try_from(backend)?)?;
    connection.close().await?;
    Ok(postmaster)
}
