//! Quotas: how much of something one caller, one tenant or one key may have in a while.
//!
//! A bucket per subject, after the generic cell rate algorithm (ITU-T I.371). Not a library's, because what turns out
//! to be a replay gives back what it took for a creation, and none that was looked at can give back. See ADR 0008.

use std::convert::Infallible;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

/// So many at once, and so many a second in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 0: no limit.
    pub per_second: u32,
    pub burst: u32,
}

/// One quota, and what is left of it for each subject. Per process: N replicas let N times as much through.
pub struct Quota<S> {
    policy: Policy,
    /// `None` where there is no limit.
    cells: Option<Cells>,
    buckets: Cache<S, Arc<Bucket>>,
    epoch: Instant,
}

/// What a quota is called and how large it is, as clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: &'static str,
    /// How many, in how long.
    pub quota: u32,
    pub window: Duration,
}

/// What is left of a quota for one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaStatus {
    pub policy: Policy,
    pub remaining: u32,
    /// When the whole quota is there again.
    pub reset: Duration,
    /// When one more is to be had, where nothing is left.
    pub retry_after: Option<Duration>,
}

/// Units of a quota that were taken, and can be given back.
pub struct Reservation {
    /// `None` where there is no limit.
    pub quota_status: Option<QuotaStatus>,
    taken: Option<Taken>,
}

struct Taken {
    bucket: Arc<Bucket>,
    /// In nanoseconds of growing back, and what one unit of it is.
    cost: u64,
    interval: u64,
}

/// Nanoseconds.
#[derive(Clone, Copy)]
struct Cells {
    /// What one unit takes to grow back.
    interval: u64,
    /// What the whole burst takes.
    depth: u64,
}

/// When the bucket will be full again, in nanoseconds since the quota's epoch; in the past: it is full.
#[derive(Default)]
struct Bucket {
    full_at: AtomicU64,
}

/// Subjects remembered. Whoever is forgotten begins anew; a subject that is met often is not forgotten.
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
    /// The subject's [`QuotaStatus`], if nothing is left; then nothing was taken.
    pub fn take(&self, subject: &S) -> Result<Reservation, QuotaStatus> {
        self.take_many(subject, 1)
    }

    /// Takes several units at once, or all of the burst but one if that is less.
    ///
    /// # Errors
    /// The subject's [`QuotaStatus`], if not so much is left; then nothing was taken.
    pub fn take_many(&self, subject: &S, units: u32) -> Result<Reservation, QuotaStatus> {
        let Some(cells) = self.cells else { return Ok(Reservation { quota_status: None, taken: None }) };
        let Ok(bucket) = self.buckets.get_or_insert_with(subject, || Ok::<_, Infallible>(Arc::default()));
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // One unit less than the burst: the request itself has taken one, and would never fit otherwise.
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
    /// As if it had not been taken; says what is left then.
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
    async fn a_burst_passes_then_as_much_as_grows_back() {
        let quota = Quota::new("some", RATE);
        assert_eq!(taken(&quota, 1, 9), 3);
        assert_eq!(taken(&quota, 2, 9), 3, "another subject has its own");
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(taken(&quota, 1, 9), 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(taken(&quota, 1, 9), 3, "it does not grow over its burst");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_can_be_taken_again_and_no_more_than_that() {
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
        assert_eq!(taken(&quota, 1, 9), 3, "what has grown back meanwhile does not count twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_standing_tells_what_is_left_and_when_there_is_more() {
        let quota = Quota::new("some", RATE);
        let quota_status = quota.take(&1).map_err(drop).unwrap().quota_status.unwrap();
        assert_eq!((quota_status.remaining, quota_status.reset), (2, Duration::from_millis(100)));
        assert_eq!((quota_status.policy.quota, quota_status.policy.window), (3, Duration::from_millis(300)));
        taken(&quota, 1, 2);
        let refused = quota.take(&1).err().unwrap();
        assert_eq!((refused.remaining, refused.reset), (0, Duration::from_millis(300)));
        assert_eq!(refused.retry_after, Some(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(taken(&quota, 1, 9), 1, "it is there when it was said to be");
    }

    #[tokio::test(start_paused = true)]
    async fn several_units_cost_as_much_as_one_by_one_and_never_more_than_the_burst() {
        let quota = Quota::new("some", RATE);
        let left = quota.take_many(&1, 2).map_err(drop).unwrap();
        assert_eq!(left.quota_status.unwrap().remaining, 1);
        let refused = quota.take_many(&1, 2).err().unwrap();
        assert_eq!((refused.remaining, refused.retry_after), (1, Some(Duration::from_millis(100))));
        assert_eq!(left.refund().unwrap().remaining, 3);
        assert_eq!(taken(&quota, 1, 1), 1);
        assert!(quota.take_many(&1, 100).is_ok(), "what is dearer than the whole quota takes what one request leaves");
        assert_eq!(taken(&quota, 1, 9), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_nought_is_no_limit() {
        let quota = Quota::new("some", Rate { per_second: 0, burst: 0 });
        assert_eq!(taken(&quota, 1, 10_000), 10_000);
        assert_eq!(quota.take(&1).map_err(drop).unwrap().quota_status, None);
    }

    #[test]
    fn many_threads_take_no_more_than_there_is() {
        let quota = Quota::new("some", Rate { per_second: 1, burst: 1000 });
        let taken: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8).map(|_| scope.spawn(|| taken(&quota, 1, 1000))).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert!((1000..1010).contains(&taken), "{taken}");
    }
}
