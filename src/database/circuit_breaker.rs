//! The circuit breaker of a connection pool.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Opens once the database has been unreachable for longer than `acquire_timeout`. While it is open, requests fail
/// immediately, except for one attempt per [`PROBE_INTERVAL`]. No background task is needed to see the database return.
pub struct CircuitBreaker {
    pool: &'static str,
    acquire_timeout: Duration,
    /// How long the last failure counts. After that the state of the database is unknown, because nothing has tried
    /// since.
    memory: Duration,
    /// Whether `state` is set: the last attempt failed. The breaker may still be closed. Saves requests the lock while
    /// no attempt fails.
    on: AtomicBool,
    state: Mutex<Option<CircuitState>>,
}

struct CircuitState {
    /// When the present series of failures began.
    since: Instant,
    last_failure: Instant,
    next_probe: Instant,
    /// Whether the log says that the breaker is open. The first request that finds it open logs that.
    announced: bool,
}

impl CircuitState {
    /// Whether the breaker is open: the failures have lasted longer than `acquire_timeout`, and the last one is recent.
    fn is_open(&self, acquire_timeout: Duration, memory: Duration) -> bool {
        self.since.elapsed() > acquire_timeout && self.last_failure.elapsed() <= memory
    }
}

/// Time between two attempts while the breaker is open: short enough to see the database return within a second, with
/// room for a slow connection.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

impl CircuitBreaker {
    /// `attempt`: the longest time an attempt to connect may take.
    pub fn new(pool: &'static str, acquire_timeout: Duration, attempt: Duration) -> Self {
        let memory = attempt + PROBE_INTERVAL * 4;
        Self { pool, acquire_timeout, memory, on: AtomicBool::default(), state: Mutex::default() }
    }

    /// Records a failed attempt to reach the database.
    pub fn record_failure(&self) {
        let now = Instant::now();
        let mut state = self.state();
        match &mut *state {
            Some(state) if state.last_failure.elapsed() <= self.memory => state.last_failure = now,
            other => *other = Some(CircuitState { since: now, last_failure: now, next_probe: now, announced: false }),
        }
        self.on.store(true, Ordering::Release);
    }

    /// Closes the breaker, because the database has answered.
    pub fn close(&self) {
        if self.on.load(Ordering::Acquire) {
            let mut state = self.state();
            if let Some(CircuitState { since, announced: true, .. }) = *state {
                tracing::info!(pool = self.pool, after = ?since.elapsed(), "the database is reachable again");
            }
            *state = None;
            self.on.store(false, Ordering::Release);
        }
    }

    /// Whether the last attempt failed. The breaker may still be closed.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Whether the breaker is open. Unlike [`CircuitBreaker::admits`], this does not use up the next attempt.
    pub fn is_open(&self) -> bool {
        self.is_on() && self.state().as_ref().is_some_and(|state| state.is_open(self.acquire_timeout, self.memory))
    }

    /// Whether a request may try: always while the breaker is closed, else one request per [`PROBE_INTERVAL`].
    pub fn admits(&self) -> bool {
        if !self.on.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.state();
        let Some(state) = &mut *state else { return true };
        if !state.is_open(self.acquire_timeout, self.memory) {
            return true;
        }
        if !state.announced {
            tracing::warn!(
                pool = self.pool,
                "the database is unreachable; requests get 503 until it is reachable again"
            );
            state.announced = true;
        }
        let now = Instant::now();
        let due = now >= state.next_probe;
        if due {
            state.next_probe = now + PROBE_INTERVAL;
        }
        due
    }

    fn state(&self) -> MutexGuard<'_, Option<CircuitState>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);

    /// An open breaker, with an attempt made whenever one was allowed.
    async fn open_breaker() -> CircuitBreaker {
        let breaker = CircuitBreaker::new("some", ACQUIRE_TIMEOUT, Duration::from_secs(1));
        breaker.record_failure();
        assert!((0..9).all(|_| breaker.admits()), "requests wait during a short outage");
        for _ in 0..5 {
            advance(PROBE_INTERVAL).await;
            breaker.record_failure();
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_admits_one_attempt_per_interval() {
        let breaker = open_breaker().await;
        assert!(breaker.is_open());
        assert_eq!((0..9).filter(|_| breaker.admits()).count(), 1);
        advance(PROBE_INTERVAL).await;
        assert!(breaker.admits() && !breaker.admits());
        breaker.close();
        assert!((0..9).all(|_| breaker.admits()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_failure_refuses_no_request() {
        let breaker = open_breaker().await;
        advance(Duration::from_secs(60)).await;
        assert!((0..9).all(|_| breaker.admits()) && !breaker.is_open(), "the outage may be over");
        breaker.record_failure();
        assert!((0..9).all(|_| breaker.admits()), "a new failure starts a new outage");
    }
}
