//! Quotas: rate limits for a token, a tenant or an idempotency key.
//!
//! One bucket per subject, after the generic cell rate algorithm (ITU-T I.371). Own code, because a request that turns
//! out to be a replay refunds its creation, and none of the libraries we looked at can refund. See ADR 0008.

use std::convert::Infallible;
use std::hash::Hash;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

/// A sustained rate and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 0: no limit.
    pub per_second: u32,
    pub burst: u32,
}

/// The limits for both numbers of a tenant's own [`Rate`]. CHECK constraints on the columns hold the same limits.
pub const TENANT_RATE: RangeInclusive<u32> = 1..=1_000_000;

/// One quota and its buckets. Each process counts for itself: N replicas admit N times as much.
pub struct Quota<S> {
    name: &'static str,
    /// For subjects without a rate of their own.
    rate: Rate,
    buckets: Cache<S, Arc<Bucket>>,
    epoch: Instant,
}

/// A quota's name and size, as clients see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: &'static str,
    /// Units per `window`.
    pub quota: u32,
    pub window: Duration,
}

/// What one subject has left of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaStatus {
    pub policy: Policy,
    pub remaining: u32,
    /// Time until the whole quota is available again.
    pub reset: Duration,
    /// Time until the refused request would fit. `None` if it was admitted.
    pub retry_after: Option<Duration>,
}

/// Units taken from a quota. They can be refunded.
pub struct Reservation {
    /// `None` if there is no limit.
    pub quota_status: Option<QuotaStatus>,
    taken: Option<Taken>,
}

struct Taken {
    bucket: Arc<Bucket>,
    /// In nanoseconds of refill time.
    cost: u64,
    cells: Cells,
}

/// In nanoseconds of refill time.
#[derive(Clone, Copy)]
struct Cells {
    /// One unit.
    interval: u64,
    /// The whole burst.
    depth: u64,
}

struct Bucket {
    /// When the bucket will be full again, in nanoseconds since the quota's epoch. A time in the past means that it is
    /// full.
    full_at: AtomicU64,
    /// [`Cells::depth`] at the last request. If it differs, the subject's rate has changed.
    depth: AtomicU64,
}

/// Maximum subjects in memory. An evicted subject starts with a full bucket. Frequent subjects are not evicted.
const SUBJECTS_MAX: usize = 100_000;

impl<S: Hash + Eq + Clone> Quota<S> {
    pub fn new(name: &'static str, rate: Rate) -> Self {
        Self { name, rate, buckets: Cache::new(SUBJECTS_MAX), epoch: Instant::now() }
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// The subject's [`QuotaStatus`] if nothing is left. Nothing is taken then.
    pub fn take(&self, subject: &S) -> Result<Reservation, QuotaStatus> {
        self.take_many(subject, None, 1)
    }

    /// Takes several units at once, or the burst minus one if that is less. `own_rate` replaces the quota's rate for this
    /// subject. When the rate changes, the bucket keeps the fraction that is left: a half-full bucket stays half full.
    ///
    /// # Errors
    /// The subject's [`QuotaStatus`] if fewer units are left. Nothing is taken then.
    pub fn take_many(&self, subject: &S, own_rate: Option<Rate>, units: u32) -> Result<Reservation, QuotaStatus> {
        let rate = own_rate.unwrap_or(self.rate);
        let Some(cells) = rate.cells() else { return Ok(Reservation { quota_status: None, taken: None }) };
        let policy = Policy { name: self.name, quota: rate.burst, window: Duration::from_nanos(cells.depth) };
        let full = || Ok::<_, Infallible>(Arc::new(Bucket::full(cells.depth)));
        let Ok(bucket) = self.buckets.get_or_insert_with(subject, full);
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        bucket.resize(cells.depth, now);
        // The burst minus one: the request itself has already taken one unit, so a larger cost would never fit.
        let most = cells.depth.saturating_sub(cells.interval).max(cells.interval);
        let cost = cells.interval.saturating_mul(u64::from(units)).min(most);
        let after = |full_at: u64| full_at.max(now) + cost;
        let taking = bucket.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            Some(after(full_at)).filter(|full_at| full_at - now <= cells.depth)
        });
        match taking {
            Ok(before) => {
                let debt = after(before) - now;
                let quota_status = policy.status((cells.depth - debt) / cells.interval, debt, None);
                Ok(Reservation { quota_status: Some(quota_status), taken: Some(Taken { bucket, cost, cells }) })
            }
            Err(full_at) => {
                let debt = full_at.saturating_sub(now);
                let remaining = cells.depth.saturating_sub(debt) / cells.interval;
                Err(policy.status(remaining, debt, Some(after(full_at) - now - cells.depth)))
            }
        }
    }
}

impl Rate {
    pub const UNLIMITED: Self = Self { per_second: 0, burst: 0 };

    /// `None` if there is no limit.
    fn cells(self) -> Option<Cells> {
        let interval = 1_000_000_000_u64.checked_div(self.per_second.into())?;
        Some(Cells { interval, depth: interval * u64::from(self.burst) })
    }
}

impl Policy {
    fn status(self, remaining: u64, reset: u64, retry_after: Option<u64>) -> QuotaStatus {
        QuotaStatus {
            policy: self,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(reset),
            retry_after: retry_after.map(Duration::from_nanos),
        }
    }
}

impl Reservation {
    /// Returns the units and reports what is left afterwards.
    pub fn refund(self) -> Option<QuotaStatus> {
        let (Taken { bucket, cost, cells }, quota_status) = (self.taken?, self.quota_status?);
        // If the rate has changed since, the cost has become larger or smaller together with the bucket.
        let cost_now = scaled(cost, cells.depth, bucket.depth.load(Ordering::Relaxed));
        let refunded = |full_at: u64| Some(full_at.saturating_sub(cost_now));
        let _always_done = bucket.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, refunded);
        let reset = quota_status.reset.saturating_sub(Duration::from_nanos(cost));
        let remaining = quota_status.remaining.saturating_add(u32::try_from(cost / cells.interval).unwrap_or(u32::MAX));
        Some(QuotaStatus { remaining, reset, ..quota_status })
    }
}

impl Bucket {
    fn full(depth: u64) -> Self {
        Self { full_at: AtomicU64::new(0), depth: AtomicU64::new(depth) }
    }

    /// Keeps the fraction that is left if the depth has changed.
    fn resize(&self, depth: u64, now: u64) {
        // Most requests find no change and write nothing. If several find the same change, the swap lets one scale.
        if self.depth.load(Ordering::Relaxed) == depth {
            return;
        }
        let before = self.depth.swap(depth, Ordering::Relaxed);
        let resized = |full_at: u64| Some(now + scaled(full_at.saturating_sub(now), before, depth).min(depth));
        let _always_done = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, resized);
    }
}

/// The same fraction of another whole.
fn scaled(part: u64, whole: u64, other_whole: u64) -> u64 {
    if whole == other_whole {
        return part;
    }
    let scaled = u128::from(part) * u128::from(other_whole) / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    fn taken(quota: &Quota<u8>, subject: u8, times: usize) -> usize {
        (0..times).filter(|_| quota.take(&subject).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_burst_only_refilled_units_are_admitted() {
        let quota = Quota::new("some", RATE);
        assert_eq!(taken(&quota, 1, 9), 3);
        assert_eq!(taken(&quota, 2, 9), 3, "another subject has its own bucket");
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(taken(&quota, 1, 9), 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(taken(&quota, 1, 9), 3, "the bucket does not refill beyond its burst");
    }

    #[tokio::test(start_paused = true)]
    async fn refunded_units_can_be_taken_again_once() {
        let quota = Quota::new("some", RATE);
        for _ in 0..100 {
            let quota_status = quota.take(&1).map_err(drop).unwrap().refund().unwrap();
            assert_eq!((quota_status.remaining, quota_status.reset), (3, Duration::ZERO));
        }
        assert_eq!(taken(&quota, 1, 9), 3);
        tokio::time::advance(Duration::from_millis(100)).await;
        let reservation = quota.take(&1).map_err(drop).unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        reservation.refund();
        assert_eq!(taken(&quota, 1, 9), 3, "a refund after the refill adds nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn the_quota_status_says_what_is_left_and_when_to_retry() {
        let quota = Quota::new("some", RATE);
        let quota_status = quota.take(&1).map_err(drop).unwrap().quota_status.unwrap();
        assert_eq!((quota_status.remaining, quota_status.reset), (2, Duration::from_millis(100)));
        assert_eq!((quota_status.policy.quota, quota_status.policy.window), (3, Duration::from_millis(300)));
        taken(&quota, 1, 2);
        let refused = quota.take(&1).err().unwrap();
        assert_eq!((refused.remaining, refused.reset), (0, Duration::from_millis(300)));
        assert_eq!(refused.retry_after, Some(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(taken(&quota, 1, 9), 1, "one unit is available after `retry_after`");
    }

    #[tokio::test(start_paused = true)]
    async fn many_units_cost_the_sum_but_at_most_the_burst_minus_one() {
        let quota = Quota::new("some", RATE);
        let left = quota.take_many(&1, None, 2).map_err(drop).unwrap();
        assert_eq!(left.quota_status.unwrap().remaining, 1);
        let refused = quota.take_many(&1, None, 2).err().unwrap();
        assert_eq!((refused.remaining, refused.retry_after), (1, Some(Duration::from_millis(100))));
        assert_eq!(left.refund().unwrap().remaining, 3);
        assert_eq!(taken(&quota, 1, 1), 1);
        assert!(quota.take_many(&1, None, 100).is_ok(), "a cost above the burst is capped");
        assert_eq!(taken(&quota, 1, 9), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_zero_is_no_limit() {
        let quota = Quota::new("some", Rate::UNLIMITED);
        assert_eq!(taken(&quota, 1, 10_000), 10_000);
        assert_eq!(quota.take(&1).map_err(drop).unwrap().quota_status, None);
    }

    /// Takes units one by one until one is refused, and says how many were admitted.
    fn taken_at(quota: &Quota<u8>, own_rate: Rate) -> usize {
        (0..999).take_while(|_| quota.take_many(&1, Some(own_rate), 1).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_subject_can_have_its_own_rate() {
        let quota = Quota::new("some", RATE);
        let own_rate = Rate { per_second: 1, burst: 5 };
        assert_eq!(taken_at(&quota, own_rate), 5);
        let refused = quota.take_many(&1, Some(own_rate), 1).err().unwrap();
        assert_eq!(refused.policy, Policy { name: "some", quota: 5, window: Duration::from_secs(5) });
        assert_eq!(refused.retry_after, Some(Duration::from_secs(1)));
        assert_eq!(taken(&quota, 2, 9), 3, "other subjects have the quota's rate");

        assert_eq!(taken_at(&quota, Rate::UNLIMITED), 999);
        assert_eq!(taken_at(&Quota::new("none", Rate::UNLIMITED), own_rate), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_rate_keeps_the_fraction_that_is_left() {
        let (small, large) = (Rate { per_second: 1, burst: 4 }, Rate { per_second: 10, burst: 200 });
        let half_used = || {
            let quota = Quota::new("some", large);
            quota.take_many(&1, None, 100).map_err(drop).unwrap();
            quota
        };
        assert_eq!(taken_at(&half_used(), small), 2);
        let quota = half_used();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(taken_at(&quota, small), 3, "it refilled to three quarters at the rate of before");
        assert_eq!(taken_at(&quota, large), 0, "an empty bucket stays empty");
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(taken_at(&quota, large), 50, "and refills at the new rate");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(taken_at(&quota, small), 4, "a full bucket stays full");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refund_after_a_changed_rate_restores_what_was_left() {
        let quota = Quota::new("some", Rate { per_second: 1, burst: 4 });
        let one_of_four = quota.take(&1).map_err(drop).unwrap();
        let large = Some(Rate { per_second: 1000, burst: 100 });
        assert_eq!(quota.take_many(&1, large, 1).map_err(drop).unwrap().quota_status.unwrap().remaining, 74);
        one_of_four.refund();
        assert_eq!(quota.take_many(&1, large, 1).map_err(drop).unwrap().quota_status.unwrap().remaining, 98);
    }

    #[test]
    fn concurrent_threads_do_not_exceed_the_quota() {
        let quota = Quota::new("some", Rate { per_second: 1, burst: 1000 });
        let taken: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8).map(|_| scope.spawn(|| taken(&quota, 1, 1000))).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert!((1000..1010).contains(&taken), "{taken}");
    }
}
