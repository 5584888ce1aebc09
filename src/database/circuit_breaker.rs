//! That the database is away, and who looks whether it is back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A circuit breaker. Once the database has been away for as long as a request would wait, none waits any more; now
/// and then one of them tries, so its return is seen without anything running in the background.
pub struct CircuitBreaker {
    pool: &'static str,
    acquire_timeout: Duration,
    /// How long the last failure counts: nobody may have tried since, and so nobody knows.
    memory: Duration,
    /// Whether there is anything to look at, so that a request does not take the lock when all is well.
    on: AtomicBool,
    state: Mutex<Option<CircuitState>>,
}

struct CircuitState {
    since: Instant,
    last_failure: Instant,
    next_look: Instant,
    announced: bool,
}

impl CircuitState {
    fn has_lasted(&self, acquire_timeout: Duration, memory: Duration) -> bool {
        self.since.elapsed() > acquire_timeout && self.last_failure.elapsed() <= memory
    }
}

/// How often one may try: soon enough for the return to be seen within a second, with room for a slow connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

impl CircuitBreaker {
    /// `attempt`: the longest that an attempt to connect may take.
    pub fn new(pool: &'static str, acquire_timeout: Duration, attempt: Duration) -> Self {
        let memory = attempt + LOOK_INTERVAL * 4;
        Self { pool, acquire_timeout, memory, on: AtomicBool::default(), state: Mutex::default() }
    }

    /// An attempt to reach the database has failed.
    pub fn record_failure(&self) {
        let now = Instant::now();
        let mut state = self.state();
        match &mut *state {
            Some(state) if state.last_failure.elapsed() <= self.memory => state.last_failure = now,
            other => *other = Some(CircuitState { since: now, last_failure: now, next_look: now, announced: false }),
        }
        self.on.store(true, Ordering::Release);
    }

    pub fn close(&self) {
        if self.on.load(Ordering::Acquire) {
            let mut state = self.state();
            if let Some(CircuitState { since, announced: true, .. }) = *state {
                tracing::info!(pool = self.pool, after = ?since.elapsed(), "the database is back");
            }
            *state = None;
            self.on.store(false, Ordering::Release);
        }
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Whether [`CircuitBreaker::admits`] would refuse all but one request in a while. Unlike it, this takes nobody's turn.
    pub fn has_lasted(&self) -> bool {
        self.is_on() && self.state().as_ref().is_some_and(|state| state.has_lasted(self.acquire_timeout, self.memory))
    }

    /// Whether a request may try: always while the outage is young, or has not been looked at for long; else one each
    /// [`LOOK_INTERVAL`].
    pub fn admits(&self) -> bool {
        if !self.on.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.state();
        let Some(state) = &mut *state else { return true };
        if !state.has_lasted(self.acquire_timeout, self.memory) {
            return true;
        }
        if !state.announced {
            tracing::warn!(pool = self.pool, "the database is away; requests are refused at once until it is back");
            state.announced = true;
        }
        let now = Instant::now();
        let due = now >= state.next_look;
        if due {
            state.next_look = now + LOOK_INTERVAL;
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

    /// As after some time in which somebody looked whenever it was allowed.
    async fn that_has_lasted() -> CircuitBreaker {
        let breaker = CircuitBreaker::new("some", ACQUIRE_TIMEOUT, Duration::from_secs(1));
        breaker.record_failure();
        assert!((0..9).all(|_| breaker.admits()), "a young outage is waited out");
        for _ in 0..5 {
            advance(LOOK_INTERVAL).await;
            breaker.record_failure();
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_has_lasted_one_in_a_while_looks_and_the_others_do_not_wait() {
        let breaker = that_has_lasted().await;
        assert!(breaker.has_lasted());
        assert_eq!((0..9).filter(|_| breaker.admits()).count(), 1);
        advance(LOOK_INTERVAL).await;
        assert!(breaker.admits() && !breaker.admits());
        breaker.close();
        assert!((0..9).all(|_| breaker.admits()));
    }

    #[tokio::test(start_paused = true)]
    async fn when_nobody_has_looked_for_long_nobody_is_refused() {
        let breaker = that_has_lasted().await;
        advance(Duration::from_secs(60)).await;
        assert!((0..9).all(|_| breaker.admits()) && !breaker.has_lasted(), "it may have ended long ago");
        breaker.record_failure();
        assert!((0..9).all(|_| breaker.admits()), "and if not, it is a young one");
    }
}
