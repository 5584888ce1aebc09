//! The statements that make jobs. See ADR 0003 and ADR 0013.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Draft, Submission};
use crate::database::queries::statement_with_options;
use crate::idempotency::queries::keyed_statement;
use crate::idempotency::{Answer, Keyed, OnConflict, WriteOptions};
use crate::ids::{JobId, TenantId};
use crate::jobs::ContentDigest;

/// One text for jobs that are unique by their content, and those that are not.
macro_rules! submit {
    (
        $connection:ident, $submission:ident, $on_conflict:ident, $options:ident,
        content: [$($new_content:literal)?] $(, $digest:expr)?
    ) => {{
        let Submission { keyed, draft: Draft { job, answer, .. }, .. } = $submission;
        keyed_statement!(
            $connection, keyed, answer, $on_conflict, $options,
            given: "",
            from: "options",
            effect: [
                r#",
                new_job as (
                    insert into jobs (
                        tenant_id, id, type, queue, priority, run_at, max_attempts, payload, unique_by, created_at
                    )
                    select tenant_id, job_id, $15, $16, $17, $18, $19, $20::text::json, $21, created_at
                    from new_key
                    on conflict do nothing
                    returning tenant_id, id, created_at
                ),
                new_in_queue as (
                    insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at)
                    select tenant_id, id, $22, $23, $24, $25, created_at
                    from new_job
                )
                "#
                $(, $new_content)?
            ],
            job.kind,
            job.queue,
            job.priority,
            job.run_at,
            job.max_attempts,
            job.payload,
            job.unique_by.as_deref(),
            job.queue_or_default(),
            job.priority_or_default(),
            job.run_at.unwrap_or(keyed.created_at),
            job.max_attempts_or_default(),
            $($digest,)?
        )
    }};
}

/// Writes key, job, stored answer and place in the queue, all or nothing, and says until when the key lives; `None`
/// if the key is taken.
///
/// It may be sent again after an unknown commit. If the key has expired and gone by then while the job is there, the
/// job is left as it is (`on conflict do nothing`), wherever it may have got to.
pub async fn submit(
    connection: &mut PgConnection,
    submission: &Submission,
    on_conflict: OnConflict,
    options: WriteOptions,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    submit!(connection, submission, on_conflict, options, content: [])
}

/// The same for many submissions at once, none of which asks to be unique; of two with one key only the first is
/// written. Says of those that were written until when their keys live.
///
/// Keys are written in one order by all who write many, for else two of them could wait for each other. What is written
/// is looked for in what the CTE before it returned by a hash and not by a join: the planner knows nothing of how many
/// there are, and would compare each with each.
pub async fn submit_all(
    connection: &mut PgConnection,
    submissions: &[Arc<Submission>],
    options: WriteOptions,
) -> sqlx::Result<HashMap<JobId, DateTime<Utc>>> {
    let Some(first) = submissions.first() else { return Ok(HashMap::new()) };
    let (route, status) = (first.keyed.key.route, first.draft.answer.status);
    let rows = statement_with_options!(
        query,
        options,
        [r#"
        submission as materialized (
            select *
            from unnest(
                $5::uuid [], $6::text [], $7::bytea [], $8::uuid [], $9::text [], $10::bytea [], $11::text [],
                $12::timestamptz [], $13::text [], $14::text [], $15::smallint [], $16::timestamptz [], $17::integer [],
                $18::text [], $19::text [], $20::smallint [], $21::timestamptz [], $22::integer [], $23::double precision []
            ) as submission (
                tenant_id, key, fingerprint, job_id, location, body, request_id,
                created_at, type, queue, priority, run_at, max_attempts,
                payload, queue_or_default, priority_or_default, run_at_or_now, max_attempts_or_default,
                time_to_live
            )
        ),
        new_key as (
            insert into idempotency_keys (
                tenant_id, route, key, fingerprint, job_id, status, location, body, request_id, created_at, expires_at
            )
            select
                tenant_id, $3, key, fingerprint, job_id, $4, location, body, request_id, created_at,
                clock_timestamp() + make_interval(secs => time_to_live)
            from submission
            cross join options
            order by tenant_id, key collate "C"
            on conflict (tenant_id, route, key) do nothing
            returning job_id, expires_at
        ),
        new_job as (
            insert into jobs (tenant_id, id, type, queue, priority, run_at, max_attempts, payload, created_at)
            select tenant_id, job_id, type, queue, priority, run_at, max_attempts, payload::json, created_at
            from submission
            where (job_id in (select job_id from new_key)) is true
            on conflict do nothing
            returning id
        ),
        new_in_queue as (
            insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at)
            select
                tenant_id, job_id, queue_or_default, priority_or_default, run_at_or_now, max_attempts_or_default, created_at
            from submission
            where (job_id in (select id from new_job)) is true
        )
        select job_id, expires_at from new_key
        "#],
        route.0,
        status,
        &column(submissions, |submission| submission.draft.tenant.0),
        &column(submissions, |submission| submission.keyed.key.key.as_str()) as &[&str],
        &column(submissions, |submission| submission.keyed.fingerprint.as_bytes()) as &[&[u8]],
        &column(submissions, |submission| submission.draft.answer.job_id.0),
        &column(submissions, |submission| submission.draft.answer.location.as_deref()) as &[Option<&str>],
        &column(submissions, |submission| &submission.draft.answer.body[..]) as &[&[u8]],
        &column(submissions, |submission| submission.keyed.request_id.as_str()) as &[&str],
        &column(submissions, |submission| submission.draft.created_at),
        &column(submissions, |submission| submission.draft.job.kind.as_str()) as &[&str],
        &column(submissions, |submission| submission.draft.job.queue.as_deref()) as &[Option<&str>],
        &column(submissions, |submission| submission.draft.job.priority) as &[Option<i16>],
        &column(submissions, |submission| submission.draft.job.run_at) as &[Option<DateTime<Utc>>],
        &column(submissions, |submission| submission.draft.job.max_attempts) as &[Option<i32>],
        &column(submissions, |submission| submission.draft.job.payload.as_str()) as &[&str],
        &column(submissions, |submission| submission.draft.job.queue_or_default()) as &[&str],
        &column(submissions, |submission| submission.draft.job.priority_or_default()),
        &column(submissions, |submission| submission.draft.job.run_at.unwrap_or(submission.draft.created_at)),
        &column(submissions, |submission| submission.draft.job.max_attempts_or_default()),
        &column(submissions, |submission| submission.keyed.time_to_live.as_secs_f64()),
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (JobId(row.job_id), row.expires_at)).collect())
}

fn column<'s, T>(submissions: &'s [Arc<Submission>], of: impl Fn(&'s Submission) -> T) -> Vec<T> {
    submissions.iter().map(|submission| of(submission)).collect()
}

/// The same for a job that asks to be unique by its content. Where that is taken, it fails on [`CONTENT_TAKEN`].
pub async fn submit_unique(
    connection: &mut PgConnection,
    submission: &Submission,
    content: ContentDigest,
    on_conflict: OnConflict,
    options: WriteOptions,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    submit!(
        connection, submission, on_conflict, options,
        content: [r#",
            new_content as (
                insert into job_uniques (tenant_id, digest, job_id)
                select tenant_id, $26, id
                from new_job
            )
        "#],
        content.as_bytes()
    )
}

/// The constraint that another active job of the same content violates.
pub const CONTENT_TAKEN: &str = "job_uniques_pkey";

/// The active job that has the content.
pub async fn find_content(
    connection: &mut PgConnection,
    tenant: TenantId,
    content: ContentDigest,
) -> sqlx::Result<Option<JobId>> {
    let id = sqlx::query_scalar!(
        r#"
        select job_id
        from job_uniques
        where tenant_id = $1 and digest = $2
        "#,
        tenant.0,
        content.as_bytes(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(id.map(JobId))
}

/// Writes a key for a job that is there already, with the answer about it, while it has the content; `None` if it has
/// not any more, or if the key is taken.
pub async fn adopt(
    connection: &mut PgConnection,
    keyed: &Keyed,
    answer: &Answer,
    content: ContentDigest,
    on_conflict: OnConflict,
    options: WriteOptions,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    keyed_statement!(
        connection, keyed, answer, on_conflict, options,
        given: r#"
            holder as materialized (
                select job_uniques.job_id
                from job_uniques
                cross join options
                where job_uniques.tenant_id = $4 and job_uniques.digest = $15 and job_uniques.job_id = $8
                for share of job_uniques
            ),
        "#,
        from: "holder",
        effect: [],
        content.as_bytes(),
    )
}

/// Writes a job under the id that its client has chosen, and its place in the queue; says whether it did.
pub async fn put(connection: &mut PgConnection, draft: &Draft, options: WriteOptions) -> sqlx::Result<bool> {
    let job = &draft.job;
    let written = statement_with_options!(
        query_scalar,
        options,
        [r#"
        new_job as (
            insert into jobs (
                tenant_id, id, type, queue, priority, run_at, max_attempts, payload, created_at, named
            )
            select $3, $4, $5, $6, $7, $8, $9, $10::text::json, $11, true
            from options
            on conflict do nothing
            returning tenant_id, id, created_at
        ),
        new_in_queue as (
            insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at)
            select tenant_id, id, $12, $13, $14, $15, created_at
            from new_job
        )
        select true as "written!" from new_job
        "#],
        draft.tenant.0,
        draft.answer.job_id.0,
        job.kind,
        job.queue,
        job.priority,
        job.run_at,
        job.max_attempts,
        job.payload,
        draft.created_at,
        job.queue_or_default(),
        job.priority_or_default(),
        job.run_at.unwrap_or(draft.created_at),
        job.max_attempts_or_default(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(written.unwrap_or(false))
}
