//! The SQL of lists.
//!
//! A page is one statement and so one snapshot: its jobs and the start of the next page are consistent. See ADR 0015.

use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Filter, Job, State};
use crate::ids::{ClaimId, JobId, TenantId};

/// A job of a page, or, without a job, the id where the statement stopped reading the index.
pub struct Listed {
    pub id: JobId,
    pub job: Option<Job>,
}

/// The columns of claims and outcomes are null for a queued job. In the row where the statement stopped reading, all columns of the state may
/// be.
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
    claim_id: Option<Uuid>,
    started_at: Option<DateTime<Utc>>,
    cancel_requested_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

/// Reads jobs through one index. `$ids` selects their ids.
///
/// - `$ids` and `$order` contain the index's first columns, although these have a single value here. With an equality,
///   the planner may use any index in the order of ids. It was seen to read another index completely, without a match.
/// - The subquery in `from` ends after 10,001 ids, or when the page is full. The 10,001st id passes every filter.
/// - `offset 0` forces a look-up by primary key for each id. A merge join would read the other tables from their
///   beginning.
/// - The filters are one `case`, and a null parameter passes all rows. The planner cannot see into it and expects half
///   of the rows to pass. If it expected few, it would read and sort all rows of the tenant instead of the index.
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
                current.claim_id as "claim_id?",
                current.started_at as "started_at?",
                current.cancel_requested_at as "cancel_requested_at?",
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
                select
                    state, queue, priority, run_at, max_attempts, attempt, version, claim_id, started_at,
                    cancel_requested_at, finished_at
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

/// Up to `limit` jobs with these ids that match the filter, in the order of ids. If the statement stopped reading
/// before that, the last row has no job and is where the next page begins.
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
                    select id
                    from (
                        (
                            select waiting.job_id as id
                            from (
                                select job_id
                                from hapax.job_queue
                                where tenant_id = $1 and queue between $7 and $7 and coalesce($6 = 'queued', true)
                                order by queue, priority, run_at, job_id
                                limit 10001
                            ) as waiting
                            where waiting.job_id between $2 and $3
                            and not (
                                select count(*) > 10000
                                from (
                                    select
                                    from hapax.job_queue
                                    where tenant_id = $1 and queue between $7 and $7
                                    order by queue, priority, run_at, job_id
                                    limit 10001
                                ) as counted
                            )
                        )
                        union all
                        (
                            select job_id as id
                            from hapax.job_queue
                            where tenant_id = $1 and job_id between $2 and $3 and coalesce($6 = 'queued', true)
                            and (
                                select count(*) > 10000
                                from (
                                    select
                                    from hapax.job_queue
                                    where tenant_id = $1 and queue between $7 and $7
                                    order by queue, priority, run_at, job_id
                                    limit 10001
                                ) as counted
                            )
                            order by job_id
                            limit 10001
                        )
                        union all
                        (
                            select job_id as id
                            from hapax.job_leases
                            where tenant_id = $1 and job_id between $2 and $3 and coalesce($6 = 'running', true)
                            order by job_id
                            limit 10001
                        )
                        union all
                        (
                            select job_id as id
                            from hapax.job_outcomes
                            where tenant_id = $1 and (queue, job_id) >= ($7, $2) and (queue, job_id) <= ($7, $3)
                            and coalesce($6 not in ('queued', 'running'), true)
                            order by queue, job_id
                            limit 10001
                        )
                    ) as any_of_them"#,
            "id"
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
        (None, Some(State::Running)) => page!(
            connection,
            tenant,
            filter,
            from,
            until,
            limit,
            r#"
                    select job_id as id
                    from hapax.job_leases
                    where tenant_id = $1 and job_id between $2 and $3"#,
            "id"
        ),
        // Most finished jobs have succeeded, so this list needs no index of its own.
        (None, Some(State::Succeeded)) => page!(
            connection,
            tenant,
            filter,
            from,
            until,
            limit,
            r#"
                    select job_id as id
                    from hapax.job_outcomes
                    where tenant_id = $1 and job_id between $2 and $3"#,
            "id"
        ),
        (None, Some(State::Failed | State::Cancelled)) => page!(
            connection,
            tenant,
            filter,
            from,
            until,
            limit,
            r#"
                    select state as in_state, job_id as id
                    from hapax.job_outcomes
                    where tenant_id = $1 and state <> 'succeeded'
                    and (state, job_id) >= ($6, $2) and (state, job_id) <= ($6, $3)"#,
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
        let job = self.job().ok_or_else(|| sqlx::Error::Decode("the job has no valid state".into()))?;
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
            claim_id: self.claim_id.map(ClaimId),
            started_at: self.started_at,
            cancel_requested_at: self.cancel_requested_at,
            finished_at: self.finished_at,
            result: None,
            error: None,
            payload: None,
        })
    }
}

/// Whether the tenant has a job whose id a client chose.
pub async fn has_named_jobs(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"/* has_named_jobs */ select exists (select from hapax.jobs where tenant_id = $1 and named) as "has!""#,
        tenant.0,
    )
    .fetch_one(connection)
    .await
}
