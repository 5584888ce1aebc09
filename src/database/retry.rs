//! How the attempts at one statement have gone so far, and what that makes of the next.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use super::failure::words;
use crate::metrics::Shed;

/// Why a statement has no result.
#[derive(Clone, Debug, Error)]
pub enum DatabaseError {
    /// It was not executed, or was rolled back: nothing has changed.
    #[error("the database did not take the statement: {0}")]
    Unavailable(String),
    /// The server cancelled it, as a rule because it took longer than `Settings::statement_timeout`. It was rolled back.
    #[error("the statement took too long and was cancelled")]
    TimedOut,
    /// Nothing was sent, to keep the rest going.
    #[error("{0}")]
    Shed(Shed),
    /// It was not executed: the schema is not the one that it was written for, or is not where the session looks.
    #[error("the database's schema does not fit: {0}")]
    Unfit(String),
    /// It was sent and no answer came before the deadline: it may have been committed.
    #[error("the outcome of the statement is unknown")]
    Unknown,
    /// It waited for a lock as long as it was allowed to, and was rolled back.
    #[error("a lock was held for too long")]
    Locked {
        /// An attempt before this one was lost under way, and may have been committed.
        after_loss: bool,
    },
    /// It would have violated a unique constraint as things are, and was rolled back. Where an attempt before it was
    /// lost, what stands there tells of that one.
    #[error("the statement met what is there already")]
    Violation(#[source] Arc<sqlx::Error>),
    /// PostgreSQL refused it and would again.
    #[error("the statement failed")]
    Statement(#[source] Arc<sqlx::Error>),
}

impl DatabaseError {
    /// What it means that something could not be found out about a request that has been carried out, or may have been.
    pub fn after_a_write(self) -> Self {
        let cause = std::error::Error::source(&self).map(tracing::field::display);
        tracing::warn!(error = %self, cause, "what became of a request could not be read");
        Self::Unknown
    }
}

/// What it means that an attempt was sent and its answer lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    ChangesNothing,
    MustBecomeKnown,
}

pub struct RetryState {
    loss: Loss,
    deadline: Instant,
    acquire_timeout: Duration,
    /// Up to when a connection is waited for.
    acquire_ends: Instant,
    /// An attempt was sent whose end nobody knows, and matters.
    unknown: bool,
    /// An attempt has met stale prepared statements, or a schema that does not fit.
    pub stale: bool,
    /// The next attempt shall be on a connection that nobody has used before.
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

    /// Whether it matters what became of an attempt whose answer was lost.
    pub fn must_become_known(&self) -> bool {
        self.loss == Loss::MustBecomeKnown
    }

    /// An attempt was lost under way.
    pub fn lose_attempt(&mut self) {
        self.unknown |= self.loss == Loss::MustBecomeKnown;
    }

    /// When to give up. With an attempt that may have succeeded, not before the deadline: the truth is worth waiting
    /// for.
    pub fn ends(&self) -> Instant {
        if self.unknown { self.deadline } else { self.acquire_ends }
    }

    /// Waits before the next attempt: not at all the first time, for a lost connection is replaced at once; then
    /// growing, for a dead server is not hammered; never long, for its return is to be seen soon.
    pub async fn pause_after(&mut self, error: &sqlx::Error) {
        self.fail(words(error));
        sleep_until(self.ends().min(Instant::now() + self.pause)).await;
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_LONGEST);
    }

    /// An attempt has failed, for this reason.
    pub fn fail(&mut self, reason: impl Display) {
        self.last_failure = Some(reason.to_string());
    }

    /// The database is there and did its part, so the waiting begins anew.
    pub fn restart_acquire_timeout(&mut self) {
        self.acquire_ends = self.deadline.min(Instant::now() + self.acquire_timeout);
    }

    /// What it means that a lock was held for too long. Whoever only reads waits for nobody but work on the database itself.
    pub fn locked(&self) -> DatabaseError {
        match self.loss {
            Loss::ChangesNothing => DatabaseError::Unavailable("a lock was held for too long".to_owned()),
            Loss::MustBecomeKnown => DatabaseError::Locked { after_loss: self.unknown },
        }
    }

    /// What a refusal means after all that went before.
    pub fn refuse(&self, error: DatabaseError) -> DatabaseError {
        if self.unknown {
            tracing::error!(%error, "refused, after an attempt that may have succeeded");
            return DatabaseError::Unknown;
        }
        error
    }

    /// What it means that the database is away and others are looking for it.
    pub fn shed_by_circuit_breaker(self) -> DatabaseError {
        // Whoever has looked himself knows why.
        self.last_failure.map_or(DatabaseError::Shed(Shed::Outage), DatabaseError::Unavailable)
    }

    /// What it means that there is no more time.
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
