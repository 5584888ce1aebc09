//! A bounded set of connections, and the one way to send a statement.

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
use crate::metrics::{Connections, Metrics, Retry};

/// A bounded number of connections, opened when needed.
///
/// Not `sqlx::PgPool`, because of three things that were measured on it: it pings on every release, which doubles
/// the round trips of a one-statement request; a future that is dropped may return its connection in the middle of a
/// statement; and a ping on a black-holed connection holds its place forever. See ADR 0004.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    /// What metrics call it.
    name: &'static str,
    settings: Settings,
    limit: usize,
    places: Arc<Semaphore>,
    /// With the time since when. Last in, first out: what is used stays warm.
    idle: Mutex<Vec<(PgConnection, Instant)>>,
    /// How long one attempt may take: a little longer than PostgreSQL itself lets a statement run.
    attempt_limit: Duration,
    breaker: CircuitBreaker,
    /// Connections live on the runtime that outlives every HTTP worker.
    runtime: Handle,
    metrics: Metrics,
}

/// What a connection in use takes from the others, until it is idle or closed, whatever becomes of its request.
struct Place {
    _in_pool: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// A tenant's share of the connections of a pool, while a request uses a part of it.
pub(super) type Share = Arc<OwnedSemaphorePermit>;

/// A connection on loan, with its place. [`Lease::release`] returns it, [`Lease::close`] closes it. A lease that is
/// dropped while a statement is under way, because its request ran out of time, lets the statement finish first: see
/// [`Pool::finish`].
struct Lease {
    connection: Option<PgConnection>,
    place: Option<Place>,
    pool: Pool,
    /// By when the statement under way must have ended. `None` before the first statement.
    attempt_ends: Option<Instant>,
}

impl Pool {
    /// Opens nothing yet. Must be called on the runtime that the connections shall live on.
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

    /// Runs `work` on a connection, and all of it again on another when the first was lost. So it must be one statement
    /// that may be repeated, such as a write that recognises its own earlier attempt. Once an attempt was lost it goes on
    /// until it knows.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest; after `Settings::acquire_timeout` if no attempt could even begin.
    pub async fn complete<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnMut(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, DatabaseError> {
        self.run(self.retry(Loss::MustBecomeKnown, deadline), None, work).await
    }

    /// The same for what only reads, several statements maybe: an attempt that is lost leaves nothing unknown.
    ///
    /// # Errors
    /// As [`Pool::complete`], but never [`DatabaseError::Unknown`].
    pub async fn read<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnMut(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, DatabaseError> {
        self.run(self.retry(Loss::ChangesNothing, deadline), None, work).await
    }

    pub(super) fn retry(&self, loss: Loss, deadline: Instant) -> RetryState {
        RetryState::of(loss, deadline, self.shared.settings.acquire_timeout)
    }

    /// `share`: what the connections of this call take from their tenant's share.
    pub(super) async fn run<T>(
        &self,
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
            let attempt_ends = Instant::now() + self.shared.attempt_limit;
            lease.attempt_ends = Some(attempt_ends);
            let error = match timeout_at(attempt_ends.min(retry.deadline()), work(&mut lease)).await {
                Ok(Ok(done)) => {
                    self.shared.breaker.close();
                    lease.release();
                    return Ok(done);
                }
                Ok(Err(error)) => error,
                // The caller has no more time. The connection is sound for all we know, and finishes without the caller.
                Err(_) if Instant::now() < attempt_ends => {
                    retry.lose_attempt();
                    retry.fail("no answer came in time");
                    break;
                }
                // PostgreSQL would have ended the statement itself by now: nobody is there.
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

    /// Whether the last that was seen of the database is that it is not there.
    pub fn is_away(&self) -> bool {
        self.shared.breaker.is_on()
    }

    /// Whether the database has been away for so long that requests are refused at once, but for one now and then.
    pub fn refuses(&self) -> bool {
        self.shared.breaker.has_lasted()
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
        for (connection, _) in idle {
            // Saying goodbye is a courtesy; the socket closes either way.
            let _ = connection.close().await;
        }
    }

    /// A connection for the next attempt, idle or new.
    async fn lease(&self, place: Place, retry: &RetryState) -> sqlx::Result<Lease> {
        // One that is not wanted is closed, not left: there are never more than there are places.
        let idle = self.take_idle().filter(|_| !retry.fresh);
        let place = match idle {
            Some((connection, idle_for)) => {
                let mut lease = self.lend(connection, place);
                if !retry.must_become_known() || idle_for < SURELY_ALIVE || self.answers(&mut lease).await {
                    return Ok(lease);
                }
                // What has happened to one connection has probably happened to all.
                self.idle().clear();
                self.shared.metrics.count_database_retry(Retry::Connect);
                tracing::info!("a connection had died while it was idle; nothing was sent on it");
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

    /// Whether the other end of an idle connection is there. sqlx cannot be asked whether a socket has been closed, so
    /// this costs a round trip.
    async fn answers(&self, lease: &mut Lease) -> bool {
        // To open a connection takes two round trips at least. Where one takes longer than half of that, none can be had.
        let ends = Instant::now() + self.shared.settings.connect_timeout / 2;
        lease.attempt_ends = Some(ends);
        let answered = matches!(timeout_at(ends, lease.ping()).await, Ok(Ok(())));
        lease.attempt_ends = None;
        answered
    }

    /// Reads the rest of the answer to a statement whose request has gone, and returns the connection to the idle ones.
    /// Until then it keeps its place. One that has not answered when the attempt ends is closed.
    ///
    /// To drop a future of sqlx in the middle of a statement is sound: it writes whole messages to a buffer before it
    /// waits, counts the answers that are due, and reads them all before it sends the next statement. ADR 0020.
    fn finish(&self, mut connection: PgConnection, place: Option<Place>, ends: Instant) {
        let pool = self.clone();
        self.shared.runtime.spawn(async move {
            // An answer that is an error ends a ping early; the next one reads what is left.
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

    /// Opens a connection, with its place: whoever waits for it may be gone before it is open, and the next one has it.
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

    /// The connection that was used last, and for how long it has been idle.
    fn take_idle(&self) -> Option<(PgConnection, Duration)> {
        let mut idle = self.idle();
        let (connection, since) = idle.pop()?;
        let idle_for = since.elapsed();
        if idle_for < IDLE_MAX {
            return Some((connection, idle_for));
        }
        // The others have been idle for longer still.
        idle.clear();
        None
    }

    /// Keeps the connection or closes it, by `ends` at the latest, and counts what made the work start over.
    async fn settle(&self, mut lease: Lease, failure: &Failure, error: &sqlx::Error, ends: Instant) {
        if !matches!(failure, Failure::Lost | Failure::Away | Failure::ReadOnly) {
            // It was there to say so.
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
            // Closing our end leaves the session to the pooler, which would give it to us again.
            lease.attempt_ends = None;
            let _ended = timeout_at(ends, queries::end_session(&mut lease)).await;
        }
        lease.close();
        // What has happened to one connection has probably happened to all.
        self.idle().clear();
        tracing::info!(error = words(error), "a connection is of no more use; starting over on another");
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
    /// For tests in which nothing is sent.
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

    /// Closes the connection; its place is left for another.
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

/// On top of PostgreSQL's own limit: the way there and back.
const ATTEMPT_GRACE: Duration = Duration::from_millis(500);
/// A connection that has been idle for less is used without a look whether it is alive. Under load none is idle for as
/// long, so nothing is slower there; a request that comes alone pays a round trip.
const SURELY_ALIVE: Duration = Duration::from_millis(10);
/// Shorter than any network forgets a flow that is silent.
const IDLE_MAX: Duration = Duration::from_secs(60);
