//! The SQL of jobs. Whoever calls brings the connection.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Job, Lookup, NewJob, State};
use crate::ids::{JobId, TenantId};

/// A job in all the tables that it may be in.
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

/// One text for what shows the payload and what does not.
macro_rules! current {
    ($payload:literal, $tenant:expr, $id:expr) => {
        sqlx::query_as!(
            Row,
            r#"
            select
                jobs.id,
                jobs.type as kind,
                jobs.created_at,
                jobs.deleted_at is not null as "deleted!",
                case when waiting.job_id is not null then 'queued' else over.state end as state,
                coalesce(waiting.queue, over.queue) as queue,
                coalesce(waiting.priority, over.priority) as priority,
                coalesce(waiting.run_at, over.run_at) as run_at,
                coalesce(waiting.max_attempts, over.max_attempts) as max_attempts,
                coalesce(waiting.attempt, over.attempt) as attempt,
                coalesce(waiting.version, over.version) as version,
                over.finished_at as "finished_at?",
                "#
                + $payload
                + r#" as "payload: Json<Box<RawValue>>"
            from jobs
            left join job_queue as waiting on waiting.tenant_id = jobs.tenant_id and waiting.job_id = jobs.id
            left join job_outcomes as over on over.tenant_id = jobs.tenant_id and over.job_id = jobs.id
            where jobs.tenant_id = $1 and jobs.id = $2
            "#,
            $tenant.0,
            $id.0,
        )
    };
}

/// The job as it is now.
pub async fn find(connection: &mut PgConnection, tenant: TenantId, id: JobId) -> sqlx::Result<Option<Lookup<Job>>> {
    current!("jobs.payload", tenant, id).fetch_optional(connection).await?.map(Row::read).transpose()
}

/// The same, but for the payload.
pub async fn find_without_payload(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
) -> sqlx::Result<Option<Lookup<Job>>> {
    current!("null::json", tenant, id).fetch_optional(connection).await?.map(Row::read).transpose()
}

impl Row {
    fn read(self) -> sqlx::Result<Lookup<Job>> {
        if self.deleted {
            return Ok(Lookup::Deleted);
        }
        self.job().map(Lookup::Job).ok_or_else(|| sqlx::Error::Decode("the job is in no state".into()))
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
        select
            type as kind, queue, priority, run_at, max_attempts, unique_by, payload::text as payload, created_at
        from jobs
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
