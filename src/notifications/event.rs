//! What a request can wait for.

use sha2::{Digest, Sha256};

use crate::ids::{JobId, TenantId};

/// A hash of what happened. Requests wait for hashes, so a replica needs neither names nor ids to wake them.
///
/// Two events with the same hash would only cost a look in the database. SHA-256 instead of a faster hash, so that a
/// tenant cannot choose names of queues that wake the requests of another tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub(super) [u8; Event::LENGTH]);

impl Event {
    pub(super) const LENGTH: usize = 8;

    /// A job was put into this queue.
    pub fn job_queued(tenant: TenantId, queue: &str) -> Self {
        Self::of(b'q', tenant, queue.as_bytes())
    }

    /// This job has ended.
    pub fn job_finished(tenant: TenantId, id: JobId) -> Self {
        Self::of(b'f', tenant, id.0.as_bytes())
    }

    /// Replicas of different releases must agree on it.
    fn of(kind: u8, tenant: TenantId, name: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update([kind]);
        hash.update(tenant.0.as_bytes());
        hash.update(name);
        let digest: [u8; 32] = hash.finalize().into();
        let (first, _) = digest.split_first_chunk().expect("the digest is longer");
        Self(*first)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_event_has_the_same_hash_in_every_release() {
        let (tenant, id) = (TenantId(Uuid::from_u128(1)), JobId(Uuid::from_u128(2)));
        let hash = |event: Event| hex::encode(event.0);
        assert_eq!(hash(Event::job_queued(tenant, "default")), "5155d96f58dbd29c");
        assert_eq!(hash(Event::job_finished(tenant, id)), "37952520f5dd786d");
    }

    #[test]
    fn queues_of_two_tenants_and_ends_of_jobs_are_different_events() {
        let (one, other, id) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)), JobId(Uuid::from_u128(2)));
        let event = Event::job_queued(one, "a");
        for different in [Event::job_queued(other, "a"), Event::job_queued(one, "b"), Event::job_finished(one, id)] {
            assert_ne!(event, different);
        }
    }
}
