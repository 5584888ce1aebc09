//! Wakes requests that wait for an event, such as a job in a queue or the end of a job.
//!
//! Within one replica. A waiter must also look again from time to time, because another replica may cause the event.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::Notify;

/// Waiters, by what they wait for.
pub struct Wakeups<K: Hash + Eq + Clone> {
    waiting: Mutex<Waiting<K>>,
    /// The number of registered waiters. Usually there is none, and an event then costs one look at this.
    registered: AtomicUsize,
}

struct Waiting<K> {
    waiters: HashMap<K, Vec<Arc<Notify>>>,
    closed: bool,
}

/// A registered waiter. Register before looking, so that no event between the look and the wait is missed.
pub struct Waiter<'a, K: Hash + Eq + Clone> {
    wakeups: &'a Wakeups<K>,
    events: Vec<K>,
    woken: Arc<Notify>,
}

impl<K: Hash + Eq + Clone> Default for Wakeups<K> {
    fn default() -> Self {
        let waiting = Mutex::new(Waiting { waiters: HashMap::new(), closed: false });
        Self { waiting, registered: AtomicUsize::new(0) }
    }
}

impl<K: Hash + Eq + Clone> Wakeups<K> {
    /// Registers a waiter for any of the events.
    pub fn register(&self, events: Vec<K>) -> Waiter<'_, K> {
        let woken = Arc::new(Notify::new());
        self.registered.fetch_add(1, Ordering::SeqCst);
        let mut waiting = self.waiting();
        for event in &events {
            waiting.waiters.entry(event.clone()).or_default().push(Arc::clone(&woken));
        }
        if waiting.closed {
            woken.notify_one();
        }
        drop(waiting);
        Waiter { wakeups: self, events, woken }
    }

    /// Wakes up to `count` waiters, those that have waited longest first.
    pub fn wake(&self, event: impl FnOnce() -> K, count: usize) {
        if self.registered.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut waiting = self.waiting();
        let Entry::Occupied(mut waiters) = waiting.waiters.entry(event()) else { return };
        let first = count.min(waiters.get().len());
        waiters.get_mut().drain(..first).for_each(|woken| woken.notify_one());
        if waiters.get().is_empty() {
            waiters.remove();
        }
    }

    /// Wakes all waiters, whatever they wait for.
    pub fn wake_all(&self) {
        self.waiting().wake_all();
    }

    /// Wakes all waiters. From now on no waiter waits.
    pub fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.wake_all();
    }

    pub fn is_closed(&self) -> bool {
        self.waiting().closed
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<K>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Waiting<K> {
    fn wake_all(&mut self) {
        self.waiters.drain().flat_map(|(_, waiters)| waiters).for_each(|woken| woken.notify_one());
    }
}

impl<K: Hash + Eq + Clone> Waiter<'_, K> {
    /// Returns once an event has happened since the registration.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

impl<K: Hash + Eq + Clone> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        self.wakeups.registered.fetch_sub(1, Ordering::SeqCst);
        let mut waiting = self.wakeups.waiting();
        // Woken, but it did not notice: its client had gone, or its time was up. The event goes to the next waiter.
        let passes_on = self.woken.notified().now_or_never().is_some();
        for event in &self.events {
            if let Entry::Occupied(mut waiters) = waiting.waiters.entry(event.clone()) {
                let registered = waiters.get().len();
                waiters.get_mut().retain(|woken| !Arc::ptr_eq(woken, &self.woken));
                let was_woken_by_it = waiters.get().len() == registered;
                if passes_on && was_woken_by_it {
                    waiters.get_mut().remove(0).notify_one();
                }
                if waiters.get().is_empty() {
                    waiters.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn an_event_wakes_as_many_waiters_as_it_can_serve_and_the_oldest_first() {
        let wakeups = Wakeups::default();
        let [first, second, other] = [vec!["a", "b"], vec!["a"], vec!["c"]].map(|events| wakeups.register(events));
        wakeups.wake(|| "a", 1);
        assert!(poll!(Box::pin(first.woken())).is_ready());
        for waiter in [&second, &other] {
            assert!(poll!(Box::pin(waiter.woken())).is_pending());
        }
        wakeups.wake(|| "a", 5);
        assert!(poll!(Box::pin(second.woken())).is_ready());
    }

    #[tokio::test]
    async fn an_event_after_the_registration_is_not_missed_and_one_before_it_is_not_seen() {
        let wakeups = Wakeups::default();
        wakeups.wake(|| "a", 1);
        let waiter = wakeups.register(vec!["a"]);
        assert!(poll!(Box::pin(waiter.woken())).is_pending());
        wakeups.wake(|| "a", 1);
        assert!(poll!(Box::pin(waiter.woken())).is_ready());
    }

    #[tokio::test]
    async fn all_waiters_can_be_woken_and_later_ones_wait() {
        let wakeups = Wakeups::default();
        let waiters = [vec!["a", "b"], vec!["c"]].map(|events| wakeups.register(events));
        wakeups.wake_all();
        for waiter in &waiters {
            assert!(poll!(Box::pin(waiter.woken())).is_ready());
        }
        let later = wakeups.register(vec!["a"]);
        assert!(poll!(Box::pin(later.woken())).is_pending());
    }

    #[tokio::test]
    async fn an_event_that_a_waiter_did_not_notice_goes_to_the_next_one() {
        let wakeups = Wakeups::default();
        let [first, second, other] = [vec!["b", "a"], vec!["a"], vec!["b"]].map(|events| wakeups.register(events));
        wakeups.wake(|| "a", 1);
        drop(first);
        assert!(poll!(Box::pin(second.woken())).is_ready());
        assert!(poll!(Box::pin(other.woken())).is_pending());
        drop(second);
        assert!(poll!(Box::pin(other.woken())).is_pending());
    }

    #[tokio::test]
    async fn after_the_close_nobody_waits_and_nothing_is_kept() {
        let wakeups = Wakeups::default();
        let waiter = wakeups.register(vec!["a"]);
        wakeups.close();
        assert!(poll!(Box::pin(waiter.woken())).is_ready());
        assert!(poll!(Box::pin(wakeups.register(vec!["a"]).woken())).is_ready());
        drop(waiter);
        assert!(wakeups.waiting().waiters.is_empty());
    }
}
