//! Applies migrations without blocking other users of the tables.
//!
//! A migration that waits for a table lock makes every later statement on that table wait behind it. So its statements
//! wait for a short time only. After that the migration is rolled back, the waiting statements run, and it starts
//! again.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use tokio::time::{Instant, sleep};

use super::failure::{Failure, words};
use super::queries::{self, Blocker};
use super::schema::MIGRATIONS;
use super::{Settings, connect};

/// How long a statement of a migration waits for a lock.
pub const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses between two attempts. Other statements get at least as much time as they had to wait.
const PAUSE_FIRST: Duration = Duration::from_secs(2);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// When the migration gives up.
const RETRIES_END_AFTER: Duration = Duration::from_secs(120);
/// How often to ask which session holds the lock. PostgreSQL knows that only while a statement waits.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// Progress report about a lock wait, for the operator.
#[derive(Debug)]
pub struct LockWait {
    for_what: &'static str,
    holders: Vec<Blocker>,
    next_attempt_in: Duration,
}

/// Applies the embedded migrations and returns how many were new. Concurrent calls wait for one another. A newer
/// database is left unchanged.
///
/// `settings` are those that `connection` was opened with, including [`MIGRATION_LOCK_TIMEOUT`]; a second connection
/// asks which session holds a lock. `tell` is called after each attempt that hit a lock.
///
/// # Errors
/// If the database is unreachable, contains different migrations under our versions, or a lock is not granted within
/// two minutes.
pub async fn migrate(
    connection: &mut PgConnection,
    settings: &Settings,
    tell: impl Fn(&LockWait),
) -> sqlx::Result<usize> {
    let pid = queries::backend(connection).await?;
    // The lock that serializes migrations. It blocks only other migrations, and an index may take them minutes, so
    // there is no time limit.
    retried(None, "the migration lock", &tell, async || watched(settings, pid, connection.lock()).await).await?;
    // A failure to unlock is no reason to fail: the lock ends with the session.
    let applied = apply(connection, settings, pid, &tell).await;
    let _unlocked = connection.unlock().await;
    applied
}

/// Applies the embedded migrations in one attempt, with the session's own lock timeout.
///
/// # Errors
/// As [`migrate`].
pub async fn migrate_at_once(connection: &mut PgConnection) -> sqlx::Result<()> {
    migrator(true).run_direct(None, connection, false).await.map_err(|error| sqlx::Error::Migrate(Box::new(error)))
}

async fn apply(
    connection: &mut PgConnection,
    settings: &Settings,
    pid: i32,
    tell: &impl Fn(&LockWait),
) -> sqlx::Result<usize> {
    let ends = Some(Instant::now() + RETRIES_END_AFTER);
    let before = retried(ends, "the table of applied migrations", tell, async || {
        let counting = async {
            match queries::count_applied_migrations(connection).await {
                // The table does not exist yet.
                Err(error) if Failure::of(&error) == Failure::Unfit => Ok(0),
                counted => counted.map_err(MigrateError::Execute),
            }
        };
        watched(settings, pid, counting).await
    })
    .await?;
    let migrator = migrator(false);
    retried(ends, "a table", tell, async || {
        watched(settings, pid, migrator.run_direct(None, &mut *connection, false)).await
    })
    .await?;
    let after = queries::count_applied_migrations(connection).await?;
    Ok(usize::try_from(after - before).unwrap_or(0))
}

/// `locking`: whether it takes the lock that lets only one process migrate at a time.
fn migrator(locking: bool) -> Migrator {
    let Migrator { migrations, table_name, create_schemas, .. } = &MIGRATIONS;
    let mut migrator = Migrator {
        migrations: migrations.clone(),
        table_name: table_name.clone(),
        create_schemas: create_schemas.clone(),
        ..Migrator::DEFAULT
    };
    migrator.set_ignore_missing(true).set_locking(locking);
    migrator
}

type Watched<T> = (Result<T, MigrateError>, Vec<Blocker>);

/// Repeats an attempt while it fails because of a lock, until `ends`.
async fn retried<T>(
    ends: Option<Instant>,
    for_what: &'static str,
    tell: &impl Fn(&LockWait),
    mut attempt: impl AsyncFnMut() -> Watched<T>,
) -> sqlx::Result<T> {
    let mut pause = PAUSE_FIRST;
    loop {
        let (error, holders) = match attempt().await {
            (Ok(done), _) => return Ok(done),
            (Err(error), holders) => (error, holders),
        };
        let met_a_lock = matches!(
            &error,
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
                if matches!(Failure::of(error), Failure::Locked | Failure::Collided)
        );
        if !met_a_lock || ends.is_some_and(|ends| Instant::now() + pause > ends) {
            return Err(sqlx::Error::Migrate(Box::new(error)));
        }
        tell(&LockWait { for_what, holders, next_attempt_in: pause });
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

/// Runs an attempt of the session `pid` and asks meanwhile which sessions block it.
async fn watched<T>(
    settings: &Settings,
    pid: i32,
    attempt: impl Future<Output = Result<T, MigrateError>>,
) -> Watched<T> {
    let seen = Mutex::default();
    let done = tokio::select! {
        done = attempt => done,
        never = watch(settings, pid, &seen) => match never {},
    };
    (done, seen.into_inner().unwrap_or_else(PoisonError::into_inner))
}

async fn watch(settings: &Settings, pid: i32, seen: &Mutex<Vec<Blocker>>) -> Infallible {
    sleep(POLL_INTERVAL).await;
    let looking = async {
        let mut connection = connect(settings).await?;
        loop {
            let blockers = queries::blockers(&mut connection, pid).await?;
            if !blockers.is_empty() {
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = blockers;
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    let failed: sqlx::Result<Infallible> = pin!(looking).await;
    match failed {
        Ok(never) => never,
        // Optional information: the migration works without it.
        Err(error) => {
            tracing::debug!(error = words(&error), "the sessions that hold a lock could not be read");
            std::future::pending().await
        }
    }
}

impl fmt::Display for LockWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { for_what, holders, next_attempt_in } = self;
        write!(f, "the migration waited for {for_what}, which another session holds, and was rolled back; ")?;
        write!(f, "next attempt in {} s; ", next_attempt_in.as_secs())?;
        if holders.is_empty() {
            return f.write_str("the session that holds it could not be determined");
        }
        f.write_str("held by ")?;
        for (place, holder) in holders.iter().enumerate() {
            write!(f, "{}{holder}", if place == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let unknown = || "unknown".to_owned();
        if self.pid == 0 {
            return f.write_str("a prepared transaction (see pg_prepared_xacts)");
        }
        write!(
            f,
            "pid {} (application {}, user {}, {}",
            self.pid,
            or_unknown(&self.application).unwrap_or_else(unknown),
            or_unknown(&self.user).unwrap_or_else(unknown),
            or_unknown(&self.state).unwrap_or_else(|| "state unknown".to_owned()),
        )?;
        match self.statement_seconds {
            Some(seconds) => write!(f, ", its last statement began {seconds:.1} s ago)"),
            None => f.write_str(")"),
        }
    }
}
