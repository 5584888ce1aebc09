//! The one statement. See ADR 0003.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::Submission;

/// What a row that stands under the key means for the statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// The key is taken. Locks nothing; four times as fast on duplicates as the other.
    DoNothing,
    /// The key is taken unless the row has expired; then it becomes ours. Locks the row either way.
    TakeOverExpired,
}

/// On what terms the statement is sent. They are set within it, so that it needs no session of its own.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long the key lives.
    pub time_to_live: Duration,
    /// How long the statement waits for another transaction that holds the key.
    pub lock_wait: Duration,
    /// Commit durably even if somebody has turned the server's synchronous_commit off since we looked.
    pub insist_on_durability: bool,
}

/// One text for both forms.
macro_rules! statement {
    ($on_conflict:literal, $submission:ident, $terms:ident) => {
        sqlx::query_scalar!(
            r#"
            with terms as materialized (
                select
                    set_config('lock_timeout', $1, true),
                    case
                        when $23 and current_setting('synchronous_commit') = 'off'
                            then set_config('synchronous_commit', 'on', true)
                    end
            ),
            new_key as (
                insert into idempotency_keys as present (
                    tenant_id, route, key, fingerprint, job_id, status, location, body, request_id,
                    created_at, expires_at
                )
                select $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, clock_timestamp() + make_interval(secs => $12)
                from terms
                "#
                + $on_conflict
                + r#"
                returning tenant_id, job_id, created_at, expires_at
            ),
            new_job as (
                insert into jobs (tenant_id, id, type, queue, priority, run_at, max_attempts, payload, created_at)
                select tenant_id, job_id, $13, $14, $15, $16, $17, $18::text::json, created_at
                from new_key
                on conflict do nothing
                returning tenant_id, id
            ),
            new_in_queue as (
                insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts)
                select tenant_id, id, $19, $20, $21, $22
                from new_job
            )
            select expires_at from new_key
            "#,
            $terms.lock_wait.as_millis().to_string(),
            $submission.key.tenant.0,
            $submission.key.route.0,
            $submission.key.key.as_str(),
            $submission.fingerprint.as_bytes(),
            $submission.job_id.0,
            Submission::STATUS,
            $submission.location,
            &$submission.body[..],
            $submission.request_id.as_str(),
            $submission.created_at,
            $terms.time_to_live.as_secs_f64(),
            $submission.job.kind,
            $submission.job.queue,
            $submission.job.priority,
            $submission.job.run_at,
            $submission.job.max_attempts,
            $submission.job.payload,
            $submission.job.queue_or_default(),
            $submission.job.priority_or_default(),
            $submission.job.run_at.unwrap_or($submission.created_at),
            $submission.job.max_attempts_or_default(),
            $terms.insist_on_durability,
        )
    };
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
    match on_conflict {
        OnConflict::DoNothing => {
            statement!("on conflict (tenant_id, route, key) do nothing", submission, terms)
                .fetch_optional(connection)
                .await
        }
        OnConflict::TakeOverExpired => {
            statement!(
                r#"
                on conflict (tenant_id, route, key) do update
                set fingerprint = excluded.fingerprint,
                    job_id = excluded.job_id,
                    status = excluded.status,
                    location = excluded.location,
                    body = excluded.body,
                    request_id = excluded.request_id,
                    created_at = excluded.created_at,
                    expires_at = excluded.expires_at
                where present.expires_at <= clock_timestamp()
                "#,
                submission,
                terms
            )
            .fetch_optional(connection)
            .await
        }
    }
}
