//! Calls of the functions that change a job (`migrations/*_patch.sql`, `*_cancel.sql`,
//! `*_delete.sql`, `*_retry.sql`).

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::ChangedJob;
use crate::database::WriteOptions;
use crate::idempotency::Keyed;
use crate::ids::{JobId, TenantId};
use crate::jobs::ContentDigest;

/// Changes a queued job if it still has the version that was read. Returns whether it did.
pub async fn patch(
    connection: &mut PgConnection,
    tenant: TenantId,
    changed: &ChangedJob,
    options: WriteOptions,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"
        /* patch */
        select hapax.patch(
            p_tenant_id => $1,
            p_job_id => $2,
            p_version => $3,
            p_priority => $4,
            p_run_at => $5,
            p_max_attempts => $6,
            p_lock_timeout_ms => $7,
            p_insist_on_durability => $8
        ) as "changed!"
        "#,
        tenant.0,
        changed.job.id.0,
        changed.base_version,
        changed.job.priority,
        changed.job.run_at,
        changed.job.max_attempts,
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await
}

/// Does the same and inserts an idempotency key, both or neither. Returns when the key expires, or `None` if the job is
/// not queued with this version or the key is taken.
pub async fn patch_keyed(
    connection: &mut PgConnection,
    keyed: &Keyed,
    changed: &ChangedJob,
    options: WriteOptions,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        r#"
        /* patch_keyed */
        select hapax.patch_keyed(
            p_tenant_id => $1,
            p_route => $2,
            p_key => $3,
            p_fingerprint => $4,
            p_request_id => $5,
            p_created_at => $6,
            p_time_to_live_seconds => $7,
            p_body => $8,
            p_job_id => $9,
            p_version => $10,
            p_priority => $11,
            p_run_at => $12,
            p_max_attempts => $13,
            p_lock_timeout_ms => $14,
            p_insist_on_durability => $15
        )
        "#,
        keyed.key.tenant.0,
        keyed.key.route.0,
        keyed.key.key.as_str(),
        keyed.fingerprint.as_bytes(),
        keyed.request_id.as_str(),
        keyed.created_at,
        keyed.time_to_live.as_secs_f64(),
        &changed.answer.body[..],
        changed.job.id.0,
        changed.base_version,
        changed.job.priority,
        changed.job.run_at,
        changed.job.max_attempts,
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await
}

/// Puts a finished job back into the queue if it still has the version that was read, and inserts an idempotency key,
/// both or neither. Returns when the key expires, or `None` if the job has changed or the key is taken. Violates
/// [`crate::jobs::CONTENT_TAKEN`] if another active job has the content.
pub async fn retry(
    connection: &mut PgConnection,
    keyed: &Keyed,
    changed: &ChangedJob,
    content: Option<ContentDigest>,
    options: WriteOptions,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        r#"
        /* retry */
        select hapax.retry(
            p_tenant_id => $1,
            p_route => $2,
            p_key => $3,
            p_fingerprint => $4,
            p_request_id => $5,
            p_created_at => $6,
            p_time_to_live_seconds => $7,
            p_body => $8,
            p_job_id => $9,
            p_version => $10,
            p_run_at => $11,
            p_content_digest => $12,
            p_lock_timeout_ms => $13,
            p_insist_on_durability => $14
        )
        "#,
        keyed.key.tenant.0,
        keyed.key.route.0,
        keyed.key.key.as_str(),
        keyed.fingerprint.as_bytes(),
        keyed.request_id.as_str(),
        keyed.created_at,
        keyed.time_to_live.as_secs_f64(),
        &changed.answer.body[..],
        changed.job.id.0,
        changed.base_version,
        changed.job.run_at,
        content.as_ref().map(ContentDigest::as_bytes) as Option<&[u8]>,
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await
}

/// Moves a queued job to the outcomes and frees its content, or asks the worker of a running job to stop.
pub async fn cancel(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
    options: WriteOptions,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        /* cancel */
        select hapax.cancel(
            p_tenant_id => $1,
            p_job_id => $2,
            p_lock_timeout_ms => $3,
            p_insist_on_durability => $4
        )
        "#,
        tenant.0,
        id.0,
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// Removes the payload of a job, removes the job from wherever it is, and frees its content. Its row in `jobs`
/// remains and says that the job was deleted.
pub async fn delete(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: JobId,
    options: WriteOptions,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        /* delete */
        select hapax.delete(
            p_tenant_id => $1,
            p_job_id => $2,
            p_lock_timeout_ms => $3,
            p_insist_on_durability => $4
        )
        "#,
        tenant.0,
        id.0,
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
