//! The statements that make jobs. See ADR 0003 and ADR 0013.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Draft, Submission};
use crate::database::queries::statement_on_terms;
use crate::idempotency::queries::keyed_statement;
use crate::idempotency::{Answer, Keyed, OnConflict, Terms};
use crate::ids::{JobId, TenantId};
use crate::jobs::ContentDigest;

/// One text for jobs that are unique by their content, and those that are not.
macro_rules! submit {
    (
        $connection:ident, $submission:ident, $on_conflict:ident, $terms:ident,
        content: [$($new_content:literal)?] $(, $digest:expr)?
    ) => {{
        let Submission { keyed, draft: Draft { job, answer, .. }, .. } = $submission;
        keyed_statement!(
            $connection, keyed, answer, $on_conflict, $terms,
            given: "",
            from: "terms",
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
    terms: Terms,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    submit!(connection, submission, on_conflict, terms, content: [])
}

/// The same for a job that asks to be unique by its content. Where that is taken, it fails on [`CONTENT_TAKEN`].
pub async fn submit_unique(
    connection: &mut PgConnection,
    submission: &Submission,
    content: ContentDigest,
    on_conflict: OnConflict,
    terms: Terms,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    submit!(
        connection, submission, on_conflict, terms,
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
    terms: Terms,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    keyed_statement!(
        connection, keyed, answer, on_conflict, terms,
        given: r#"
            holder as materialized (
                select job_uniques.job_id
                from job_uniques
                cross join terms
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
pub async fn put(connection: &mut PgConnection, draft: &Draft, terms: Terms) -> sqlx::Result<bool> {
    let job = &draft.job;
    let written = statement_on_terms!(
        query_scalar,
        terms,
        [r#"
        new_job as (
            insert into jobs (
                tenant_id, id, type, queue, priority, run_at, max_attempts, payload, created_at, named
            )
            select $3, $4, $5, $6, $7, $8, $9, $10::text::json, $11, true
            from terms
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
