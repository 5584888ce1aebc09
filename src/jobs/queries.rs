//! The SQL that reads one job.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Job, Lookup, NewJob, State};
use crate::ids::{JobId, TenantId};

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
    finished_at: Option<DateTime<Utc>>,
    payload: Option<Json<Box<RawValue>>>,
}

/// `$payload`: the column, or null to leave the payload out.
macro_rules! find {
    ($name:literal, $payload:literal, $tenant:expr, $id:expr) => {
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
                current.finished_at as "finished_at?",
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
    find!("find_job", "jobs.payload", tenant, id).fetch_optional(connection).await?.map(Row::read).transpose()
}

/// The current job without its payload.
pub async fn find_without_payload(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
) -> sqlx::Result<Option<Lookup<Job>>> {
    find!("find_job_without_payload", "null::json", tenant, id)
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
            finished_at: self.finished_at,
            payload: self.payload.map(|payload| payload.0),
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
