//! Pages of job lists.
//!
//! Decides which jobs a page shows and where the next page begins. The SQL is in `list_queries`. A page is in the order
//! of ids and shows the current jobs. Whatever the filter, it reads a bounded number of rows. See ADR 0015.

use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::list_queries::{self, Listed};
use super::{Job, State};
use crate::ids::{JobId, TenantId};

/// Selects the jobs of a list: those that match all given fields.
#[derive(Debug, Default)]
pub struct Filter {
    pub state: Option<State>,
    /// The queue that the job is in, or was in last.
    pub queue: Option<String>,
    pub kind: Option<String>,
    /// Exclusive, as is `created_before`.
    pub created_after: Option<DateTime<Utc>>,
    pub created_before: Option<DateTime<Utc>>,
}

/// Some jobs of a list, without their payloads. An empty page can have a next page: see [`Page::next`].
#[derive(Debug)]
pub struct Page {
    pub jobs: Vec<Job>,
    /// The id at which the next page begins; `None` on the last page. The job with this id may be deleted by then.
    pub next: Option<JobId>,
}

/// The largest difference between `created_at` and the time in a job's id. New jobs have none. An earlier release read
/// the clock twice.
const SLACK: TimeDelta = TimeDelta::seconds(1);

impl Page {
    /// Up to `limit` jobs, from the id `from` on.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read(
        connection: &mut PgConnection,
        tenant: TenantId,
        filter: &Filter,
        from: Option<JobId>,
        limit: u16,
    ) -> sqlx::Result<Self> {
        let by_time = filter.limits_creation_time() && !list_queries::has_named_jobs(connection, tenant).await?;
        let ids = filter.ids(from, by_time);
        let listed = list_queries::page(connection, tenant, filter, ids, i64::from(limit) + 1).await?;
        Ok(Self::of(listed, usize::from(limit)))
    }

    /// `listed` may have one more job than the page. The next page begins at that job, or at a row without a job.
    fn of(listed: Vec<Listed>, limit: usize) -> Self {
        let mut page = Self { jobs: Vec::new(), next: None };
        for Listed { id, job } in listed {
            match job {
                Some(job) if page.jobs.len() < limit => page.jobs.push(job),
                _ => page.next = Some(id),
            }
        }
        page
    }
}

impl Filter {
    fn limits_creation_time(&self) -> bool {
        self.created_after.is_some() || self.created_before.is_some()
    }

    /// The range of ids to read. `by_time`: Hapax made all ids of the tenant, so they are in the order of creation
    /// times.
    fn ids(&self, from: Option<JobId>, by_time: bool) -> RangeInclusive<JobId> {
        let first = from.unwrap_or(JobId(Uuid::nil()));
        if !by_time {
            return first..=JobId(Uuid::max());
        }
        let earliest = self.created_after.map(|after| JobId::first_of(after - SLACK));
        let latest = self.created_before.map(|before| JobId::first_of(before + SLACK));
        first.max(earliest.unwrap_or(first))..=latest.unwrap_or(JobId(Uuid::max()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        crate::jobs::moment(text).unwrap()
    }

    #[test]
    fn a_range_of_times_becomes_a_slightly_larger_range_of_ids() {
        let (after, before) = (at("2026-11-21T22:57:04.855855Z"), at("2026-11-21T22:58:04.855855Z"));
        let filter = Filter { created_after: Some(after), created_before: Some(before), ..Filter::default() };
        let ids = filter.ids(None, true);
        let microsecond = TimeDelta::microseconds(1);
        for minted in [after, after + microsecond, before - microsecond, before] {
            assert!(ids.contains(&JobId::mint(minted)), "{minted}");
        }
        for far in [after - SLACK * 2, before + SLACK * 2] {
            assert!(!ids.contains(&JobId::mint(far)), "{far}");
        }
        let named = filter.ids(None, false);
        assert!(named.contains(&JobId(Uuid::nil())) && named.contains(&JobId(Uuid::max())));
    }

    #[test]
    fn a_cursor_after_the_start_time_wins() {
        let filter = Filter { created_after: Some(at("2026-11-21T22:57:04Z")), ..Filter::default() };
        let (earlier, later) = (JobId::mint(at("2020-01-01T00:00:00Z")), JobId::mint(at("2027-01-01T00:00:00Z")));
        assert_eq!(*filter.ids(Some(later), true).start(), later);
        assert!(*filter.ids(Some(earlier), true).start() > earlier);
    }

    #[test]
    fn the_first_and_the_last_time_have_ids() {
        let filter = Filter {
            created_after: Some(at("0001-01-01T00:00:00Z")),
            created_before: Some(at("9999-12-31T23:59:59.999999Z")),
            ..Filter::default()
        };
        assert!(filter.ids(None, true).contains(&JobId::mint(at("2026-11-21T22:57:04Z"))));
        assert!(filter.ids(None, true).contains(&JobId::mint(at("9999-12-31T23:59:59Z"))));
    }
}
