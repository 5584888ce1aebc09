//! The statements that change a job that is there.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::Next;
use crate::database::queries::statement_with_options;
use crate::idempotency::queries::keyed_statement;
use crate::idempotency::{Keyed, OnConflict, WriteOptions};
use crate::ids::{JobId, TenantId};

/// Changes a job that waits, if it is still of the version that the change was made from; says whether it was.
pub async fn patch(
    connection: &mut PgConnection,
    tenant: TenantId,
    next: &Next,
    options: WriteOptions,
) -> sqlx::Result<bool> {
    let changed = statement_with_options!(
        query_scalar,
        options,
        [r#"
            changed as (
                update job_queue
                set priority = $5, run_at = $6, max_attempts = $7, version = version + 1
                from options
                where tenant_id = $3 and job_id = $4 and version = $8
                returning true as changed
            )
            select changed as "changed!" from changed
        "#],
        tenant.0,
        next.job.id.0,
        next.job.priority,
        next.job.run_at,
        next.job.max_attempts,
        next.made_from,
    )
    .fetch_optional(connection)
    .await?;
    Ok(changed.unwrap_or(false))
}

/// The same together with the key; `None` if the job is of another version or the key is taken.
pub async fn patch_keyed(
    connection: &mut PgConnection,
    keyed: &Keyed,
    next: &Next,
    on_conflict: OnConflict,
    options: WriteOptions,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    keyed_statement!(
        connection, keyed, next.answer, on_conflict, options,
        given: r#"
            waiting as materialized (
                select job_queue.job_id
                from job_queue
                cross join options
                where job_queue.tenant_id = $4 and job_queue.job_id = $8 and job_queue.version = $15
                for update of job_queue
            ),
        "#,
        from: "waiting",
        effect: [r#",
            changed as (
                update job_queue
                set priority = $16, run_at = $17, max_attempts = $18, version = version + 1
                from new_key
                where job_queue.tenant_id = new_key.tenant_id and job_queue.job_id = new_key.job_id
            )
        "#],
        next.made_from,
        next.job.priority,
        next.job.run_at,
        next.job.max_attempts,
    )
}

/// Takes a job that waits out of the queue and to those that are over, and frees its content.
pub async fn cancel(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
    options: WriteOptions,
) -> sqlx::Result<()> {
    statement_with_options!(
        query,
        options,
        [r#"
            waiting as (
                delete from job_queue
                using options
                where tenant_id = $3 and job_id = $4
                returning tenant_id, job_id, queue, priority, run_at, max_attempts, attempt, version
            ),
            freed as (
                delete from job_uniques
                using waiting
                where job_uniques.tenant_id = waiting.tenant_id and job_uniques.job_id = waiting.job_id
            )
            insert into job_outcomes (
                tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, version, finished_at
            )
            select
                tenant_id, job_id, 'cancelled', queue, priority, run_at, max_attempts, attempt, version + 1,
                clock_timestamp()
            from waiting
        "#],
        tenant.0,
        id.0,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What a deletion has found.
pub struct Deletion {
    /// The job had not been deleted before.
    pub emptied: bool,
    /// It was where jobs are that wait, or that are over.
    pub removed: bool,
}

/// Empties a job, takes it out of wherever it is, and frees its content. What remains is a row that says that it was
/// deleted.
pub async fn delete(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
    options: WriteOptions,
) -> sqlx::Result<Deletion> {
    let found = statement_with_options!(
        query,
        options,
        [r#"
            emptied as (
                update jobs
                set payload = null, deleted_at = clock_timestamp()
                from options
                where tenant_id = $3 and id = $4 and deleted_at is null
                returning id
            ),
            unqueued as (
                delete from job_queue
                using options
                where tenant_id = $3 and job_id = $4
                returning job_id
            ),
            forgotten as (
                delete from job_outcomes
                using options
                where tenant_id = $3 and job_id = $4
                returning job_id
            ),
            freed as (
                delete from job_uniques
                using options
                where tenant_id = $3 and job_id = $4
            )
            select
                exists (select from emptied) as "emptied!",
                exists (select from unqueued) or exists (select from forgotten) as "removed!"
        "#],
        tenant.0,
        id.0,
    )
    .fetch_one(connection)
    .await?;
    Ok(Deletion { emptied: found.emptied, removed: found.removed })
}
