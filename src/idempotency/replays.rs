//! The replay cache, so that most replays do not touch the database.
//!
//! A committed outcome does not change until it expires, so a cached copy stays correct whatever the other replicas do.
//! Uncommitted outcomes are never cached.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle, PlaceholderGuard};

use super::clock::Moment;
use super::{Fingerprint, Outcome, ScopedKey};
use crate::metrics::{Metrics, Recall};
use crate::overload::Usage;

/// The replay cache. Its size in bytes is bounded.
pub struct Replays {
    outcomes: Outcomes,
    limit_bytes: u64,
    metrics: Metrics,
}

type Outcomes = Cache<ScopedKey, Remembered, Weight>;

/// The result of a cache look-up.
pub enum CacheLookup<'a> {
    Outcome(Arc<Outcome>),
    /// No outcome. Copies that arrive now wait until the leader ends or is dropped.
    Nothing(Leader<'a>),
}

/// Of several requests with the same idempotency key, the one that asks the database. The others wait for its result.
pub struct Leader<'a> {
    guard: PlaceholderGuard<'a, ScopedKey, Remembered, Weight, quick_cache::DefaultHashBuilder, Lifecycle>,
}

type Lifecycle = DefaultLifecycle<ScopedKey, Remembered>;

#[derive(Clone)]
struct Remembered {
    outcome: Arc<Outcome>,
    until: Moment,
}

/// Bytes on the heap, with the overhead of the allocator and the cache.
#[derive(Clone)]
struct Weight;

/// Maximum lifetime of an entry. It limits the effect of mistakes, such as rows removed by hand.
const LIFE_MAX: Duration = Duration::from_secs(600);
/// Allowed drift between two clocks: 1 part in 1000 of the elapsed time. Quartz is ten times better.
const DRIFT: u32 = 1000;
/// Overhead of an entry besides its texts: the structs, its slot in the cache (which grows by doubling), half a slot
/// for the keys that the cache remembers after eviction, and the allocator's rounding. Measured as the growth of a
/// process with a full cache.
const ENTRY_BYTES: u64 = 880;

impl Replays {
    /// With a `limit_bytes` of 0 nothing is cached, but concurrent copies still share the first one's result.
    pub fn new(limit_bytes: u64, metrics: Metrics) -> Self {
        const USUAL_ENTRY_BYTES: u64 = ENTRY_BYTES + 320;
        let entries = usize::try_from(limit_bytes / USUAL_ENTRY_BYTES).unwrap_or(usize::MAX);
        Self { outcomes: Cache::with_weighter(entries, limit_bytes, Weight), limit_bytes, metrics }
    }

    /// The cached outcome of an earlier copy of a request.
    pub fn recall(&self, key: &ScopedKey, fingerprint: &Fingerprint) -> Option<Arc<Outcome>> {
        let Remembered { outcome, until } = self.outcomes.get(key)?;
        if outcome.fingerprint != *fingerprint || until <= Moment::now() {
            return None;
        }
        self.metrics.count_recall(Recall::Remembered);
        Some(outcome)
    }

    /// The outcome of an idempotency key, once an earlier request has found it. If there is none, the caller becomes
    /// the leader.
    pub async fn get_or_lead(&self, key: &ScopedKey) -> CacheLookup<'_> {
        let known = self.get_or_lead_by(key, Moment::now).await;
        self.metrics.count_recall(match &known {
            CacheLookup::Outcome(_) => Recall::Remembered,
            CacheLookup::Nothing(_) => Recall::NotRemembered,
        });
        known
    }

    async fn get_or_lead_by(&self, key: &ScopedKey, now: impl Fn() -> Moment) -> CacheLookup<'_> {
        loop {
            match self.outcomes.get_value_or_guard_async(key).await {
                Ok(remembered) if remembered.lives_at(now()) => return CacheLookup::Outcome(remembered.outcome),
                Ok(_) => drop(self.outcomes.remove_if(key, |remembered| !remembered.lives_at(now()))),
                Err(guard) => return CacheLookup::Nothing(Leader { guard }),
            }
        }
    }

    /// The bytes in use, and the limit.
    pub fn usage(&self) -> Usage {
        let bytes = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        Usage { now: bytes(self.outcomes.weight()), limit: bytes(self.limit_bytes) }
    }
}

impl Leader<'_> {
    /// Caches the outcome and hands it to the waiting copies. `asked` is a moment before PostgreSQL read its own clock
    /// and computed that the outcome has `life` left. So the entry expires early, by one round trip, and never late.
    pub fn end(self, outcome: Arc<Outcome>, asked: Moment, life: Duration) {
        let life = life.min(LIFE_MAX);
        let until = asked.after(life - life / DRIFT);
        // An outcome that does not fit is not cached.
        let _ = self.guard.insert(Remembered { outcome, until });
    }
}

impl Remembered {
    fn lives_at(&self, now: Moment) -> bool {
        now < self.until
    }
}

impl Weighter<ScopedKey, Remembered> for Weight {
    fn weight(&self, key: &ScopedKey, remembered: &Remembered) -> u64 {
        let Outcome { answer, request_id, .. } = &*remembered.outcome;
        let texts = key.key.as_str().len() + answer.body.len() + request_id.as_str().len();
        ENTRY_BYTES + texts as u64
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use futures_util::future::select_all;

    use super::*;
    use crate::idempotency::{Answer, Effect, Key, Route};
    use crate::ids::{JobId, RequestId, TenantId};

    const HOUR: Duration = Duration::from_secs(3600);

    fn key(text: &str) -> ScopedKey {
        let key: Key = text.parse().unwrap();
        ScopedKey { tenant: TenantId(uuid::Uuid::nil()), route: Route("POST /jobs"), key }
    }

    fn outcome(body: String) -> Arc<Outcome> {
        let job_id = JobId::mint(Utc::now());
        Arc::new(Outcome {
            fingerprint: Fingerprint::of("/jobs", "{}"),
            answer: Answer { effect: Effect::Created, job_id, job_version: 1, body: body.into() },
            request_id: RequestId::mint(),
            created_at: Utc::now(),
            expires_at: Utc::now(),
        })
    }

    async fn remember(replays: &Replays, key: &ScopedKey, asked: Moment, life: Duration) {
        match replays.get_or_lead_by(key, || asked).await {
            CacheLookup::Nothing(leader) => leader.end(outcome("{}".to_owned()), asked, life),
            CacheLookup::Outcome(_) => panic!("it is already cached"),
        }
    }

    async fn is_known(replays: &Replays, key: &ScopedKey, at: Moment) -> bool {
        matches!(replays.get_or_lead_by(key, || at).await, CacheLookup::Outcome(_))
    }

    #[tokio::test]
    async fn an_entry_expires_with_its_row_and_after_ten_minutes_at_most() {
        let replays = Replays::new(1 << 20, Metrics::new());
        let asked = Moment::now();
        for (life, last) in [(Duration::from_secs(5), 4.9), (Duration::from_secs(100), 99.8), (HOUR, 599.0)] {
            let key = key(&format!("{life:?}"));
            remember(&replays, &key, asked, life).await;
            assert!(is_known(&replays, &key, asked.after(Duration::from_secs_f64(last))).await, "{life:?}");
            let end = life.min(Duration::from_secs(600));
            let end = asked.after(end - end / (2 * DRIFT));
            assert!(!is_known(&replays, &key, end).await, "{life:?}");
            assert!(!is_known(&replays, &key, asked).await, "an expired entry stays removed");
        }
    }

    #[tokio::test]
    async fn copies_wait_for_the_leader_and_the_next_one_leads_if_it_gives_up() {
        let replays = Replays::new(1 << 20, Metrics::new());
        let key = key("k");
        let CacheLookup::Nothing(first) = replays.get_or_lead(&key).await else { panic!("unexpected entry") };
        let mut copies = [Box::pin(replays.get_or_lead(&key)), Box::pin(replays.get_or_lead(&key))];
        for copy in &mut copies {
            assert!(futures_util::poll!(copy).is_pending());
        }
        drop(first);
        let (turn, _, mut others) = select_all(copies).await;
        let CacheLookup::Nothing(turn) = turn else { panic!("expected to lead") };
        assert!(futures_util::poll!(&mut others[0]).is_pending());
        let found = outcome("{}".to_owned());
        turn.end(Arc::clone(&found), Moment::now(), HOUR);
        assert!(matches!(others.remove(0).await, CacheLookup::Outcome(outcome) if Arc::ptr_eq(&outcome, &found)));
    }

    #[tokio::test]
    async fn waiting_copies_get_an_outcome_that_is_too_large_to_cache() {
        let replays = Replays::new(0, Metrics::new());
        let key = key("k");
        let CacheLookup::Nothing(first) = replays.get_or_lead(&key).await else { panic!("unexpected entry") };
        let mut second = Box::pin(replays.get_or_lead(&key));
        assert!(futures_util::poll!(&mut second).is_pending());
        first.end(outcome("{}".to_owned()), Moment::now(), HOUR);
        assert!(matches!(second.await, CacheLookup::Outcome(_)));
        assert!(!is_known(&replays, &key, Moment::now()).await);
    }

    #[tokio::test]
    async fn the_cache_stays_within_its_limit() {
        let replays = Replays::new(1 << 20, Metrics::new());
        for n in 0..20_000 {
            let CacheLookup::Nothing(leader) = replays.get_or_lead(&key(&format!("key-{n}"))).await else {
                panic!("{n}")
            };
            leader.end(outcome("x".repeat(n % 500)), Moment::now(), HOUR);
        }
        let Usage { now, limit } = replays.usage();
        assert!(now <= limit && now > limit / 2, "{now} of {limit}");
    }

    #[tokio::test]
    async fn an_entry_weighs_at_least_its_body() {
        let replays = Replays::new(1 << 20, Metrics::new());
        let CacheLookup::Nothing(leader) = replays.get_or_lead(&key("k")).await else { panic!("unexpected entry") };
        leader.end(outcome("x".repeat(10_000)), Moment::now(), HOUR);
        let Usage { now, .. } = replays.usage();
        assert!((10_000..11_000).contains(&now), "{now}");
    }
}
