//! Applying the migrations without stalling everybody who uses the tables.
//!
//! A migration that waits for a lock on a table makes every later statement on that table wait behind it. So each of its
//! statements waits for a short time only; then the migration is rolled back, the others go on, and it starts again.

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
/// Between two attempts: the first pause, and the longest. The others get at least as much time as they had to wait.
const PAUSE_FIRST: Duration = Duration::from_secs(2);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// When a migration gives up.
const RETRIES_END_AFTER: Duration = Duration::from_secs(120);
/// How often one looks who holds the lock that an attempt waits for. PostgreSQL knows that only while it waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// Word of a wait for a lock, for whoever started the migration.
#[derive(Debug)]
pub struct LockWait {
    for_what: &'static str,
    holders: Vec<Blocker>,
    next_attempt_in: Duration,
}

/// Applies the embedded migrations and says how many were new. Several at once wait for one another; a database that
/// is newer is left as it is.
///
/// `settings` are those that `connection` was opened with, with [`MIGRATION_LOCK_TIMEOUT`]; another connection asks who
/// holds a lock. `tell` is called after each attempt that met a lock.
///
/// # Errors
/// When the database cannot be reached, or holds other migrations under our versions, or when a lock could not be had
/// within two minutes.
pub async fn migrate(
    connection: &mut PgConnection,
    settings: &Settings,
    tell: impl Fn(&LockWait),
) -> sqlx::Result<usize> {
    let pid = queries::backend(connection).await?;
    // Others that migrate. They block nobody else, and an index may take them minutes, so this has no end.
    retried(None, "the lock that migrations take", &tell, async || watched(settings, pid, connection.lock()).await)
        .await?;
    // One more statement is no reason to fail after all was done: the lock ends with the session.
    let applied = apply(connection, settings, pid, &tell).await;
    let _unlocked = connection.unlock().await;
    applied
}

/// Applies the embedded migrations, and waits for locks as the session does.
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
    let before = retried(ends, "the table of migrations", tell, async || {
        let counting = async {
            match queries::count_applied_migrations(connection).await {
                // There is no such table yet.
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

/// `locking`: whether it takes the lock by which only one migrates at a time.
fn migrator(locking: bool) -> Migrator {
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_ignore_missing(true).set_locking(locking);
    migrator
}

type Watched<T> = (Result<T, MigrateError>, Vec<Blocker>);

/// Attempts something until it is not refused for a lock any more, or until `ends`.
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

/// Awaits an attempt of the session `pid`, and looks meanwhile who keeps it waiting.
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
    sleep(LOOK_INTERVAL).await;
    let looking = async {
        let mut connection = connect(settings).await?;
        loop {
            let blockers = queries::blockers(&mut connection, pid).await?;
            if !blockers.is_empty() {
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = blockers;
            }
            sleep(LOOK_INTERVAL).await;
        }
    };
    let failed: sqlx::Result<Infallible> = pin!(looking).await;
    match failed {
        Ok(never) => never,
        // Who holds it is a courtesy.
        Err(error) => {
            tracing::debug!(error = words(&error), "nobody could be asked who holds a lock");
            std::future::pending().await
        }
    }
}

impl fmt::Display for LockWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { for_what, holders, next_attempt_in } = self;
        write!(f, "the migration waited for {for_what}, which others hold, and was rolled back; ")?;
        write!(f, "next attempt in {} s; ", next_attempt_in.as_secs())?;
        if holders.is_empty() {
            return f.write_str("who holds it could not be seen");
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
