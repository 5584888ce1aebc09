//! Claims: a worker takes jobs, holds them by a lease, and reports what became of them.
//!
//! Owns the claim, its request, the reports of workers and the reclaimer, with their statements. Every call is safe to
//! repeat on any replica, because the database decides by the claim's row and its leases. See ADR 0031.

mod grouped;
mod low_water_marks;
mod queries;
pub mod reclaimer;
mod report;
mod request;

pub use grouped::{ExtendClaims, MakeClaims, SettleJobs};
pub use report::{InvalidReports, Report, Reports, Settled, SizeLimits, Verdict};
pub use request::Request;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::database::{DatabaseError, Pool, SharedPool, WriteOptions, Writes};
use crate::group_commit::{Bounds, GroupCommit, GroupedWrite};
use crate::ids::{ClaimId, JobId, TenantId};
use crate::jobs::State;
use crate::long_poll::LongPolls;
use crate::metrics::{ClaimResult, Metrics};
use low_water_marks::LowWaterMarks;

/// Claims, heartbeats and results. Every call of a worker goes through it.
pub struct Claims {
    groups: Groups,
    /// For releases, and for what waits for another transaction.
    writes: Writes,
    reads: SharedPool,
    long_polls: Arc<LongPolls>,
}

/// What workers write, by group commit. Each has its own writers, so that slow claims delay no heartbeat.
#[derive(Clone)]
pub struct Groups {
    pub claims: Arc<GroupCommit<MakeClaims>>,
    pub heartbeats: Arc<GroupCommit<ExtendClaims>>,
    pub results: Arc<GroupCommit<SettleJobs>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The delay before the second attempt of a failed job. It doubles with each attempt.
    pub retry_delay_min: Duration,
    pub retry_delay_max: Duration,
}

/// A claim that takes several jobs takes no further one once their payloads have this size.
pub const PAYLOAD_BYTES: i32 = 4 * 1024 * 1024;

/// A request to extend a claim.
#[derive(Debug)]
pub struct Heartbeat {
    pub tenant: TenantId,
    pub claim: ClaimId,
}

/// What a worker reports in one request.
#[derive(Debug)]
pub struct Settlement {
    pub tenant: TenantId,
    pub claim: ClaimId,
    pub reports: Vec<Report>,
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
    /// The jobs of the other claims in the statement were too large to take one for this claim, too. [`Claims::claim`]
    /// tries again.
    Again,
}

impl Claimed {
    /// Counts the answer to a request, and how long its jobs waited.
    pub fn count(&self, request: &Request, metrics: &Metrics) {
        metrics.count_claim(match self {
            Self::Jobs { is_new: true, .. } => ClaimResult::Claimed,
            Self::Jobs { is_new: false, .. } => ClaimResult::Repeated,
            Self::Nothing | Self::Again => ClaimResult::Nothing,
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

impl Groups {
    /// Claims, heartbeats and results.
    pub const KINDS: usize = 3;

    /// `pool` has a connection for each writer, and there are `writers` of each kind.
    pub fn new(pool: &Pool, writers: usize, bounds: Bounds, settings: Settings) -> Self {
        fn group<W: GroupedWrite>(write: W, pool: &Pool, writers: usize, bounds: Bounds) -> Arc<GroupCommit<W>> {
            Arc::new(GroupCommit::new(write, pool.clone(), writers, bounds))
        }
        Self {
            claims: group(MakeClaims { marks: LowWaterMarks::new() }, pool, writers, bounds),
            heartbeats: group(ExtendClaims, pool, writers, bounds),
            results: group(SettleJobs { settings }, pool, writers, bounds),
        }
    }
}

impl Claims {
    /// The caller runs the writers of `groups`.
    pub fn new(groups: Groups, writes: Writes, reads: SharedPool, long_polls: Arc<LongPolls>) -> Self {
        Self { groups, writes, reads, long_polls }
    }

    /// Makes the claim, or finds it again.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn claim(&self, request: &Arc<Request>, deadline: Instant) -> Result<Claimed, DatabaseError> {
        loop {
            match self.write(&self.groups.claims, request, deadline).await? {
                Claimed::Again => {}
                claimed => return Ok(claimed),
            }
        }
    }

    /// Extends the claim's lease. `None` if the claim holds no job.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn heartbeat(
        &self,
        tenant: TenantId,
        claim: ClaimId,
        deadline: Instant,
    ) -> Result<Option<Held>, DatabaseError> {
        self.write(&self.groups.heartbeats, &Arc::new(Heartbeat { tenant, claim }), deadline).await
    }

    /// Records what a worker reports. One result for each report, in their order.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn settle(&self, settlement: &Arc<Settlement>, deadline: Instant) -> Result<Vec<Settled>, DatabaseError> {
        let settled = self.write(&self.groups.results, settlement, deadline).await?;
        for Settled { job, state, .. } in &settled {
            if state.is_some_and(State::is_final) {
                self.long_polls.job_finished(settlement.tenant, *job);
            }
        }
        Ok(settled)
    }

    /// Writes by group commit. If a lock is held for longer than a group can wait, waits alone.
    async fn write<W: GroupedWrite>(
        &self,
        group: &GroupCommit<W>,
        request: &Arc<W::Request>,
        deadline: Instant,
    ) -> Result<W::Outcome, DatabaseError> {
        let tenant = W::tenant(request);
        let attempt = async |options: WriteOptions| {
            if options.is_brief() {
                return group.enqueue(Arc::clone(request), deadline).await;
            }
            group.write_alone(request, options, self.writes.pool(), deadline).await
        };
        self.writes.with_lock_wait(tenant, deadline, attempt).await
    }

    /// Ends the claim and gives its jobs back. Succeeds also if the claim is unknown; then it can never begin. Returns how
    /// many jobs were released. That is 0 if a lost attempt has released them.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn release(&self, tenant: TenantId, id: ClaimId, deadline: Instant) -> Result<u32, DatabaseError> {
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
