//! Quotas: rate limits for a token, a tenant or an idempotency key.
//!
//! One bucket per subject, after the generic cell rate algorithm (ITU-T I.371). Own code, because a request that turns
//! out to be a replay refunds its creation, and none of the libraries we looked at can refund. See ADR 0008.

use std::convert::Infallible;
use std::hash::Hash;
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

/// One quota and its buckets. Each process counts for itself: N replicas admit N times as much.
pub struct Quota<S> {
    policy: Policy,
    /// `None` where there is no limit.
    cells: Option<Cells>,
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
    /// In nanoseconds of refill time. `interval` is the cost of one unit.
    cost: u64,
    interval: u64,
}

/// In nanoseconds of refill time.
#[derive(Clone, Copy)]
struct Cells {
    /// One unit.
    interval: u64,
    /// The whole burst.
    depth: u64,
}

/// When the bucket will be full again, in nanoseconds since the quota's epoch. A time in the past means that it is
/// full.
#[derive(Default)]
struct Bucket {
    full_at: AtomicU64,
}

/// Maximum subjects in memory. An evicted subject starts with a full bucket. Frequent subjects are not evicted.
const SUBJECTS_MAX: usize = 100_000;

impl<S: Hash + Eq + Clone> Quota<S> {
    pub fn new(name: &'static str, rate: Rate) -> Self {
        let cells = (rate.per_second > 0).then(|| {
            let interval = 1_000_000_000 / u64::from(rate.per_second);
            Cells { interval, depth: interval * u64::from(rate.burst) }
        });
        let window = Duration::from_nanos(cells.map_or(0, |cells| cells.depth));
        let policy = Policy { name, quota: rate.burst, window };
        Self { policy, cells, buckets: Cache::new(SUBJECTS_MAX), epoch: Instant::now() }
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// The subject's [`QuotaStatus`] if nothing is left. Nothing is taken then.
    pub fn take(&self, subject: &S) -> Result<Reservation, QuotaStatus> {
        self.take_many(subject, 1)
    }

    /// Takes several units at once, or the burst minus one if that is less.
    ///
    /// # Errors
    /// The subject's [`QuotaStatus`] if fewer units are left. Nothing is taken then.
    pub fn take_many(&self, subject: &S, units: u32) -> Result<Reservation, QuotaStatus> {
        let Some(cells) = self.cells else { return Ok(Reservation { quota_status: None, taken: None }) };
        let Ok(bucket) = self.buckets.get_or_insert_with(subject, || Ok::<_, Infallible>(Arc::default()));
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
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
                let quota_status = self.quota_status((cells.depth - debt) / cells.interval, debt, None);
                Ok(Reservation {
                    quota_status: Some(quota_status),
                    taken: Some(Taken { bucket, cost, interval: cells.interval }),
                })
            }
            Err(full_at) => {
                let debt = full_at.saturating_sub(now);
                let remaining = cells.depth.saturating_sub(debt) / cells.interval;
                Err(self.quota_status(remaining, debt, Some(after(full_at) - now - cells.depth)))
            }
        }
    }

    fn quota_status(&self, remaining: u64, reset: u64, retry_after: Option<u64>) -> QuotaStatus {
        QuotaStatus {
            policy: self.policy,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(reset),
            retry_after: retry_after.map(Duration::from_nanos),
        }
    }
}

impl Reservation {
    /// Returns the units and reports what is left afterwards.
    pub fn refund(self) -> Option<QuotaStatus> {
        let (Taken { bucket, cost, interval }, quota_status) = (self.taken?, self.quota_status?);
        let refunded = |full_at: u64| Some(full_at.saturating_sub(cost));
        let _always_done = bucket.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, refunded);
        let reset = quota_status.reset.saturating_sub(Duration::from_nanos(cost));
        let remaining = quota_status.remaining.saturating_add(u32::try_from(cost / interval).unwrap_or(u32::MAX));
        Some(QuotaStatus { remaining, reset, ..quota_status })
    }
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
        let left = quota.take_many(&1, 2).map_err(drop).unwrap();
        assert_eq!(left.quota_status.unwrap().remaining, 1);
        let refused = quota.take_many(&1, 2).err().unwrap();
        assert_eq!((refused.remaining, refused.retry_after), (1, Some(Duration::from_millis(100))));
        assert_eq!(left.refund().unwrap().remaining, 3);
        assert_eq!(taken(&quota, 1, 1), 1);
        assert!(quota.take_many(&1, 100).is_ok(), "a cost above the burst is capped");
        assert_eq!(taken(&quota, 1, 9), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_zero_is_no_limit() {
        let quota = Quota::new("some", Rate { per_second: 0, burst: 0 });
        assert_eq!(taken(&quota, 1, 10_000), 10_000);
        assert_eq!(quota.take(&1).map_err(drop).unwrap().quota_status, None);
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
