//! Calls of the functions that claim and settle jobs (`migrations/*_claim.sql`, `*_heartbeat.sql`, `*_settle.sql`,
//! `*_release.sql`, `*_reclaim.sql`), and the look-up of claims.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::{
    ClaimSummary, Claimed, ClaimedJob, Heartbeat, Held, HeldJob, PAYLOAD_BYTES, Request, Settings, Settled, Settlement,
    Verdict,
};
use crate::database::WriteOptions;
use crate::ids::{ClaimId, JobId, TenantId};
use crate::jobs::State;

/// A job of a claim, or, without a job, the reason why there is none.
struct ClaimRow {
    claim_id: Uuid,
    verdict: String,
    expires_at: DateTime<Utc>,
    job_id: Option<Uuid>,
    token: Option<i32>,
    queue: Option<String>,
    priority: Option<i16>,
    run_at: Option<DateTime<Utc>>,
    attempt: Option<i32>,
    max_attempts: Option<i32>,
    created_at: Option<DateTime<Utc>>,
    kind: Option<String>,
    payload: Option<Json<Box<RawValue>>>,
}

/// The number of priorities.
pub const PRIORITIES: usize = 4;

/// Makes claims of one tenant for the same queues, or finds what they still hold. Returns one result for each, in their
/// order. `starts`: for each queue and priority, the `run_at` at which to start reading.
///
/// Safe to send again if the outcome of an attempt is unknown: it then finds the claims that the attempt made.
pub async fn claim(
    connection: &mut PgConnection,
    requests: &[Arc<Request>],
    starts: Option<&[Option<DateTime<Utc>>]>,
    options: WriteOptions,
) -> sqlx::Result<Vec<Claimed>> {
    let Some(first) = requests.first() else { return Ok(Vec::new()) };
    let rows = sqlx::query_as!(
        ClaimRow,
        r#"
        /* claim */
        select
            claim_id as "claim_id!", verdict as "verdict!", expires_at as "expires_at!", job_id, token, queue, priority,
            run_at, attempt, max_attempts, created_at, type as kind, payload as "payload: Json<Box<RawValue>>"
        from hapax.claim(
            p_tenant_id => $1,
            p_queues => $2,
            p_claim_ids => $3,
            p_fingerprints => $4,
            p_workers => $5,
            p_max_jobs => $6,
            p_lease_seconds => $7,
            p_starts => $8,
            p_payload_bytes => $9,
            p_lock_timeout_ms => $10,
            p_insist_on_durability => $11
        )
        "#,
        first.tenant.0,
        &first.queues,
        &column(requests, |request| request.id.0),
        &column(requests, |request| &request.fingerprint[..]) as &[&[u8]],
        &column(requests, |request| request.worker.as_deref()) as &[Option<&str>],
        &column(requests, |request| request.max_jobs),
        &column(requests, |request| whole_seconds(request.lease)),
        starts as Option<&[Option<DateTime<Utc>>]>,
        PAYLOAD_BYTES,
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_all(connection)
    .await?;
    let mut claims = HashMap::with_capacity(requests.len());
    for row in rows {
        let (id, expires_at) = (row.claim_id, row.expires_at);
        let is_new = match row.verdict.as_str() {
            "other" => {
                claims.insert(id, Claimed::OtherRequest);
                continue;
            }
            "ended" => {
                claims.insert(id, Claimed::Ended);
                continue;
            }
            "again" => {
                claims.insert(id, Claimed::Again);
                continue;
            }
            verdict => verdict == "claimed",
        };
        let job = row.job().ok_or_else(|| sqlx::Error::Decode("a claimed job has no payload".into()))?;
        let claim = claims.entry(id).or_insert(Claimed::Jobs { is_new, expires_at, jobs: Vec::new() });
        if let Claimed::Jobs { jobs, .. } = claim {
            jobs.push(job);
        }
    }
    Ok(requests.iter().map(|request| claims.remove(&request.id.0).unwrap_or(Claimed::Nothing)).collect())
}

fn column<'r, R, T>(requests: &'r [Arc<R>], of: impl Fn(&'r R) -> T) -> Vec<T> {
    requests.iter().map(|request| of(request)).collect()
}

impl ClaimRow {
    fn job(self) -> Option<ClaimedJob> {
        Some(ClaimedJob {
            id: JobId(self.job_id?),
            token: self.token?,
            kind: self.kind?,
            queue: self.queue?,
            priority: self.priority?,
            run_at: self.run_at?,
            attempt: self.attempt?,
            max_attempts: self.max_attempts?,
            created_at: self.created_at?,
            payload: self.payload?.0,
        })
    }
}

/// Extends claims of one tenant. Returns one result for each, in their order: `None` if it holds no job.
pub async fn heartbeat(
    connection: &mut PgConnection,
    heartbeats: &[Arc<Heartbeat>],
    options: WriteOptions,
) -> sqlx::Result<Vec<Option<Held>>> {
    let Some(first) = heartbeats.first() else { return Ok(Vec::new()) };
    let rows = sqlx::query!(
        r#"
        /* heartbeat */
        select
            claim_id as "claim_id!", expires_at as "expires_at!", lease_seconds as "lease_seconds!",
            job_ids as "job_ids!", cancel_requested_job_ids as "cancel_requested_job_ids!"
        from hapax.heartbeat(
            p_tenant_id => $1,
            p_claim_ids => $2,
            p_lock_timeout_ms => $3,
            p_insist_on_durability => $4
        )
        "#,
        first.tenant.0,
        &column(heartbeats, |heartbeat| heartbeat.claim.0),
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_all(connection)
    .await?;
    let held = rows.into_iter().map(|row| {
        let held = Held {
            expires_at: row.expires_at,
            lease: from_seconds(row.lease_seconds),
            jobs: row.job_ids.into_iter().map(JobId).collect(),
            cancel_requested: row.cancel_requested_job_ids.into_iter().map(JobId).collect(),
        };
        (row.claim_id, held)
    });
    let mut held: HashMap<Uuid, Held> = held.collect();
    Ok(heartbeats.iter().map(|heartbeat| held.remove(&heartbeat.claim.0)).collect())
}

/// Records what workers of one tenant report. Of each claim there is one settlement. Returns, in their order, one result
/// for each report.
///
/// Safe to send again: what an earlier attempt recorded is then `already-recorded`.
pub async fn settle(
    connection: &mut PgConnection,
    settlements: &[Arc<Settlement>],
    settings: &Settings,
    options: WriteOptions,
) -> sqlx::Result<Vec<Vec<Settled>>> {
    let Some(first) = settlements.first() else { return Ok(Vec::new()) };
    let reports =
        || settlements.iter().flat_map(|settlement| settlement.reports.iter().map(|report| (settlement.claim, report)));
    let rows = sqlx::query!(
        r#"
        /* settle */
        select claim_id as "claim_id!", job_id as "job_id!", verdict as "verdict!", state, run_seconds
        from hapax.settle(
            p_tenant_id => $1,
            p_claim_ids => $2,
            p_job_ids => $3,
            p_outcomes => $4,
            p_results => $5::text []::json [],
            p_errors => $6::text []::json [],
            p_retries => $7,
            p_retry_in_seconds => $8,
            p_retry_delay_min_seconds => $9,
            p_retry_delay_max_seconds => $10,
            p_lock_timeout_ms => $11,
            p_insist_on_durability => $12
        )
        "#,
        first.tenant.0,
        &reports().map(|(claim, _)| claim.0).collect::<Vec<_>>(),
        &reports().map(|(_, report)| report.job.0).collect::<Vec<_>>(),
        &reports().map(|(_, report)| report.outcome.name()).collect::<Vec<_>>() as &[&str],
        &reports().map(|(_, report)| report.result.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &reports().map(|(_, report)| report.error.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &reports().map(|(_, report)| report.retry).collect::<Vec<_>>(),
        &reports().map(|(_, report)| report.retry_in_seconds).collect::<Vec<_>>() as &[Option<f64>],
        settings.retry_delay_min.as_secs_f64(),
        settings.retry_delay_max.as_secs_f64(),
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_all(connection)
    .await?;
    let mut verdicts = HashMap::with_capacity(rows.len());
    for row in rows {
        let verdict = Verdict::parse(&row.verdict)
            .ok_or_else(|| sqlx::Error::Decode("the verdict on a report is unknown".into()))?;
        // Negative if PostgreSQL's clock was set back.
        let run = row.run_seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
        verdicts.insert((row.claim_id, row.job_id), (verdict, row.state.as_deref().and_then(State::parse), run));
    }
    let settled = settlements.iter().map(|settlement| {
        let Settlement { claim, reports, .. } = &**settlement;
        let settled = reports.iter().map(|report| {
            let (verdict, state, run) = verdicts.get(&(claim.0, report.job.0)).copied()?;
            Some(Settled { job: report.job, verdict, state, run })
        });
        settled.collect::<Option<Vec<_>>>()
    });
    settled.collect::<Option<_>>().ok_or_else(|| sqlx::Error::Decode("a report got no verdict".into()))
}

/// Ends a claim and gives its jobs back. Returns how many jobs that were.
pub async fn release(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: ClaimId,
    options: WriteOptions,
) -> sqlx::Result<u32> {
    let released = sqlx::query_scalar!(
        r#"
        /* release */
        select hapax.release(
            p_tenant_id => $1,
            p_claim_id => $2,
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
    Ok(released.unwrap_or_default().unsigned_abs())
}

/// What a look of the reclaimer did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reclaimed {
    /// Claims that were due.
    pub looked_at: u64,
    pub requeued: u64,
    pub failed: u64,
    pub cancelled: u64,
}

/// Takes the jobs of up to `limit` expired claims. It skips claims, leases and contents of jobs that another transaction
/// has locked, so several reclaimers may run at once. It fails if a table is locked for a second.
pub async fn reclaim(connection: &mut PgConnection, limit: i32) -> sqlx::Result<Reclaimed> {
    let row = sqlx::query!(
        r#"
        /* reclaim */
        select looked_at as "looked_at!", requeued as "requeued!", failed as "failed!", cancelled as "cancelled!"
        from hapax.reclaim(p_limit => $1)
        "#,
        limit,
    )
    .fetch_one(connection)
    .await?;
    Ok(Reclaimed {
        looked_at: row.looked_at.unsigned_abs(),
        requeued: row.requeued.unsigned_abs(),
        failed: row.failed.unsigned_abs(),
        cancelled: row.cancelled.unsigned_abs(),
    })
}

/// A claim and one of its jobs, or a claim without a job.
struct HeldRow {
    id: Uuid,
    worker: Option<String>,
    queues: Vec<String>,
    lease_seconds: i32,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    released_at: Option<DateTime<Utc>>,
    job_id: Option<Uuid>,
    token: Option<i32>,
    attempt: Option<i32>,
    started_at: Option<DateTime<Utc>>,
    cancel_requested: bool,
}

/// A claim with the jobs that it holds.
pub async fn find(connection: &mut PgConnection, tenant: TenantId, id: ClaimId) -> sqlx::Result<Option<ClaimSummary>> {
    let rows = sqlx::query_as!(
        HeldRow,
        r#"
        /* find_claim */
        select
            claims.id, claims.worker, claims.queues as "queues!", claims.lease_seconds as "lease_seconds!",
            claims.created_at, claims.expires_at, claims.released_at, lease.job_id as "job_id?",
            lease.token as "token?", lease.attempt as "attempt?", lease.started_at as "started_at?",
            lease.cancel_requested_at is not null as "cancel_requested!"
        from hapax.claims
        left join hapax.job_leases as lease on lease.tenant_id = $1 and lease.claim_id = $2
        where claims.tenant_id = $1 and claims.id = $2 and claims.fingerprint is not null
        order by lease.job_id
        "#,
        tenant.0,
        id.0,
    )
    .fetch_all(connection)
    .await?;
    Ok(summaries(rows).pop())
}

/// Claims that hold jobs, from this id on.
pub async fn list(
    connection: &mut PgConnection,
    tenant: TenantId,
    from: Option<ClaimId>,
    limit: i64,
) -> sqlx::Result<Vec<ClaimSummary>> {
    let rows = sqlx::query_as!(
        HeldRow,
        r#"
        /* list_claims */
        with recursive holding as (
            (
                select claim_id
                from hapax.job_leases
                where tenant_id = $1 and claim_id >= $2
                order by claim_id
                limit 1
            )
            union all
            select (
                select job_leases.claim_id
                from hapax.job_leases
                where job_leases.tenant_id = $1 and job_leases.claim_id > holding.claim_id
                order by job_leases.claim_id
                limit 1
            )
            from holding
            where holding.claim_id is not null
        ),
        page as (
            select claim_id
            from holding
            where claim_id is not null
            limit $3
        )
        select
            claims.id, claims.worker, claims.queues as "queues!", claims.lease_seconds as "lease_seconds!",
            claims.created_at, claims.expires_at, claims.released_at, lease.job_id as "job_id?",
            lease.token as "token?", lease.attempt as "attempt?", lease.started_at as "started_at?",
            lease.cancel_requested_at is not null as "cancel_requested!"
        from page
        join hapax.claims on claims.tenant_id = $1 and claims.id = page.claim_id
        join hapax.job_leases as lease on lease.tenant_id = $1 and lease.claim_id = page.claim_id
        order by claims.id, lease.job_id
        "#,
        tenant.0,
        from.map_or(Uuid::nil(), |id| id.0),
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(summaries(rows))
}

/// The rows of a claim follow each other.
fn summaries(rows: Vec<HeldRow>) -> Vec<ClaimSummary> {
    let mut claims: Vec<ClaimSummary> = Vec::new();
    for row in rows {
        if claims.last().is_none_or(|claim| claim.id.0 != row.id) {
            claims.push(ClaimSummary {
                id: ClaimId(row.id),
                worker: row.worker.clone(),
                queues: row.queues.clone(),
                lease: from_seconds(row.lease_seconds),
                created_at: row.created_at,
                expires_at: row.expires_at,
                released_at: row.released_at,
                jobs: Vec::new(),
            });
        }
        let cancel_requested = row.cancel_requested;
        let job = (row.job_id, row.token, row.attempt, row.started_at);
        if let (Some(claim), (Some(id), Some(token), Some(attempt), Some(started_at))) = (claims.last_mut(), job) {
            claim.jobs.push(HeldJob { id: JobId(id), token, attempt, started_at, cancel_requested });
        }
    }
    claims
}

fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

fn from_seconds(seconds: i32) -> Duration {
    Duration::from_secs(seconds.unsigned_abs().into())
}
