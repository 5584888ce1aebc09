//! Events that other replicas have not been told of yet.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Event;
use super::payload::Counted;
use crate::ids::TenantId;
use crate::metrics::{Metrics, Notified};

/// A bounded set of events. Requests put events in, and one task takes them out. An event that does not fit is left out:
/// the requests that wait for it find it by their next look.
pub struct Outbox {
    pending: Mutex<Pending>,
    filled: Notify,
    metrics: Metrics,
}

#[derive(Default)]
struct Pending {
    /// How often each has happened.
    events: HashMap<Event, u8>,
    /// The number of different events of each tenant.
    by_tenant: HashMap<TenantId, usize>,
}

/// About 37 KB in five payloads. At one statement each 5 ms, far more than a replica can commit.
const EVENTS_MAX: usize = 2048;
/// The share of one tenant, so that names of queues without end do not take the places of others.
const EVENTS_PER_TENANT_MAX: usize = 256;

impl Outbox {
    pub fn new(metrics: Metrics) -> Self {
        Self { pending: Mutex::default(), filled: Notify::new(), metrics }
    }

    pub fn put(&self, tenant: TenantId, event: Event) {
        let mut pending = self.pending();
        let was_empty = pending.events.is_empty();
        let fits = pending.put(tenant, event);
        drop(pending);
        if !fits {
            self.metrics.count_notified(Notified::Dropped, 1);
        } else if was_empty {
            self.filled.notify_one();
        }
    }

    /// Returns once there are events. Only one task may wait.
    pub async fn filled(&self) {
        while self.pending().events.is_empty() {
            self.filled.notified().await;
        }
    }

    pub fn take(&self) -> Vec<Counted> {
        let mut pending = self.pending();
        pending.by_tenant.clear();
        pending.events.drain().collect()
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Returns whether the event fits.
    fn put(&mut self, tenant: TenantId, event: Event) -> bool {
        let is_full = self.events.len() >= EVENTS_MAX;
        match self.events.entry(event) {
            Entry::Occupied(mut count) => *count.get_mut() = count.get().saturating_add(1),
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(place) => {
                let of_tenant = self.by_tenant.entry(tenant).or_default();
                if *of_tenant >= EVENTS_PER_TENANT_MAX {
                    return false;
                }
                *of_tenant += 1;
                place.insert(1);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use uuid::Uuid;

    use super::*;

    fn outbox() -> Outbox {
        Outbox::new(Metrics::new())
    }

    fn tenant(number: u128) -> TenantId {
        TenantId(Uuid::from_u128(number))
    }

    fn put_many(outbox: &Outbox, tenant: TenantId, events: usize) {
        (0..events).for_each(|n| outbox.put(tenant, Event::job_queued(tenant, &n.to_string())));
    }

    #[test]
    fn equal_events_become_one_with_a_count() {
        let (outbox, [a, b]) = (outbox(), ["a", "b"].map(|queue| Event::job_queued(tenant(1), queue)));
        for event in [a, b, a] {
            outbox.put(tenant(1), event);
        }
        let mut taken = outbox.take();
        taken.sort_unstable_by_key(|(_, count)| *count);
        assert_eq!(taken, [(b, 1), (a, 2)]);
        assert!(outbox.take().is_empty());
        (0..300).for_each(|_| outbox.put(tenant(1), a));
        assert_eq!(outbox.take(), [(a, 255)]);
    }

    #[test]
    fn a_tenant_with_many_queues_leaves_room_for_the_events_of_others() {
        let outbox = outbox();
        put_many(&outbox, tenant(1), 100_000);
        let other = Event::job_queued(tenant(2), "a");
        outbox.put(tenant(2), other);
        let taken = outbox.take();
        assert!(taken.contains(&(other, 1)));
        assert_eq!(taken.len(), EVENTS_PER_TENANT_MAX + 1);
        // What was taken makes room.
        put_many(&outbox, tenant(1), 100_000);
        assert_eq!(outbox.take().len(), EVENTS_PER_TENANT_MAX);
    }

    #[test]
    fn many_tenants_fill_no_more_than_the_bound_and_the_rest_is_counted_as_dropped() {
        let outbox = outbox();
        for number in 0..20 {
            put_many(&outbox, tenant(number), EVENTS_PER_TENANT_MAX);
        }
        // An event that is in the set already still fits.
        outbox.put(tenant(0), Event::job_queued(tenant(0), "0"));
        assert!(outbox.pending().by_tenant.len() <= EVENTS_MAX / EVENTS_PER_TENANT_MAX + 1);
        assert_eq!(outbox.take().len(), EVENTS_MAX);
        let dropped = 20 * EVENTS_PER_TENANT_MAX - EVENTS_MAX;
        let metrics = outbox.metrics.encode();
        assert!(
            metrics.contains(&format!("hapax_notified_events_total{{result=\"dropped\"}} {dropped}\n")),
            "{metrics}"
        );
    }

    #[tokio::test]
    async fn the_task_learns_of_events_once_and_also_after_a_wait_that_it_gave_up() {
        let outbox = outbox();
        assert!(poll!(Box::pin(outbox.filled())).is_pending());
        put_many(&outbox, tenant(1), 2);
        for _ in 0..2 {
            assert!(poll!(Box::pin(outbox.filled())).is_ready());
        }
        outbox.take();
        assert!(poll!(Box::pin(outbox.filled())).is_pending());
    }
}
