//! A bounded set of connections, and the one way to send a statement.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::Failure;
use super::{Settings, connect};
use crate::metrics::{Connections, Metrics, Retry};

/// A bounded number of connections, opened when needed.
///
/// Not `sqlx::PgPool`, because of three things that were measured on it: it pings on every release, which doubles
/// the round trips of a one-statement request; a future that is dropped may return its connection in the middle of a
/// statement; and a ping on a black-holed connection holds its place forever. See ADR 0004.
#[derive(Clone)]
pub struct Lane {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    limit: usize,
    places: Arc<Semaphore>,
    /// Last in, first out: what is used stays warm.
    idle: Mutex<Vec<PgConnection>>,
    /// Connections live on the runtime that outlives every HTTP worker.
    runtime: Handle,
    metrics: Metrics,
}

/// A connection on loan. It goes back only by [`Lease::give_back`]; dropped in any other way, say with the future of
/// a statement under way, it is closed.
struct Lease {
    connection: Option<PgConnection>,
    lane: Lane,
    _place: OwnedSemaphorePermit,
}

impl Lane {
    /// Opens nothing yet. Must be called on the runtime that the connections shall live on.
    pub fn new(settings: Settings, limit: usize, metrics: Metrics) -> Self {
        let shared = Shared {
            settings,
            limit,
            places: Arc::new(Semaphore::new(limit)),
            idle: Mutex::default(),
            runtime: Handle::current(),
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Runs one statement on a connection, and the very same one again on another when the first was lost, so it
    /// must be one that may be repeated: a read, or a write that recognises its own earlier attempt.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest.
    pub async fn run<T>(
        &self,
        deadline: Instant,
        mut statement: impl AsyncFnMut(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, DatabaseError> {
        let mut unknown = false;
        let mut last_failure = None;
        let mut pause = Pause::default();
        loop {
            let mut lease = match timeout_at(deadline, self.lease()).await {
                Err(_) => return Err(at_deadline(unknown, last_failure)),
                Ok(Err(error)) => {
                    tracing::debug!(error = %error, "no connection to the database; trying again");
                    self.note(Retry::Connect);
                    last_failure = Some(error.to_string());
                    pause.wait(deadline).await;
                    continue;
                }
                Ok(Ok(lease)) => lease,
            };
            let error = match timeout_at(deadline, statement(&mut lease)).await {
                Err(_) => return Err(DatabaseError::Unknown),
                Ok(Ok(done)) => {
                    lease.give_back();
                    return Ok(done);
                }
                Ok(Err(error)) => error,
            };
            match Failure::of(&error) {
                Failure::Lost => {
                    drop(lease);
                    self.forget_idle();
                    self.note(Retry::Lost);
                    tracing::info!(error = %error, "a connection was lost; sending the statement again on another");
                    unknown = true;
                    last_failure = Some(error.to_string());
                    pause.wait(deadline).await;
                }
                Failure::Stale => {
                    drop(lease);
                    self.note(Retry::Stale);
                    last_failure = Some(error.to_string());
                    pause.wait(deadline).await;
                }
                Failure::Collided => {
                    lease.give_back();
                    self.note(Retry::Collided);
                    last_failure = Some(error.to_string());
                    pause.wait(deadline).await;
                }
                Failure::Locked => {
                    lease.give_back();
                    return Err(DatabaseError::Locked { after_loss: unknown });
                }
                Failure::Refused => {
                    lease.give_back();
                    return Err(at_deadline(unknown, Some(error.to_string())));
                }
                Failure::Other => {
                    lease.give_back();
                    if unknown {
                        tracing::error!(%error, "a statement failed that may have succeeded before");
                        return Err(DatabaseError::Unknown);
                    }
                    return Err(DatabaseError::Statement(error));
                }
            }
        }
    }

    /// Connections at work and at rest, and how many there may be.
    pub fn count(&self) -> Connections {
        let busy = self.shared.limit - self.shared.places.available_permits();
        Connections { busy, idle: self.idle().len(), limit: self.shared.limit }
    }

    /// Lets nobody in any more, waits for those who are, and closes all connections.
    pub async fn close(&self) {
        let all = u32::try_from(self.shared.limit).unwrap_or(u32::MAX);
        if let Ok(places) = self.shared.places.acquire_many(all).await {
            self.shared.places.close();
            places.forget();
        }
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            // Saying goodbye is a courtesy; the socket closes either way.
            let _ = connection.close().await;
        }
    }

    async fn lease(&self) -> sqlx::Result<Lease> {
        let place = Arc::clone(&self.shared.places).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let settings = self.shared.settings.clone();
                let opening = self.shared.runtime.spawn(async move { connect(&settings).await });
                opening.await.map_err(|_| sqlx::Error::WorkerCrashed)??
            }
        };
        Ok(Lease { connection: Some(connection), lane: self.clone(), _place: place })
    }

    /// When one connection is lost, the idle ones are likely to be lost, too.
    fn forget_idle(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<PgConnection>> {
        self.shared.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn note(&self, retry: Retry) {
        self.shared.metrics.count_database_retry(retry);
    }
}

impl Lease {
    fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            self.lane.idle().push(connection);
        }
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("only give_back takes it, and consumes the lease")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("only give_back takes it, and consumes the lease")
    }
}

/// Why a statement has no result.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// It was not executed, or was rolled back: nothing has changed.
    #[error("the database did not take the statement: {0}")]
    Unavailable(String),
    /// It was sent and no answer came before the deadline: it may have been committed.
    #[error("the outcome of the statement is unknown")]
    Unknown,
    /// It waited for a lock as long as it was allowed to, and was rolled back.
    #[error("a lock was held for too long")]
    Locked {
        /// An attempt before this one was lost under way, and may have been committed.
        after_loss: bool,
    },
    /// PostgreSQL refused it and would again.
    #[error("the statement failed")]
    Statement(#[source] sqlx::Error),
}

fn at_deadline(unknown: bool, last_failure: Option<String>) -> DatabaseError {
    if unknown {
        return DatabaseError::Unknown;
    }
    DatabaseError::Unavailable(last_failure.unwrap_or_else(|| "no connection came free in time".to_owned()))
}

/// None before the first repetition, then growing: a lost connection is replaced at once, a dead server is not
/// hammered, and its return is seen within a quarter of a second.
#[derive(Default)]
struct Pause(Duration);

impl Pause {
    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_millis(250);

    async fn wait(&mut self, deadline: Instant) {
        sleep(self.0.min(deadline.saturating_duration_since(Instant::now()))).await;
        self.0 = (self.0 * 2).clamp(Self::FIRST, Self::LONGEST);
    }
}
