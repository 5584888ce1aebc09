//! The SQL that reads one job.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Attempt, Job, Lookup, NewJob, State};
use crate::ids::{ClaimId, JobId, TenantId};

/// A job. The columns of its current state are null if it was deleted.
struct Row {
    id: Uuid,
    kind: String,
    created_at: DateTime<Utc>,
    deleted: bool,
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
    result: Option<Json<Box<RawValue>>>,
    error: Option<Json<Box<RawValue>>>,
    payload: Option<Json<Box<RawValue>>>,
}

/// `$result`, `$error`, `$payload`: the columns, or null to leave them out.
macro_rules! find {
    ($name:literal, $result:literal, $error:literal, $payload:literal, $tenant:expr, $id:expr) => {
        sqlx::query_as!(
            Row,
            "/* "
                + $name
                + r#" */
            select
                jobs.id,
                jobs.type as kind,
                jobs.created_at,
                jobs.deleted_at is not null as "deleted!",
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
                current.finished_at as "finished_at?",
                "#
                + $result
                + r#" as "result?: Json<Box<RawValue>>",
                "#
                + $error
                + r#" as "error?: Json<Box<RawValue>>",
                "#
                + $payload
                + r#" as "payload: Json<Box<RawValue>>"
            from hapax.jobs
            left join hapax.job_states as current on current.tenant_id = $1 and current.job_id = $2
            where jobs.tenant_id = $1 and jobs.id = $2
            "#,
            $tenant.0,
            $id.0,
        )
    };
}

/// The current job.
pub async fn find(connection: &mut PgConnection, tenant: TenantId, id: JobId) -> sqlx::Result<Option<Lookup<Job>>> {
    find!("find_job", "current.result", "current.error", "jobs.payload", tenant, id)
        .fetch_optional(connection)
        .await?
        .map(Row::read)
        .transpose()
}

/// The current job without its payload.
pub async fn find_without_payload(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
) -> sqlx::Result<Option<Lookup<Job>>> {
    find!("find_job_without_payload", "null::json", "null::json", "null::json", tenant, id)
        .fetch_optional(connection)
        .await?
        .map(Row::read)
        .transpose()
}

impl Row {
    fn read(self) -> sqlx::Result<Lookup<Job>> {
        if self.deleted {
            return Ok(Lookup::Deleted);
        }
        self.job().map(Lookup::Job).ok_or_else(|| sqlx::Error::Decode("the job has no valid state".into()))
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
            result: self.result.map(|result| result.0),
            error: self.error.map(|error| error.0),
            payload: self.payload.map(|payload| payload.0),
        })
    }
}

/// A row for each attempt, and, if there is none, one row without an attempt.
struct AttemptRow {
    deleted: bool,
    token: Option<i32>,
    attempt: Option<i32>,
    claim_id: Option<Uuid>,
    worker: Option<String>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    reported: Option<String>,
    error: Option<Json<Box<RawValue>>>,
    late_outcome: Option<String>,
    late_error: Option<Json<Box<RawValue>>>,
}

/// The attempts of a job, oldest first: those that are recorded, the running one, and the one that ended the job.
pub async fn find_attempts(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
) -> sqlx::Result<Option<Lookup<Vec<Attempt>>>> {
    let rows = sqlx::query_as!(
        AttemptRow,
        r#"
        /* find_attempts */
        select
            jobs.deleted_at is not null as "deleted!",
            made.token as "token?",
            made.attempt as "attempt?",
            made.claim_id as "claim_id?",
            claim.worker as "worker?",
            made.started_at as "started_at?",
            made.ended_at as "ended_at?",
            made.reported as "reported?",
            made.error as "error?: Json<Box<RawValue>>",
            made.late_outcome as "late_outcome?",
            made.late_error as "late_error?: Json<Box<RawValue>>"
        from hapax.jobs
        left join lateral (
            select token, attempt, claim_id, started_at, ended_at, reported, error, late_outcome, late_error
            from hapax.job_attempts
            where tenant_id = $1 and job_id = $2
            union all
            select token, attempt, claim_id, started_at, null, 'running', null, null, null
            from hapax.job_leases
            where tenant_id = $1 and job_id = $2
            union all
            select token, attempt, claim_id, started_at, finished_at, reported, error, null, null
            from hapax.job_outcomes
            where tenant_id = $1 and job_id = $2 and reported <> 'lost'
        ) as made on true
        left join lateral (
            select worker
            from hapax.claims
            where tenant_id = $1 and id = made.claim_id
            offset 0
        ) as claim on true
        where jobs.tenant_id = $1 and jobs.id = $2
        order by made.token
        "#,
        tenant.0,
        id.0,
    )
    .fetch_all(connection)
    .await?;
    match rows.first() {
        None => Ok(None),
        Some(AttemptRow { deleted: true, .. }) => Ok(Some(Lookup::Deleted)),
        Some(_) => Ok(Some(Lookup::Job(rows.into_iter().filter_map(AttemptRow::attempt).collect()))),
    }
}

impl AttemptRow {
    fn attempt(self) -> Option<Attempt> {
        Some(Attempt {
            token: self.token?,
            attempt: self.attempt?,
            claim_id: ClaimId(self.claim_id?),
            worker: self.worker,
            started_at: self.started_at?,
            ended_at: self.ended_at,
            reported: self.reported?,
            error: self.error.map(|error| error.0),
            late_outcome: self.late_outcome,
            late_error: self.late_error.map(|error| error.0),
        })
    }
}

/// The job as it was submitted, and when.
pub async fn find_submitted(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
) -> sqlx::Result<Option<Lookup<(NewJob, DateTime<Utc>)>>> {
    let row = sqlx::query!(
        r#"
        /* find_submitted */
        select
            type as kind, queue, priority, run_at, max_attempts, unique_by, payload::text as payload, created_at
        from hapax.jobs
        where tenant_id = $1 and id = $2
        "#,
        tenant.0,
        id.0,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| match row.payload {
        None => Lookup::Deleted,
        Some(payload) => Lookup::Job((
            NewJob {
                kind: row.kind,
                queue: row.queue,
                priority: row.priority,
                run_at: row.run_at,
                max_attempts: row.max_attempts,
                payload,
                unique_by: row.unique_by,
            },
            row.created_at,
        )),
    }))
}
