//! Calls of the functions that insert jobs (`migrations/*_submit.sql`, `*_adopt.sql`, `*_put.sql`). See ADR 0003 and
//! 0013.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Draft, Submission};
use crate::database::WriteOptions;
use crate::idempotency::{Answer, Keyed};
use crate::ids::{JobId, TenantId};
use crate::jobs::ContentDigest;

/// Inserts the idempotency key with its stored answer, the job, and its place in the queue, all or none. Returns when
/// the key expires, or `None` if the key is taken. Violates [`crate::jobs::CONTENT_TAKEN`] if an active job has the content.
///
/// Safe to send again if the outcome of an attempt is unknown.
pub async fn submit(
    connection: &mut PgConnection,
    submission: &Submission,
    options: WriteOptions,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    let Submission { keyed, draft: Draft { job, answer, .. }, content } = submission;
    sqlx::query_scalar!(
        r#"
        /* submit */
        select hapax.submit(
            p_tenant_id => $1,
            p_route => $2,
            p_key => $3,
            p_fingerprint => $4,
            p_request_id => $5,
            p_created_at => $6,
            p_time_to_live_seconds => $7,
            p_body => $8,
            p_job_id => $9,
            p_type => $10,
            p_queue => $11,
            p_priority => $12,
            p_run_at => $13,
            p_max_attempts => $14,
            p_unique_by => $15,
            p_payload => $16,
            p_content_digest => $17,
            p_lock_timeout_ms => $18,
            p_insist_on_durability => $19
        )
        "#,
        keyed.key.tenant.0,
        keyed.key.route.0,
        keyed.key.key.as_str(),
        keyed.fingerprint.as_bytes(),
        keyed.request_id.as_str(),
        keyed.created_at,
        keyed.time_to_live.as_secs_f64(),
        &answer.body[..],
        answer.job_id.0,
        job.kind,
        job.queue.as_deref(),
        job.priority,
        job.run_at,
        job.max_attempts,
        job.unique_by.as_deref(),
        job.payload,
        content.as_ref().map(ContentDigest::as_bytes) as Option<&[u8]>,
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await
}

/// Does the same for many submissions, none of which is unique by content. Returns the inserted jobs and when their
/// keys expire. Of two submissions with the same key, only the first is inserted.
pub async fn submit_many(
    connection: &mut PgConnection,
    submissions: &[Arc<Submission>],
    options: WriteOptions,
) -> sqlx::Result<HashMap<JobId, DateTime<Utc>>> {
    let Some(first) = submissions.first() else { return Ok(HashMap::new()) };
    let rows = sqlx::query!(
        r#"
        /* submit_many */
        select submitted_job_id as "job_id!", key_expires_at as "expires_at!"
        from hapax.submit_many(
            p_tenant_ids => $1,
            p_route => $2,
            p_keys => $3,
            p_fingerprints => $4,
            p_request_ids => $5,
            p_created_ats => $6,
            p_times_to_live_seconds => $7,
            p_bodies => $8,
            p_job_ids => $9,
            p_types => $10,
            p_queues => $11,
            p_priorities => $12,
            p_run_ats => $13,
            p_max_attempts => $14,
            p_payloads => $15,
            p_lock_timeout_ms => $16,
            p_insist_on_durability => $17
        )
        "#,
        &column(submissions, |submission| submission.draft.tenant.0),
        first.keyed.key.route.0,
        &column(submissions, |submission| submission.keyed.key.key.as_str()) as &[&str],
        &column(submissions, |submission| submission.keyed.fingerprint.as_bytes()) as &[&[u8]],
        &column(submissions, |submission| submission.keyed.request_id.as_str()) as &[&str],
        &column(submissions, |submission| submission.draft.created_at),
        &column(submissions, |submission| submission.keyed.time_to_live.as_secs_f64()),
        &column(submissions, |submission| &submission.draft.answer.body[..]) as &[&[u8]],
        &column(submissions, |submission| submission.draft.answer.job_id.0),
        &column(submissions, |submission| submission.draft.job.kind.as_str()) as &[&str],
        &column(submissions, |submission| submission.draft.job.queue.as_deref()) as &[Option<&str>],
        &column(submissions, |submission| submission.draft.job.priority) as &[Option<i16>],
        &column(submissions, |submission| submission.draft.job.run_at) as &[Option<DateTime<Utc>>],
        &column(submissions, |submission| submission.draft.job.max_attempts) as &[Option<i32>],
        &column(submissions, |submission| submission.draft.job.payload.as_str()) as &[&str],
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (JobId(row.job_id), row.expires_at)).collect())
}

fn column<'s, T>(submissions: &'s [Arc<Submission>], of: impl Fn(&'s Submission) -> T) -> Vec<T> {
    submissions.iter().map(|submission| of(submission)).collect()
}

/// The active job that has the content.
pub async fn find_content(
    connection: &mut PgConnection,
    tenant: TenantId,
    content: ContentDigest,
) -> sqlx::Result<Option<JobId>> {
    let id = sqlx::query_scalar!(
        r#"
        /* find_content */
        select job_id
        from hapax.job_uniques
        where tenant_id = $1 and digest = $2
        "#,
        tenant.0,
        content.as_bytes(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(id.map(JobId))
}

/// Inserts an idempotency key for an active job with the same content. Returns when the key expires, or `None` if the
/// job no longer has the content or the key is taken.
pub async fn adopt(
    connection: &mut PgConnection,
    keyed: &Keyed,
    answer: &Answer,
    content: ContentDigest,
    options: WriteOptions,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        r#"
        /* adopt */
        select hapax.adopt(
            p_tenant_id => $1,
            p_route => $2,
            p_key => $3,
            p_fingerprint => $4,
            p_request_id => $5,
            p_created_at => $6,
            p_time_to_live_seconds => $7,
            p_body => $8,
            p_job_id => $9,
            p_job_version => $10,
            p_content_digest => $11,
            p_lock_timeout_ms => $12,
            p_insist_on_durability => $13
        )
        "#,
        keyed.key.tenant.0,
        keyed.key.route.0,
        keyed.key.key.as_str(),
        keyed.fingerprint.as_bytes(),
        keyed.request_id.as_str(),
        keyed.created_at,
        keyed.time_to_live.as_secs_f64(),
        &answer.body[..],
        answer.job_id.0,
        answer.job_version,
        content.as_bytes(),
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await
}

/// Inserts a job under an id that the client chose, and its place in the queue. Returns `false` if the id is taken.
pub async fn put(connection: &mut PgConnection, draft: &Draft, options: WriteOptions) -> sqlx::Result<bool> {
    let job = &draft.job;
    sqlx::query_scalar!(
        r#"
        /* put */
        select hapax.put(
            p_tenant_id => $1,
            p_job_id => $2,
            p_created_at => $3,
            p_type => $4,
            p_queue => $5,
            p_priority => $6,
            p_run_at => $7,
            p_max_attempts => $8,
            p_payload => $9,
            p_lock_timeout_ms => $10,
            p_insist_on_durability => $11
        ) as "written!"
        "#,
        draft.tenant.0,
        draft.answer.job_id.0,
        draft.created_at,
        job.kind,
        job.queue.as_deref(),
        job.priority,
        job.run_at,
        job.max_attempts,
        job.payload,
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await
}
