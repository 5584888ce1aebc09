//! Committed outcomes, remembered, so that most replays touch no database.
//!
//! A committed outcome never changes until it expires, so what one replica remembers is right whatever the others do. An
//! outcome that is not committed is never here.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle, PlaceholderGuard};

use super::clock::Moment;
use super::{Fingerprint, Outcome, ScopedKey};
use crate::metrics::{Metrics, Recall, Usage};

/// The replay cache, bounded by bytes.
pub struct Replays {
    outcomes: Outcomes,
    limit_bytes: u64,
    metrics: Metrics,
}

type Outcomes = Cache<ScopedKey, Remembered, Weight>;

/// What the cache has for a key.
pub enum CacheLookup<'a> {
    Outcome(Arc<Outcome>),
    /// Nothing. Copies that arrive now wait until the leader ends or is dropped.
    Nothing(Leader<'a>),
}

/// The one request of several with the same key that asks the database. The others wait for its result.
pub struct Leader<'a> {
    guard: PlaceholderGuard<'a, ScopedKey, Remembered, Weight, quick_cache::DefaultHashBuilder, Lifecycle>,
}

type Lifecycle = DefaultLifecycle<ScopedKey, Remembered>;

#[derive(Clone)]
struct Remembered {
    outcome: Arc<Outcome>,
    until: Moment,
}

/// Bytes on the heap, with what the allocator and the cache itself add.
#[derive(Clone)]
struct Weight;

/// The longest that anything is remembered: the answer to a mistake, such as rows removed by hand, is a short wait.
const LIFE_MAX: Duration = Duration::from_secs(600);
/// By how much two clocks may drift apart, of the time between: one part in so many. Quartz is ten times better.
const DRIFT: u32 = 1000;
/// What an entry takes besides its texts: the structs, its place in the cache, which grows by doubling, half a place more
/// for those that are remembered to have been there, and what the allocator rounds up. Measured, by what a full cache adds
/// to a process.
const ENTRY_BYTES: u64 = 880;

impl Replays {
    /// `limit_bytes` of 0: nothing is remembered, and copies that come at once are answered by the first all the same.
    pub fn new(limit_bytes: u64, metrics: Metrics) -> Self {
        const USUAL_ENTRY_BYTES: u64 = ENTRY_BYTES + 320;
        let entries = usize::try_from(limit_bytes / USUAL_ENTRY_BYTES).unwrap_or(usize::MAX);
        Self { outcomes: Cache::with_weighter(entries, limit_bytes, Weight), limit_bytes, metrics }
    }

    /// The outcome of an earlier copy of a request, if it is remembered.
    pub fn recall(&self, key: &ScopedKey, fingerprint: &Fingerprint) -> Option<Arc<Outcome>> {
        let Remembered { outcome, until } = self.outcomes.get(key)?;
        if outcome.fingerprint != *fingerprint || until <= Moment::now() {
            return None;
        }
        self.metrics.count_recall(Recall::Remembered);
        Some(outcome)
    }

    /// The outcome under a key, as soon as a request that came before has found it out.
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

    /// Bytes that are used, of those that may be.
    pub fn usage(&self) -> Usage {
        let bytes = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        Usage { now: bytes(self.outcomes.weight()), limit: bytes(self.limit_bytes) }
    }
}

impl Leader<'_> {
    /// Remembers what the key stands for, and lets the copies have it. `asked` is a moment before PostgreSQL looked at its
    /// own clock and found that the outcome would live for `life`: so it is forgotten too early by the way there and
    /// back, and never too late.
    pub fn end(self, outcome: Arc<Outcome>, asked: Moment, life: Duration) {
        let life = life.min(LIFE_MAX);
        let until = asked.after(life - life / DRIFT);
        // What does not fit is not remembered.
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
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let texts = key.key.as_str().len()
            + answer.body.len()
            + optional(&answer.location)
            + optional(&answer.etag)
            + request_id.as_str().len();
        ENTRY_BYTES + texts as u64
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use futures_util::future::select_all;

    use super::*;
    use crate::idempotency::{Answer, Key, Route};
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
            answer: Answer { job_id, status: 201, location: None, etag: None, body: body.into() },
            request_id: RequestId::mint(),
            created_at: Utc::now(),
            expires_at: Utc::now(),
        })
    }

    async fn remember(replays: &Replays, key: &ScopedKey, asked: Moment, life: Duration) {
        match replays.get_or_lead_by(key, || asked).await {
            CacheLookup::Nothing(leader) => leader.end(outcome("{}".to_owned()), asked, life),
            CacheLookup::Outcome(_) => panic!("it is known already"),
        }
    }

    async fn is_known(replays: &Replays, key: &ScopedKey, at: Moment) -> bool {
        matches!(replays.get_or_lead_by(key, || at).await, CacheLookup::Outcome(_))
    }

    #[tokio::test]
    async fn nothing_outlives_what_the_database_said_nor_ten_minutes() {
        let replays = Replays::new(1 << 20, Metrics::new());
        let asked = Moment::now();
        for (life, last) in [(Duration::from_secs(5), 4.9), (Duration::from_secs(100), 99.8), (HOUR, 599.0)] {
            let key = key(&format!("{life:?}"));
            remember(&replays, &key, asked, life).await;
            assert!(is_known(&replays, &key, asked.after(Duration::from_secs_f64(last))).await, "{life:?}");
            let end = life.min(Duration::from_secs(600));
            let end = asked.after(end - end / (2 * DRIFT));
            assert!(!is_known(&replays, &key, end).await, "{life:?}");
            assert!(!is_known(&replays, &key, asked).await, "what has expired is gone for good");
        }
    }

    #[tokio::test]
    async fn copies_wait_for_the_first_and_when_it_gives_up_the_next_has_its_turn() {
        let replays = Replays::new(1 << 20, Metrics::new());
        let key = key("k");
        let CacheLookup::Nothing(first) = replays.get_or_lead(&key).await else { panic!("nobody was here before") };
        let mut copies = [Box::pin(replays.get_or_lead(&key)), Box::pin(replays.get_or_lead(&key))];
        for copy in &mut copies {
            assert!(futures_util::poll!(copy).is_pending());
        }
        drop(first);
        let (turn, _, mut others) = select_all(copies).await;
        let CacheLookup::Nothing(turn) = turn else { panic!("the first has found nothing") };
        assert!(futures_util::poll!(&mut others[0]).is_pending());
        let found = outcome("{}".to_owned());
        turn.end(Arc::clone(&found), Moment::now(), HOUR);
        assert!(matches!(others.remove(0).await, CacheLookup::Outcome(outcome) if Arc::ptr_eq(&outcome, &found)));
    }

    #[tokio::test]
    async fn copies_are_told_even_what_is_too_large_to_remember() {
        let replays = Replays::new(0, Metrics::new());
        let key = key("k");
        let CacheLookup::Nothing(first) = replays.get_or_lead(&key).await else { panic!("nobody was here before") };
        let mut second = Box::pin(replays.get_or_lead(&key));
        assert!(futures_util::poll!(&mut second).is_pending());
        first.end(outcome("{}".to_owned()), Moment::now(), HOUR);
        assert!(matches!(second.await, CacheLookup::Outcome(_)));
        assert!(!is_known(&replays, &key, Moment::now()).await);
    }

    #[tokio::test]
    async fn it_keeps_to_its_limit() {
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
    async fn what_is_remembered_weighs_what_it_says() {
        let replays = Replays::new(1 << 20, Metrics::new());
        let CacheLookup::Nothing(leader) = replays.get_or_lead(&key("k")).await else {
            panic!("nobody was here before")
        };
        leader.end(outcome("x".repeat(10_000)), Moment::now(), HOUR);
        let Usage { now, .. } = replays.usage();
        assert!((10_000..11_000).contains(&now), "{now}");
    }
}
