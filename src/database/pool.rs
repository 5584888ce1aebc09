//! A bounded connection pool, and the only way to send a statement.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::circuit_breaker::CircuitBreaker;
use super::failure::{Failure, words};
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
    /// Each with the time since when it is idle. Last in, first out, so that few connections stay warm.
    idle: Mutex<Vec<(PgConnection, Instant)>>,
    /// Time limit for one attempt: a little longer than PostgreSQL's own statement timeout.
    attempt_limit: Duration,
    breaker: CircuitBreaker,
    /// The runtime that owns the connections. It outlives every HTTP worker.
    runtime: Handle,
    metrics: Metrics,
}

/// The permits of a connection in use. They are held until the connection is idle or closed, even if the request ends
/// earlier.
struct Place {
    _in_pool: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// One of a tenant's permits in a pool.
pub(super) type Share = Arc<OwnedSemaphorePermit>;

/// A borrowed connection and its permits. [`Lease::release`] returns it, [`Lease::close`] closes it. If a lease is
/// dropped while a statement is in flight, because the request timed out, the statement finishes first: see
/// [`Pool::finish`].
struct Lease {
    connection: Option<PgConnection>,
    place: Option<Place>,
    pool: Pool,
    /// When the statement in flight must have ended. `None` before the first statement.
    attempt_ends: Option<Instant>,
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
            idle: Mutex::default(),
            breaker,
            runtime: Handle::current(),
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
                Ok(Ok(in_pool)) => Place { _in_pool: in_pool, _share: share.clone() },
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
        Connections { busy, idle: self.idle().len(), limit: self.shared.limit }
    }

    /// Admits no new work, waits for the work in progress, and closes all connections.
    pub async fn close(&self) {
        let all = u32::try_from(self.shared.limit).unwrap_or(u32::MAX);
        if let Ok(places) = self.shared.places.acquire_many(all).await {
            self.shared.places.close();
            places.forget();
        }
        let idle = std::mem::take(&mut *self.idle());
        for (connection, _) in idle {
            // A clean goodbye is optional; the socket closes either way.
            let _ = connection.close().await;
        }
    }

    /// A connection for the next attempt, idle or new.
    async fn lease(&self, place: Place, retry: &RetryState) -> sqlx::Result<Lease> {
        // An unwanted idle connection is closed, so that the number of connections never exceeds the limit.
        let idle = self.take_idle().filter(|_| !retry.fresh);
        let place = match idle {
            Some((connection, idle_for)) => {
                let mut lease = self.lend(connection, place);
                if !retry.must_become_known() || idle_for < SURELY_ALIVE || self.answers(&mut lease).await {
                    return Ok(lease);
                }
                // The other idle connections have probably died, too.
                self.idle().clear();
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
        Lease { connection: Some(connection), place: Some(place), pool: self.clone(), attempt_ends: None }
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

    /// Reads the rest of an answer whose request has gone, then returns the connection to the idle ones. Until then it
    /// keeps its permits. A connection that has not answered by `ends` is closed.
    ///
    /// Dropping an sqlx future in the middle of a statement is sound: sqlx writes whole messages to a buffer before it
    /// waits, counts the pending answers, and reads them all before it sends the next statement. See ADR 0020.
    fn finish(&self, mut connection: PgConnection, place: Option<Place>, ends: Instant) {
        let pool = self.clone();
        self.shared.runtime.spawn(async move {
            // An error answer ends the ping early; the next ping reads the rest.
            for _ in 0..2 {
                match timeout_at(ends, connection.ping()).await {
                    Ok(Ok(())) => return pool.put_back(connection),
                    Ok(Err(error)) if Failure::of(&error).leaves_a_session() => {}
                    _ => break,
                }
            }
            drop((connection, place));
        });
    }

    /// Opens a connection in a task of its own. If the request has gone by then, the connection becomes idle for the
    /// next one.
    async fn open(&self, place: Place) -> sqlx::Result<(PgConnection, Place)> {
        let (hand_over, opened) = oneshot::channel();
        let pool = self.clone();
        self.shared.runtime.spawn(async move {
            let opening = connect(&pool.shared.settings).await.map(|connection| (connection, place));
            if opening.is_err() {
                pool.shared.breaker.record_failure();
                pool.shared.metrics.count_database_retry(Retry::Connect);
            }
            if let Err(Ok((connection, _place))) = hand_over.send(opening) {
                pool.put_back(connection);
            }
        });
        opened.await.map_err(|_| sqlx::Error::WorkerCrashed)?
    }

    /// The most recently used connection, and how long it has been idle.
    fn take_idle(&self) -> Option<(PgConnection, Duration)> {
        let mut idle = self.idle();
        let (connection, since) = idle.pop()?;
        let idle_for = since.elapsed();
        if idle_for < IDLE_MAX {
            return Some((connection, idle_for));
        }
        // All others have been idle for longer.
        idle.clear();
        None
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
        self.idle().clear();
        tracing::info!(error = words(error), "a connection failed; retrying on another");
    }

    fn shares_sessions(&self) -> bool {
        self.shared.settings.pooler == Pooler::Transaction
    }

    fn put_back(&self, connection: PgConnection) {
        self.idle().push((connection, Instant::now()));
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(PgConnection, Instant)>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Lease {
    fn release(mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.put_back(connection);
        }
    }

    /// Closes the connection. Returns its permits for another one.
    fn close(mut self) -> Option<Place> {
        self.connection = None;
        self.place.take()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(connection), Some(ends)) = (self.connection.take(), self.attempt_ends) {
            self.pool.finish(connection, self.place.take(), ends);
        }
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("only release and close take it, and they consume the lease")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("only release and close take it, and they consume the lease")
    }
}

/// Allowance for the network, on top of PostgreSQL's own statement timeout.
const ATTEMPT_GRACE: Duration = Duration::from_millis(500);
/// A connection that has been idle for less is used without a ping. Under load no connection is idle for as long, so
/// nothing is slower there; a single request pays one round trip.
const SURELY_ALIVE: Duration = Duration::from_millis(10);
/// Shorter than the time after which any network drops a silent flow.
const IDLE_MAX: Duration = Duration::from_secs(60);
