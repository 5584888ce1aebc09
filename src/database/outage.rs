//! That the database is away, and who looks whether it is back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A circuit breaker. Once the database has been away for as long as a request would wait, none waits any more; now
/// and then one of them tries, so its return is seen without anything running in the background.
#[derive(Default)]
pub struct Outage {
    /// Whether there is anything to look at, so that a request does not take the lock when all is well.
    on: AtomicBool,
    course: Mutex<Option<Course>>,
}

struct Course {
    since: Instant,
    next_look: Instant,
}

/// How often one may try: soon enough for the return to be seen within a second, with room for a slow connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

impl Outage {
    pub fn start(&self) {
        let now = Instant::now();
        let mut course = self.course();
        course.get_or_insert(Course { since: now, next_look: now });
        self.on.store(true, Ordering::Release);
    }

    pub fn end(&self) {
        if self.on.load(Ordering::Acquire) {
            let mut course = self.course();
            *course = None;
            self.on.store(false, Ordering::Release);
        }
    }

    /// Whether a request may try: always while the outage is younger than `patience`, then one each
    /// [`LOOK_INTERVAL`].
    pub fn admits(&self, patience: Duration) -> bool {
        if !self.on.load(Ordering::Acquire) {
            return true;
        }
        match &mut *self.course() {
            Some(course) if course.since.elapsed() > patience => {
                let now = Instant::now();
                let due = now >= course.next_look;
                if due {
                    course.next_look = now + LOOK_INTERVAL;
                }
                due
            }
            _ => true,
        }
    }

    fn course(&self) -> MutexGuard<'_, Option<Course>> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn when_it_has_lasted_one_in_a_while_looks_and_the_others_do_not_wait() {
        let (outage, patience) = (Outage::default(), Duration::from_secs(1));
        outage.start();
        assert!((0..9).all(|_| outage.admits(patience)), "a young outage is waited out");
        tokio::time::advance(patience + LOOK_INTERVAL).await;
        outage.start();
        let admitted = (0..9).filter(|_| outage.admits(patience)).count();
        assert_eq!(admitted, 1, "beginning again does not make it young");
        tokio::time::advance(LOOK_INTERVAL).await;
        assert!(outage.admits(patience) && !outage.admits(patience));
        outage.end();
        assert!((0..9).all(|_| outage.admits(patience)));
    }
}
