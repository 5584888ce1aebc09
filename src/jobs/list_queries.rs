//! The SQL of lists. Whoever calls brings the connection.
//!
//! A page is one statement, hence one snapshot: what it shows and where it says to go on fit together. See ADR 0015.

use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Filter, Job, State};
use crate::ids::{JobId, TenantId};

/// A job of a page, or the place at which the look at the index ended before the index did.
pub struct Listed {
    pub id: JobId,
    pub job: Option<Job>,
}

/// What is in no table but `jobs` is null where a job waits, and where the look ended.
struct Row {
    id: Uuid,
    is_beyond: bool,
    kind: String,
    created_at: DateTime<Utc>,
    state: Option<String>,
    queue: Option<String>,
    priority: Option<i16>,
    run_at: Option<DateTime<Utc>>,
    max_attempts: Option<i32>,
    attempt: Option<i32>,
    version: Option<i32>,
    finished_at: Option<DateTime<Utc>>,
}

/// The jobs that are found through one index: `$ids` selects their ids.
///
/// It and `$order` name what the index begins with, although there it is always the same: said as an equation, any index
/// in the order of ids would do for the planner, and it was seen to read all of another one in search of what was not
/// there. The subquery in `from` ends after 10,001 ids, and sooner once the page is full; the last of them passes whatever
/// it is. `offset 0` has each looked up by its primary key: a merge join would read the other tables from their beginning.
/// The filters are one `case`, of which the planner knows nothing and expects that half of all rows pass (a null parameter
/// lets all pass): if it expected few, it would read and sort the whole tenant rather than begin with the index.
macro_rules! page {
    ($connection:expr, $tenant:expr, $filter:expr, $from:expr, $until:expr, $limit:expr, $ids:literal, $order:literal) => {
        sqlx::query_as!(
            Row,
            r#"
            /* list_jobs */
            select
                id as "id!",
                nth > 10000 as "is_beyond!",
                job.type as "kind!",
                job.created_at as "created_at!",
                current.state as "state?",
                current.queue as "queue?",
                current.priority as "priority?",
                current.run_at as "run_at?",
                current.max_attempts as "max_attempts?",
                current.attempt as "attempt?",
                current.version as "version?",
                current.finished_at as "finished_at?"
            from (
                select "#
                + $order
                + r#", row_number() over (order by "#
                + $order
                + r#") as nth
                from ("#
                + $ids
                + r#"
                ) as found
                order by "#
                + $order
                + r#"
                limit 10001
            ) as looked_at
            cross join lateral (
                select type, created_at, deleted_at
                from hapax.jobs
                where tenant_id = $1 and id = looked_at.id
                offset 0
            ) as job
            left join lateral (
                select state, queue, priority, run_at, max_attempts, attempt, version, finished_at
                from hapax.job_states
                where tenant_id = $1 and job_id = looked_at.id
                offset 0
            ) as current on true
            where case
                when nth > 10000 then true
                when job.deleted_at is not null then false
                when job.type <> $5 then false
                when current.state <> $6 then false
                when current.queue <> $7 then false
                when job.created_at <= $8 then false
                when job.created_at >= $9 then false
                else true
            end
            order by "#
                + $order
                + r#"
            limit $4
            "#,
            $tenant.0,
            $from.0,
            $until.0,
            $limit,
            $filter.kind.as_deref(),
            $filter.state.map(State::name),
            $filter.queue.as_deref(),
            $filter.created_after,
            $filter.created_before,
        )
        .fetch_all($connection)
        .await
    };
}

/// The jobs of these ids that the filter is for, in the order of their ids, and up to `limit` of them. If the look ended
/// before that, the last one is the place where to go on.
pub async fn page(
    connection: &mut PgConnection,
    tenant: TenantId,
    filter: &Filter,
    ids: RangeInclusive<JobId>,
    limit: i64,
) -> sqlx::Result<Vec<Listed>> {
    let (from, until) = ids.into_inner();
    let rows = match (&filter.queue, filter.state) {
        (Some(_), _) => page!(
            connection,
            tenant,
            filter,
            from,
            until,
            limit,
            r#"
                    select in_queue, id
                    from (
                        (
                            select queue as in_queue, job_id as id
                            from hapax.job_queue
                            where tenant_id = $1 and (queue, job_id) >= ($7, $2) and (queue, job_id) <= ($7, $3)
                            and coalesce($6 = 'queued', true)
                            order by queue, job_id
                            limit 10001
                        )
                        union all
                        (
                            select queue as in_queue, job_id as id
                            from hapax.job_outcomes
                            where tenant_id = $1 and (queue, job_id) >= ($7, $2) and (queue, job_id) <= ($7, $3)
                            and coalesce($6 <> 'queued', true)
                            order by queue, job_id
                            limit 10001
                        )
                    ) as either"#,
            "in_queue, id"
        ),
        (None, Some(State::Queued)) => page!(
            connection,
            tenant,
            filter,
            from,
            until,
            limit,
            r#"
                    select job_id as id
                    from hapax.job_queue
                    where tenant_id = $1 and job_id between $2 and $3"#,
            "id"
        ),
        (None, Some(_)) => page!(
            connection,
            tenant,
            filter,
            from,
            until,
            limit,
            r#"
                    select state as in_state, job_id as id
                    from hapax.job_outcomes
                    where tenant_id = $1 and (state, job_id) >= ($6, $2) and (state, job_id) <= ($6, $3)"#,
            "in_state, id"
        ),
        (None, None) => page!(
            connection,
            tenant,
            filter,
            from,
            until,
            limit,
            r#"
                    select id
                    from hapax.jobs
                    where tenant_id = $1 and id between $2 and $3"#,
            "id"
        ),
    };
    rows?.into_iter().map(Row::read).collect()
}

impl Row {
    fn read(self) -> sqlx::Result<Listed> {
        let id = JobId(self.id);
        if self.is_beyond {
            return Ok(Listed { id, job: None });
        }
        let job = self.job().ok_or_else(|| sqlx::Error::Decode("the job is in no state".into()))?;
        Ok(Listed { id, job: Some(job) })
    }

    fn job(self) -> Option<Job> {
        Some(Job {
            id: JobId(self.id),
            kind: self.kind,
            queue: self.queue?,
            priority: self.priority?,
            run_at: self.run_at?,
            max_attempts: self.max_attempts?,
            state: State::parse(&self.state?)?,
            attempt: self.attempt?,
            version: self.version?,
            created_at: self.created_at,
            finished_at: self.finished_at,
            payload: None,
        })
    }
}

/// Whether a client has ever chosen the id of one of the tenant's jobs.
pub async fn has_named_jobs(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"/* has_named_jobs */ select exists (select from hapax.jobs where tenant_id = $1 and named) as "has!""#,
        tenant.0,
    )
    .fetch_one(connection)
    .await
}
