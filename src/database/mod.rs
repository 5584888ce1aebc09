//! Connections, and what an error on one means.
//!
//! Owns the [`Pool`] and the [`SharedPool`] of which each tenant has a share, the classification of PostgreSQL's errors,
//! and the checks of a server's schema and durability and of the sessions that a pooler gives.
//! It never begins a transaction: every statement of Hapax is one of its own, so nothing is ever held open across a
//! network round trip.

mod circuit_breaker;
mod failure;
mod migration;
mod pool;
pub mod queries;
mod retry;
mod schema;
mod session;
mod shared_pool;

pub use failure::{may_pass, violates, with_causes};
pub use migration::{LockWait, MIGRATION_LOCK_TIMEOUT, migrate, migrate_at_once};
pub use pool::Pool;
pub use retry::DatabaseError;
pub use schema::{Durability, Schema, create_if_missing, fitness};
pub use session::{Pooler, Sessions, is_refused_by_pooler, sessions, statement_timeout};
pub use shared_pool::SharedPool;

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};

/// How connections are made.
#[derive(Clone, Debug)]
pub struct Settings {
    pub options: PgConnectOptions,
    pub pooler: Pooler,
    /// A connection that is not open by then is given up.
    pub connect_timeout: Duration,
    /// How long a statement waits for a connection: for one to come free, or for the database to be there.
    pub acquire_timeout: Duration,
    /// The server ends a statement that takes longer; behind a pooler, only if the operator has told it so.
    pub statement_timeout: Duration,
    /// The server ends a statement that waits longer for a lock. A submission's own wait is shorter; this is for a lock on a
    /// whole table, which is waited for before a statement can set anything.
    pub lock_timeout: Duration,
    /// The server ends a session that leaves a transaction open for longer. Hapax opens none.
    pub idle_in_transaction_timeout: Duration,
}

/// Opens one connection, with the limits of `settings` unless a pooler's sessions bear none of ours.
pub async fn connect(settings: &Settings) -> sqlx::Result<PgConnection> {
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    // A pooler refuses extra_float_digits, too; there are no floats here.
    let mut options = settings.options.clone().disable_statement_logging().extra_float_digits(None);
    if settings.pooler == Pooler::None {
        options = options.options([
            ("statement_timeout", milliseconds(settings.statement_timeout)),
            ("lock_timeout", milliseconds(settings.lock_timeout)),
            ("idle_in_transaction_session_timeout", milliseconds(settings.idle_in_transaction_timeout)),
            // An index serves every statement, and a plan that was made while a table was small is kept when it is not.
            ("enable_seqscan", "off".to_owned()),
            // For the server to notice that we are gone, with an answer under way and without one.
            ("tcp_user_timeout", milliseconds(settings.statement_timeout)),
            ("tcp_keepalives_idle", "30".to_owned()),
            ("tcp_keepalives_interval", "10".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
            // For us to see that all this has arrived.
            (queries::OUR_MARK, "yes".to_owned()),
        ]);
    }
    match tokio::time::timeout(settings.connect_timeout, options.connect()).await {
        Ok(connected) => connected,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}
