//! Connections and database errors.
//!
//! Owns the [`Pool`], the [`SharedPool`] that limits each tenant to a share, the lock waits of [`Writes`], the [`Listener`]
//! for notifications, the classification of PostgreSQL's errors,
//! and the checks of schema, durability and pooler sessions.
//!
//! It never begins a transaction. Every statement is its own transaction, so no transaction stays open across a network
//! round trip.

mod circuit_breaker;
mod failure;
mod idle;
mod lease;
mod listener;
mod migration;
mod pool;
pub mod queries;
mod retry;
mod schema;
mod session;
mod shared_pool;
mod writes;

pub use failure::{may_pass, violates, with_causes};
pub use listener::Listener;
pub use migration::{LockWait, MIGRATION_LOCK_TIMEOUT, migrate, migrate_at_once};
pub use pool::{Connections, Pool};
pub use retry::DatabaseError;
pub use schema::{Durability, Schema, create_if_missing, fitness};
pub use session::{Pooler, Sessions, is_refused_by_pooler, sessions, statement_timeout};
pub use shared_pool::SharedPool;
pub use writes::{WriteOptions, Writes};

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};

/// Connection settings.
#[derive(Clone, Debug)]
pub struct Settings {
    pub options: PgConnectOptions,
    pub pooler: Pooler,
    /// Time limit for opening a connection.
    pub connect_timeout: Duration,
    /// How long a statement waits for a free connection, or while the database is unreachable.
    pub acquire_timeout: Duration,
    /// The server cancels statements that take longer. Behind a pooler the operator must set this on the server.
    pub statement_timeout: Duration,
    /// The server cancels a statement that waits longer for a lock. This limit is for reads. A write function sets its
    /// own before it locks anything.
    pub lock_timeout: Duration,
    /// The server ends a session with an older open transaction. Hapax opens none.
    pub idle_in_transaction_timeout: Duration,
}

/// Opens one connection. Without a pooler, the session gets the limits of `settings`.
pub async fn connect(settings: &Settings) -> sqlx::Result<PgConnection> {
    match tokio::time::timeout(settings.connect_timeout, session_options(settings).connect()).await {
        Ok(connected) => connected,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

fn session_options(settings: &Settings) -> PgConnectOptions {
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    // Poolers refuse the startup parameter extra_float_digits. Our data has no floats.
    let mut options = settings.options.clone().disable_statement_logging().extra_float_digits(None);
    if settings.pooler == Pooler::None {
        options = options.options([
            ("statement_timeout", milliseconds(settings.statement_timeout)),
            ("lock_timeout", milliseconds(settings.lock_timeout)),
            ("idle_in_transaction_session_timeout", milliseconds(settings.idle_in_transaction_timeout)),
            // Every statement can use an index. Without this setting, a plan that was made while a table was small
            // stays in use when the table is large.
            ("enable_seqscan", "off".to_owned()),
            // Without sequential scans, PostgreSQL takes statements on small tables for very expensive, and compiles them for
            // longer than they run.
            ("jit", "off".to_owned()),
            // Lets the server detect a dead client while it sends an answer or the connection is idle.
            ("tcp_user_timeout", milliseconds(settings.statement_timeout)),
            ("tcp_keepalives_idle", "30".to_owned()),
            ("tcp_keepalives_interval", "10".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
            // Proves that these settings have reached the session.
            (queries::SESSION_MARK, "yes".to_owned()),
        ]);
    }
    options
}
