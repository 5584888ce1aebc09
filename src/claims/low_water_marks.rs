//! Where claims begin to read a queue.
//!
//! PostgreSQL keeps the index entries of claimed jobs until a vacuum, which waits for every older snapshot, for example
//! of a backup. Meanwhile a claim that reads from the start passes them all: 56 ms for 220,000 jobs. So after a claim,
//! the next ones begin a little before the jobs that it took. From time to time one reads from the start again, because
//! a job can appear before the mark: a reclaimed job, one whose commit was late, or a changed one. If nothing is there
//! from the marks on, `hapax.claim` reads from the start, so a mark can change the order, but hide no job.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

/// The marks of each group of claims.
pub struct LowWaterMarks<G>(Mutex<HashMap<G, Marks>>);

struct Marks {
    /// When to read from the start again.
    until: Instant,
    /// For each queue of the group and each priority, a `run_at`.
    starts: Vec<Option<DateTime<Utc>>>,
}

/// How much longer than a claim from the start its marks are used. So such claims take less than 1 % of the time of all.
/// If nothing is slow, a claim takes 1 to 2 ms, and its marks are used for less than half a second.
const USES: u32 = 256;
const LIFE_MAX: Duration = Duration::from_secs(30);
/// How far a mark is before the last claimed job, for jobs that are committed a little late.
const MARGIN: TimeDelta = TimeDelta::milliseconds(100);
/// The groups in memory. A further one reads from the start.
const GROUPS_MAX: usize = 10_000;

impl<G: Eq + Hash + Clone> LowWaterMarks<G> {
    pub fn new() -> Self {
        Self(Mutex::default())
    }

    /// Where a claim begins to read. `None`: from the start.
    pub fn starts(&self, group: &G, now: Instant) -> Option<Vec<Option<DateTime<Utc>>>> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.get(group).filter(|marks| now < marks.until).map(|marks| marks.starts.clone())
    }

    /// Records a claim: when it began and how long it took, and the places (of `count`) and `run_at` of its jobs.
    pub fn record(
        &self,
        group: &G,
        (began, took): (Instant, Duration),
        read_from_start: bool,
        count: usize,
        jobs: impl Iterator<Item = (usize, DateTime<Utc>)>,
    ) {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = jobs.peekable();
        if read_from_start {
            groups.remove(group);
            if jobs.peek().is_none() {
                return;
            }
            if groups.len() >= GROUPS_MAX {
                groups.retain(|_, marks| began < marks.until);
            }
            if groups.len() >= GROUPS_MAX {
                return;
            }
            let until = began + took + (took * USES).min(LIFE_MAX);
            groups.insert(group.clone(), Marks { until, starts: vec![None; count] });
        }
        let Some(Marks { starts, .. }) = groups.get_mut(group) else { return };
        for (place, run_at) in jobs {
            if let Some(start) = starts.get_mut(place) {
                *start = (*start).max(run_at.checked_sub_signed(MARGIN));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(2);

    #[test]
    fn marks_are_used_for_a_time_that_follows_from_that_of_the_claim() {
        let (marks, began) = (LowWaterMarks::new(), Instant::now());
        let run_at = DateTime::UNIX_EPOCH + TimeDelta::seconds(100);
        marks.record(&'a', (began, TOOK), true, 2, [].into_iter());
        assert_eq!(marks.starts(&'a', began), None, "it found nothing");
        marks.record(&'a', (began, TOOK), true, 2, [(0, run_at), (5, run_at)].into_iter());
        let mark = |run_at: DateTime<Utc>| Some(vec![Some(run_at - MARGIN), None]);
        assert_eq!(marks.starts(&'a', began), mark(run_at));
        assert_eq!(marks.starts(&'b', began), None, "another group");
        let earlier = run_at - TimeDelta::seconds(1);
        marks.record(&'a', (began, TOOK), false, 2, [(0, earlier)].into_iter());
        assert_eq!(marks.starts(&'a', began), mark(run_at), "a mark does not move back");
        let later = run_at + TimeDelta::seconds(1);
        marks.record(&'a', (began, TOOK), false, 2, [(0, later)].into_iter());
        let until = began + TOOK * (1 + USES);
        assert_eq!(marks.starts(&'a', until - TOOK), mark(later));
        assert_eq!(marks.starts(&'a', until), None, "it is time to read from the start");
        marks.record(&'a', (until, TOOK), true, 2, [].into_iter());
        assert_eq!(marks.starts(&'a', began), None, "nothing is left");
    }

    #[test]
    fn a_very_slow_claim_is_repeated_in_half_a_minute() {
        let (marks, began) = (LowWaterMarks::new(), Instant::now());
        let took = Duration::from_secs(4);
        marks.record(&'a', (began, took), true, 1, [(0, DateTime::UNIX_EPOCH)].into_iter());
        assert!(marks.starts(&'a', began + took + LIFE_MAX - TOOK).is_some());
        assert!(marks.starts(&'a', began + took + LIFE_MAX).is_none());
    }

    #[test]
    fn the_number_of_groups_is_limited() {
        let (marks, began, job) = (LowWaterMarks::new(), Instant::now(), (0, DateTime::UNIX_EPOCH));
        for group in 0..=GROUPS_MAX {
            marks.record(&group, (began, TOOK), true, 1, [job].into_iter());
        }
        assert!(marks.starts(&(GROUPS_MAX - 1), began).is_some());
        assert!(marks.starts(&GROUPS_MAX, began).is_none());
        let later = began + LIFE_MAX;
        marks.record(&GROUPS_MAX, (later, TOOK), true, 1, [job].into_iter());
        assert!(marks.starts(&GROUPS_MAX, later).is_some(), "old ones are removed");
    }
}
