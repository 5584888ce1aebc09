//! The SQL of jobs. Whoever calls brings the connection.

use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Job, NewJob, State};
use crate::ids::{JobId, TenantId};

/// The job as it is now.
pub async fn find(connection: &mut PgConnection, tenant: TenantId, id: JobId) -> sqlx::Result<Option<Job>> {
    let row = sqlx::query!(
        r#"
        select
            jobs.type as kind, job_queue.queue, job_queue.priority, job_queue.run_at, job_queue.max_attempts,
            job_queue.attempt, jobs.created_at, jobs.payload as "payload: Json<Box<serde_json::value::RawValue>>"
        from jobs
        join job_queue on job_queue.tenant_id = jobs.tenant_id and job_queue.job_id = jobs.id
        where jobs.tenant_id = $1 and jobs.id = $2
        "#,
        tenant.0,
        id.0,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Job {
        id,
        kind: row.kind,
        queue: row.queue,
        priority: row.priority,
        run_at: row.run_at,
        max_attempts: row.max_attempts,
        state: State::Queued,
        attempt: row.attempt,
        created_at: row.created_at,
        payload: Some(row.payload.0),
    }))
}

/// The job as it was submitted, to be compared with another request.
pub async fn find_submitted(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
) -> sqlx::Result<Option<NewJob>> {
    sqlx::query_as!(
        NewJob,
        r#"
        select type as kind, queue, priority, run_at, max_attempts, payload::text as "payload!"
        from jobs
        where tenant_id = $1 and id = $2
        "#,
        tenant.0,
        id.0,
    )
    .fetch_optional(connection)
    .await
}
