//! Claims: a worker takes jobs, holds them by a lease, and reports what became of them.
//!
//! Owns the claim, its request, the reports of workers and the reclaimer, with their statements. Every call is safe to
//! repeat on any replica, because the database decides by the claim's row and its leases. See ADR 0031.

mod queries;
pub mod reclaimer;
mod report;
mod request;

pub use report::{InvalidReports, Reports, Settled, SizeLimits, Verdict};
pub use request::Request;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::database::{DatabaseError, SharedPool, Writes};
use crate::ids::{ClaimId, JobId, TenantId};
use crate::jobs::State;
use crate::long_poll::LongPolls;
use crate::metrics::{ClaimResult, Metrics};

/// Claims, heartbeats and results. Every call of a worker goes through it.
pub struct Claims {
    writes: Writes,
    reads: SharedPool,
    settings: Settings,
    long_polls: Arc<LongPolls>,
}

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The delay before the second attempt of a failed job. It doubles with each attempt.
    pub retry_delay_min: Duration,
    pub retry_delay_max: Duration,
}

/// The answer to a request for a claim.
#[derive(Debug)]
pub enum Claimed {
    Jobs {
        /// This request made the claim. Otherwise it is a repetition.
        is_new: bool,
        expires_at: DateTime<Utc>,
        jobs: Vec<ClaimedJob>,
    },
    /// There was no job. Nothing is stored, and the id can be used again.
    Nothing,
    /// The id stands for another request.
    OtherRequest,
    /// The claim holds no job any more, or was released.
    Ended,
}

impl Claimed {
    /// Counts the answer to a request, and how long its jobs waited.
    pub fn count(&self, request: &Request, metrics: &Metrics) {
        metrics.count_claim(match self {
            Self::Jobs { is_new: true, .. } => ClaimResult::Claimed,
            Self::Jobs { is_new: false, .. } => ClaimResult::Repeated,
            Self::Nothing => ClaimResult::Nothing,
            Self::OtherRequest => ClaimResult::Other,
            Self::Ended => ClaimResult::Ended,
        });
        if let Self::Jobs { is_new: true, expires_at, jobs } = self {
            let claimed_at = *expires_at - request.lease;
            for job in jobs {
                let wait = claimed_at - job.run_at.max(job.created_at);
                // Negative if PostgreSQL's clock was set back.
                metrics.observe_job_wait(wait.to_std().unwrap_or_default());
            }
        }
    }
}

/// A job as its worker gets it.
#[derive(Debug)]
pub struct ClaimedJob {
    pub id: JobId,
    /// Greater than in any earlier lease of the job. A worker can pass it to other systems as a fencing token.
    pub token: i32,
    pub kind: String,
    pub queue: String,
    pub priority: i16,
    pub run_at: DateTime<Utc>,
    pub attempt: i32,
    pub max_attempts: i32,
    pub created_at: DateTime<Utc>,
    pub payload: Box<RawValue>,
}

/// What a claim holds after a heartbeat.
#[derive(Debug)]
pub struct Held {
    pub expires_at: DateTime<Utc>,
    pub lease: Duration,
    pub jobs: Vec<JobId>,
    /// Those of `jobs` that should stop.
    pub cancel_requested: Vec<JobId>,
}

/// A claim for people who look for who holds what.
#[derive(Debug)]
pub struct ClaimSummary {
    pub id: ClaimId,
    pub worker: Option<String>,
    pub queues: Vec<String>,
    pub lease: Duration,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub released_at: Option<DateTime<Utc>>,
    pub jobs: Vec<HeldJob>,
}

#[derive(Debug)]
pub struct HeldJob {
    pub id: JobId,
    pub token: i32,
    pub attempt: i32,
    pub started_at: DateTime<Utc>,
    pub cancel_requested: bool,
}

impl Claims {
    pub fn new(writes: Writes, reads: SharedPool, settings: Settings, long_polls: Arc<LongPolls>) -> Self {
        Self { writes, reads, settings, long_polls }
    }

    /// Makes the claim, or finds it again.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn claim(&self, request: &Request, deadline: Instant) -> Result<Claimed, DatabaseError> {
        let claim = async |options| {
            let write = async |connection: &mut _| queries::claim(connection, request, options).await;
            self.writes.pool().complete("claim", request.tenant, deadline, write).await
        };
        self.writes.with_lock_wait(request.tenant, deadline, claim).await
    }

    /// Extends the claim's lease. `None` if the claim holds no job.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn heartbeat(
        &self,
        tenant: TenantId,
        id: ClaimId,
        deadline: Instant,
    ) -> Result<Option<Held>, DatabaseError> {
        let heartbeat = async |options| {
            let write = async |connection: &mut _| queries::heartbeat(connection, tenant, id, options).await;
            self.writes.pool().complete("heartbeat", tenant, deadline, write).await
        };
        self.writes.with_lock_wait(tenant, deadline, heartbeat).await
    }

    /// Records what a worker reports. One result for each report, in their order.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn settle(
        &self,
        tenant: TenantId,
        id: ClaimId,
        reports: &Reports,
        deadline: Instant,
    ) -> Result<Vec<Settled>, DatabaseError> {
        let settle = async |options| {
            let write = async |connection: &mut _| {
                queries::settle(connection, tenant, id, reports, &self.settings, options).await
            };
            self.writes.pool().complete("settle", tenant, deadline, write).await
        };
        let settled = self.writes.with_lock_wait(tenant, deadline, settle).await?;
        for Settled { job, state, .. } in &settled {
            if state.is_some_and(State::is_final) {
                self.long_polls.job_finished(tenant, *job);
            }
        }
        Ok(settled)
    }

    /// Ends the claim and gives its jobs back. Succeeds also if the claim is unknown; then it can never begin.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn release(&self, tenant: TenantId, id: ClaimId, deadline: Instant) -> Result<(), DatabaseError> {
        let release = async |options| {
            let write = async |connection: &mut _| queries::release(connection, tenant, id, options).await;
            self.writes.pool().complete("release", tenant, deadline, write).await
        };
        self.writes.with_lock_wait(tenant, deadline, release).await
    }

    /// A claim, with the jobs that it holds. `None` if the id is unknown, or its request never arrived.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn find(
        &self,
        tenant: TenantId,
        id: ClaimId,
        deadline: Instant,
    ) -> Result<Option<ClaimSummary>, DatabaseError> {
        let find = async |connection: &mut _| queries::find(connection, tenant, id).await;
        self.reads.read("find_claim", tenant, deadline, find).await
    }

    /// Up to `limit` claims that hold jobs, from the id `from` on, in the order of ids; and the id at which the next page
    /// begins.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn list(
        &self,
        tenant: TenantId,
        from: Option<ClaimId>,
        limit: u16,
        deadline: Instant,
    ) -> Result<(Vec<ClaimSummary>, Option<ClaimId>), DatabaseError> {
        let wanted = i64::from(limit) + 1;
        let list = async |connection: &mut _| queries::list(connection, tenant, from, wanted).await;
        let mut claims = self.reads.read("list_claims", tenant, deadline, list).await?;
        let next = claims.get(usize::from(limit)).map(|claim| claim.id);
        claims.truncate(usize::from(limit));
        Ok((claims, next))
    }
}
