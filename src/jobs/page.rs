//! Lists of jobs, a page at a time.
//!
//! Owns which jobs a list is of and where its next page begins; the SQL is in `list_queries`. A page is in the order of
//! ids, shows what is there now, and never looks at more than a bounded number of rows, whatever is asked for. ADR 0015.

use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::list_queries::{self, Listed};
use super::{Job, State};
use crate::ids::{JobId, TenantId};

/// Which jobs a list is of: those that are like all that is given here.
#[derive(Debug, Default)]
pub struct Filter {
    pub state: Option<State>,
    /// Where the job waits, or waited last.
    pub queue: Option<String>,
    pub kind: Option<String>,
    /// Neither of the two moments counts as between them.
    pub created_after: Option<DateTime<Utc>>,
    pub created_before: Option<DateTime<Utc>>,
}

/// Some jobs of a list, without their payloads. There may be none, and a next page all the same: see [`Page::next`].
#[derive(Debug)]
pub struct Page {
    pub jobs: Vec<Job>,
    /// The id at which the next page begins; `None` after the last. A job with this id need not be there any more.
    pub next: Option<JobId>,
}

/// How far from the time in its id a job's `created_at` may lie. In those that we mint now the two are one; an earlier
/// release read the clock once for each.
const SLACK: TimeDelta = TimeDelta::seconds(1);

impl Page {
    /// The jobs from this id on, up to so many.
    ///
    /// # Errors
    /// The database's.
    pub async fn read(
        connection: &mut PgConnection,
        tenant: TenantId,
        filter: &Filter,
        from: Option<JobId>,
        limit: u16,
    ) -> sqlx::Result<Self> {
        if filter.state == Some(State::Running) {
            return Ok(Self { jobs: Vec::new(), next: None });
        }
        let by_time = filter.is_of_a_time() && !list_queries::has_named_jobs(connection, tenant).await?;
        let ids = filter.ids(from, by_time);
        let listed = list_queries::page(connection, tenant, filter, ids, i64::from(limit) + 1).await?;
        Ok(Self::of(listed, usize::from(limit)))
    }

    /// `listed` may have one more than fits, which is where the next page begins, as is a row without a job.
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
    fn is_of_a_time(&self) -> bool {
        self.created_after.is_some() || self.created_before.is_some()
    }

    /// The ids to look at. `by_time`: all of the tenant's ids are of our making, hence in the order of time.
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
    fn the_ids_of_a_time_are_those_that_are_minted_in_it_and_few_others() {
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
    fn a_cursor_counts_where_it_is_beyond_the_time() {
        let filter = Filter { created_after: Some(at("2026-11-21T22:57:04Z")), ..Filter::default() };
        let (earlier, later) = (JobId::mint(at("2020-01-01T00:00:00Z")), JobId::mint(at("2027-01-01T00:00:00Z")));
        assert_eq!(*filter.ids(Some(later), true).start(), later);
        assert!(*filter.ids(Some(earlier), true).start() > earlier);
    }

    #[test]
    fn the_ends_of_time_have_ids() {
        let filter = Filter {
            created_after: Some(at("0001-01-01T00:00:00Z")),
            created_before: Some(at("9999-12-31T23:59:59.999999Z")),
            ..Filter::default()
        };
        assert!(filter.ids(None, true).contains(&JobId::mint(at("2026-11-21T22:57:04Z"))));
        assert!(filter.ids(None, true).contains(&JobId::mint(at("9999-12-31T23:59:59Z"))));
    }
}
