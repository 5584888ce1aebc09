//! A bounded connection pool, and the only way to send a statement.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::circuit_breaker::CircuitBreaker;
use super::failure::{Failure, words};
use super::idle::IdleConnections;
use super::lease::{Lease, Place, Share};
use super::retry::{DatabaseError, Loss, RetryState};
use super::{Pooler, Settings, connect, queries};
use crate::metrics::{Metrics, Retry};

/// A bounded number of connections, opened on demand.
///
/// Not `sqlx::PgPool`, because of three problems that we measured: it pings on every release, which doubles the round
/// trips of a one-statement request; a dropped future may return its connection in the middle of a statement; and a
/// ping on a black-holed connection holds its slot forever. See ADR 0004.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// One reading of a pool's connections.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    pub busy: usize,
    pub idle: usize,
    pub limit: usize,
}

struct Shared {
    /// The name in metrics and logs.
    name: &'static str,
    settings: Settings,
    limit: usize,
    places: Arc<Semaphore>,
    idle: Arc<IdleConnections>,
    /// Time limit for one attempt: a little longer than PostgreSQL's own statement timeout.
    attempt_limit: Duration,
    breaker: CircuitBreaker,
    metrics: Metrics,
}

impl Pool {
    /// Opens no connection yet. Must be called on the runtime that is to own the connections.
    pub fn new(name: &'static str, settings: Settings, limit: usize, metrics: Metrics) -> Self {
        let breaker = CircuitBreaker::new(name, settings.acquire_timeout, settings.connect_timeout);
        let shared = Shared {
            name,
            attempt_limit: settings.statement_timeout + ATTEMPT_GRACE,
            settings,
            limit,
            places: Arc::new(Semaphore::new(limit)),
            idle: IdleConnections::new(Handle::current()),
            breaker,
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Runs `work` on a connection. `statement` is the name in the comment that its SQL begins with, and its label in the
    /// metric of statement durations. If the connection is lost, runs all of it again on another one. So `work` must be
    /// one statement that is safe to repeat, such as a write that recognises its own earlier attempt. After a lost
    /// attempt it retries until the outcome is known, PostgreSQL refuses the statement, or `deadline` has passed.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest; after `Settings::acquire_timeout` if no attempt could start.
    pub async fn complete<T>(
        &self,
        statement: &'static str,
        deadline: Instant,
        work: impl AsyncFnMut(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, DatabaseError> {
        self.run(statement, self.retry(Loss::MustBecomeKnown, deadline), None, work).await
    }

    /// Like [`Pool::complete`], but for reads, which may take several statements. A lost attempt leaves nothing
    /// unknown.
    ///
    /// # Errors
    /// As [`Pool::complete`], but never [`DatabaseError::Unknown`].
    pub async fn read<T>(
        &self,
        statement: &'static str,
        deadline: Instant,
        work: impl AsyncFnMut(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, DatabaseError> {
        self.run(statement, self.retry(Loss::ChangesNothing, deadline), None, work).await
    }

    pub(super) fn retry(&self, loss: Loss, deadline: Instant) -> RetryState {
        RetryState::of(loss, deadline, self.shared.settings.acquire_timeout)
    }

    /// `share`: the tenant's permit, which the connections of this call hold.
    pub(super) async fn run<T>(
        &self,
        statement: &'static str,
        mut retry: RetryState,
        share: Option<Share>,
        mut work: impl AsyncFnMut(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, DatabaseError> {
        while Instant::now() < retry.ends() {
            if !retry.is_unknown() && !self.shared.breaker.admits() {
                return Err(retry.shed_by_circuit_breaker());
            }
            let waiting_since = Instant::now();
            let place = match timeout_at(retry.ends(), Arc::clone(&self.shared.places).acquire_owned()).await {
                Err(_) => break,
                Ok(Err(_)) => {
                    return Err(retry.refuse(DatabaseError::Unavailable("the service is shutting down".to_owned())));
                }
                Ok(Ok(in_pool)) => Place::new(in_pool, share.clone()),
            };
            let mut lease = match timeout_at(retry.ends(), self.lease(place, &retry)).await {
                Err(_) => {
                    retry.fail("no connection could be opened in time");
                    break;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no connection to the database; trying again");
                    retry.pause_after(&error).await;
                    continue;
                }
                Ok(Ok(lease)) => lease,
            };
            self.shared.metrics.observe_connection_wait(self.shared.name, waiting_since.elapsed());
            let started = Instant::now();
            let attempt_ends = started + self.shared.attempt_limit;
            lease.attempt_ends = Some(attempt_ends);
            let attempt = timeout_at(attempt_ends.min(retry.deadline()), work(&mut lease)).await;
            if attempt.is_ok() {
                self.shared.metrics.observe_statement(statement, started.elapsed());
            }
            let error = match attempt {
                Ok(Ok(done)) => {
                    self.shared.breaker.close();
                    lease.release();
                    return Ok(done);
                }
                Ok(Err(error)) => error,
                // The caller ran out of time. The connection is probably sound; the statement finishes without the
                // caller.
                Err(_) if Instant::now() < attempt_ends => {
                    retry.lose_attempt();
                    retry.fail("no answer came in time");
                    break;
                }
                // PostgreSQL would have cancelled the statement by now, so the connection is dead.
                Err(_) => sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
            };
            let failure = Failure::of(&error);
            self.settle(lease, &failure, &error, retry.ends()).await;
            retry.fresh = matches!(failure, Failure::Stale | Failure::ReadOnly | Failure::Unfit);
            match failure {
                Failure::Lost => retry.lose_attempt(),
                Failure::Away => self.shared.breaker.record_failure(),
                Failure::Stale if retry.stale && !self.shares_sessions() => {
                    return Err(retry.refuse(DatabaseError::Statement(Arc::new(error))));
                }
                Failure::Unfit if retry.stale => {
                    return Err(retry.refuse(DatabaseError::Unfit(words(&error))));
                }
                Failure::Stale | Failure::Unfit => retry.stale = true,
                Failure::ReadOnly => self.shared.breaker.record_failure(),
                Failure::Collided => retry.restart_acquire_timeout(),
                Failure::Locked => return Err(retry.locked()),
                Failure::Violation => return Err(DatabaseError::Violation(Arc::new(error))),
                Failure::Refused => return Err(retry.refuse(DatabaseError::Unavailable(words(&error)))),
                Failure::Cancelled => return Err(retry.refuse(DatabaseError::TimedOut)),
                Failure::Other => return Err(retry.refuse(DatabaseError::Statement(Arc::new(error)))),
            }
            retry.pause_after(&error).await;
        }
        Err(retry.out_of_time())
    }

    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Whether the last attempt to reach the database failed.
    pub fn is_away(&self) -> bool {
        self.shared.breaker.is_on()
    }

    /// Whether the circuit breaker is open: requests fail immediately, except for one attempt per 250 ms.
    pub fn refuses(&self) -> bool {
        self.shared.breaker.is_open()
    }

    pub fn count(&self) -> Connections {
        let busy = self.shared.limit - self.shared.places.available_permits();
        Connections { busy, idle: self.shared.idle.count(), limit: self.shared.limit }
    }

    /// Admits no new work, waits for the work in progress, and closes all connections.
    pub async fn close(&self) {
        let all = u32::try_from(self.shared.limit).unwrap_or(u32::MAX);
        if let Ok(places) = self.shared.places.acquire_many(all).await {
            self.shared.places.close();
            places.forget();
        }
        for (connection, _) in self.shared.idle.take_all() {
            // A clean goodbye is optional; the socket closes either way.
            let _ = connection.close().await;
        }
    }

    /// A connection for the next attempt, idle or new.
    async fn lease(&self, place: Place, retry: &RetryState) -> sqlx::Result<Lease> {
        // An unwanted idle connection is closed, so that the number of connections never exceeds the limit.
        let idle = self.shared.idle.take().filter(|_| !retry.fresh);
        let place = match idle {
            Some((connection, idle_for)) => {
                let mut lease = self.lend(connection, place);
                if !retry.must_become_known() || idle_for < SURELY_ALIVE || self.answers(&mut lease).await {
                    return Ok(lease);
                }
                // The other idle connections have probably died, too.
                drop(self.shared.idle.take_all());
                self.shared.metrics.count_database_retry(Retry::Connect);
                tracing::info!("an idle connection was dead; no statement was sent on it");
                match lease.close() {
                    Some(place) => place,
                    None => return Err(sqlx::Error::WorkerCrashed),
                }
            }
            None => place,
        };
        let (connection, place) = self.open(place).await?;
        Ok(self.lend(connection, place))
    }

    fn lend(&self, connection: PgConnection, place: Place) -> Lease {
        Lease::new(connection, place, Arc::clone(&self.shared.idle))
    }

    /// Whether an idle connection still works. sqlx cannot report that a socket was closed, so this costs a round trip.
    async fn answers(&self, lease: &mut Lease) -> bool {
        // Opening a connection takes at least two round trips. If one round trip takes longer than half of
        // `connect_timeout`, no connection can be opened either.
        let ends = Instant::now() + self.shared.settings.connect_timeout / 2;
        lease.attempt_ends = Some(ends);
        let answered = matches!(timeout_at(ends, lease.ping()).await, Ok(Ok(())));
        lease.attempt_ends = None;
        answered
    }

    /// Opens a connection in a task of its own. If the request has gone by then, the connection becomes idle for the
    /// next one.
    async fn open(&self, place: Place) -> sqlx::Result<(PgConnection, Place)> {
        let (hand_over, opened) = oneshot::channel();
        let pool = self.clone();
        self.shared.idle.runtime.spawn(async move {
            let opening = connect(&pool.shared.settings).await.map(|connection| (connection, place));
            if opening.is_err() {
                pool.shared.breaker.record_failure();
                pool.shared.metrics.count_database_retry(Retry::Connect);
            }
            if let Err(Ok((connection, _place))) = hand_over.send(opening) {
                pool.shared.idle.put(connection);
            }
        });
        opened.await.map_err(|_| sqlx::Error::WorkerCrashed)?
    }

    /// Returns or closes the connection, by `ends` at the latest, and counts the reason for a retry.
    async fn settle(&self, mut lease: Lease, failure: &Failure, error: &sqlx::Error, ends: Instant) {
        if !matches!(failure, Failure::Lost | Failure::Away | Failure::ReadOnly) {
            // The database answered, so it is reachable.
            self.shared.breaker.close();
        }
        let retry = match failure {
            Failure::Lost => Retry::Lost,
            Failure::Away => Retry::Connect,
            Failure::Stale | Failure::ReadOnly | Failure::Unfit => Retry::Stale,
            Failure::Collided => Retry::Collided,
            Failure::Locked | Failure::Refused | Failure::Cancelled | Failure::Violation | Failure::Other => {
                return lease.release();
            }
        };
        self.shared.metrics.count_database_retry(retry);
        if *failure == Failure::Collided {
            return lease.release();
        }
        if *failure == Failure::Away {
            tracing::debug!(%error, "no session for a statement; trying again");
            lease.close();
            return;
        }
        if self.shares_sessions() && matches!(failure, Failure::Stale | Failure::ReadOnly | Failure::Unfit) {
            // Closing only our end would leave the session in the pooler, which could assign it to us again.
            lease.attempt_ends = None;
            let _ended = timeout_at(ends, queries::end_session(&mut lease)).await;
        }
        lease.close();
        // The idle connections probably have the same problem.
        drop(self.shared.idle.take_all());
        tracing::info!(error = words(error), "a connection failed; retrying on another");
    }

    fn shares_sessions(&self) -> bool {
        self.shared.settings.pooler == Pooler::Transaction
    }
}

#[cfg(test)]
impl Pool {
    /// A pool for tests that send nothing.
    pub fn to_nowhere() -> Self {
        let second = Duration::from_secs(1);
        let settings = Settings {
            options: sqlx::postgres::PgConnectOptions::new_without_pgpass(),
            pooler: Pooler::None,
            connect_timeout: second,
            acquire_timeout: second,
            statement_timeout: second,
            lock_timeout: second,
            idle_in_transaction_timeout: second,
        };
        Self::new("nowhere", settings, 1, Metrics::new())
    }
}

/// Allowance for the network, on top of PostgreSQL's own statement timeout.
const ATTEMPT_GRACE: Duration = Duration::from_millis(500);
/// A connection that has been idle for less is used without a ping. Under load no connection is idle for as long, so
/// nothing is slower there; a single request pays one round trip.
const SURELY_ALIVE: Duration = Duration::from_millis(10);
