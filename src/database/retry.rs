//! The state of the attempts at one statement.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use super::failure::words;
use crate::overload::Shed;

/// Why a statement has no result.
#[derive(Clone, Debug, Error)]
pub enum DatabaseError {
    /// Not executed, or rolled back: nothing has changed.
    #[error("the statement was not executed, or was rolled back: {0}")]
    Unavailable(String),
    /// Cancelled by the server, usually after `Settings::statement_timeout`. Rolled back.
    #[error("the statement took too long and was cancelled")]
    TimedOut,
    /// Not sent, because of overload or an open circuit breaker.
    #[error("{0}")]
    Shed(Shed),
    /// The schema differs from what this release needs. Not executed, or rolled back.
    #[error("the database's schema does not fit: {0}")]
    Unfit(String),
    /// Sent, but the answer was lost or did not arrive by the deadline. It may have been committed.
    #[error("the outcome of the statement is unknown")]
    Unknown,
    /// The lock wait expired. Rolled back.
    #[error("a lock was held for too long")]
    Locked {
        /// An earlier attempt was lost and may have been committed.
        after_loss: bool,
    },
    /// A unique constraint was violated. Rolled back. If an earlier attempt was lost, the existing row may be its
    /// result.
    #[error("the statement violates a unique constraint")]
    Violation(#[source] Arc<sqlx::Error>),
    /// PostgreSQL rejected it. A retry would fail, too.
    #[error("the statement failed")]
    Statement(#[source] Arc<sqlx::Error>),
}

impl DatabaseError {
    /// Converts the failure of a read that follows a write which may have been committed.
    pub fn after_a_write(self) -> Self {
        let cause = std::error::Error::source(&self).map(tracing::field::display);
        tracing::warn!(error = %self, cause, "the outcome of a request could not be read");
        Self::Unknown
    }
}

/// Whether a lost answer matters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    ChangesNothing,
    MustBecomeKnown,
}

pub struct RetryState {
    loss: Loss,
    deadline: Instant,
    acquire_timeout: Duration,
    /// How long to wait for a connection.
    acquire_ends: Instant,
    /// An attempt was sent whose outcome is unknown and matters.
    unknown: bool,
    /// An attempt failed because of stale prepared statements or an unfit schema.
    pub stale: bool,
    /// The next attempt needs a new connection.
    pub fresh: bool,
    last_failure: Option<String>,
    pause: Duration,
}

impl RetryState {
    pub fn of(loss: Loss, deadline: Instant, acquire_timeout: Duration) -> Self {
        Self {
            loss,
            deadline,
            acquire_timeout,
            acquire_ends: deadline.min(Instant::now() + acquire_timeout),
            unknown: false,
            stale: false,
            fresh: false,
            last_failure: None,
            pause: Duration::ZERO,
        }
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    pub fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// Whether the outcome of a lost attempt matters.
    pub fn must_become_known(&self) -> bool {
        self.loss == Loss::MustBecomeKnown
    }

    /// Records that an attempt was lost in flight.
    pub fn lose_attempt(&mut self) {
        self.unknown |= self.loss == Loss::MustBecomeKnown;
    }

    /// Until when to retry. After an attempt that may have been committed, until the deadline, because the client needs
    /// to know the outcome.
    pub fn ends(&self) -> Instant {
        if self.unknown { self.deadline } else { self.acquire_ends }
    }

    /// Pauses before the next attempt. No pause the first time, so that a lost connection is replaced at once. Then the
    /// pause grows, to spare a failing server, up to a limit, so that its return is seen soon.
    pub async fn pause_after(&mut self, error: &sqlx::Error) {
        self.fail(words(error));
        sleep_until(self.ends().min(Instant::now() + self.pause)).await;
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_LONGEST);
    }

    /// Records why an attempt failed.
    pub fn fail(&mut self, reason: impl Display) {
        self.last_failure = Some(reason.to_string());
    }

    /// The database is reachable and has answered, so the acquire timeout starts again.
    pub fn restart_acquire_timeout(&mut self) {
        self.acquire_ends = self.deadline.min(Instant::now() + self.acquire_timeout);
    }

    /// The error for an expired lock wait. A read waits only for a lock on a whole table, for example of a migration.
    pub fn locked(&self) -> DatabaseError {
        match self.loss {
            Loss::ChangesNothing => DatabaseError::Unavailable("a lock was held for too long".to_owned()),
            Loss::MustBecomeKnown => DatabaseError::Locked { after_loss: self.unknown },
        }
    }

    /// The final error. It is [`DatabaseError::Unknown`] after a lost attempt.
    pub fn refuse(&self, error: DatabaseError) -> DatabaseError {
        if self.unknown {
            tracing::error!(%error, "the statement failed after an attempt that may have been committed");
            return DatabaseError::Unknown;
        }
        error
    }

    /// The error when the circuit breaker refuses an attempt.
    pub fn shed_by_circuit_breaker(self) -> DatabaseError {
        // If an attempt of this request failed, its error says more.
        self.last_failure.map_or(DatabaseError::Shed(Shed::Outage), DatabaseError::Unavailable)
    }

    /// The error when the time is up.
    pub fn out_of_time(self) -> DatabaseError {
        match self.last_failure {
            _ if self.unknown => DatabaseError::Unknown,
            Some(reason) => DatabaseError::Unavailable(reason),
            None => DatabaseError::Shed(Shed::Waited),
        }
    }
}

const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LONGEST: Duration = Duration::from_millis(250);
