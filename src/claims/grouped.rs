//! Claims, heartbeats and results as grouped writes.

use std::sync::Arc;
use std::time::Instant;

use sqlx::PgConnection;
use uuid::Uuid;

use super::low_water_marks::LowWaterMarks;
use super::{Claimed, Heartbeat, Held, Request, Settings, Settled, Settlement, queries};
use crate::database::WriteOptions;
use crate::group_commit::{GroupedWrite, Size};
use crate::ids::TenantId;

/// Claims of one tenant for the same queues.
pub struct MakeClaims {
    pub marks: LowWaterMarks<(TenantId, Vec<String>)>,
}

/// Heartbeats of one tenant.
pub struct ExtendClaims;

/// Results that workers of one tenant report.
pub struct SettleJobs {
    pub settings: Settings,
}

/// The size of a row without the texts of the client.
const ROW_BYTES: usize = 128;

impl GroupedWrite for MakeClaims {
    type Request = Request;
    type Outcome = Claimed;
    type Group = (TenantId, Vec<String>);

    const NAME: &'static str = "claim";
    const OF_ONE_TENANT: bool = true;

    fn tenant(request: &Request) -> TenantId {
        request.tenant
    }

    fn group(request: &Request) -> (TenantId, Vec<String>) {
        (request.tenant, request.queues.clone())
    }

    fn size(request: &Request) -> Size {
        let worker = request.worker.as_ref().map_or(0, String::len);
        Size { jobs: usize::try_from(request.max_jobs).unwrap_or(1), bytes: ROW_BYTES + worker }
    }

    /// Two copies of a claim in one statement would both make it.
    fn identity(request: &Request) -> Option<Uuid> {
        Some(request.id.0)
    }

    async fn write(
        &self,
        connection: &mut PgConnection,
        requests: &[Arc<Request>],
        options: WriteOptions,
    ) -> sqlx::Result<Vec<Option<Claimed>>> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let group = Self::group(first);
        let began = Instant::now();
        let starts = self.marks.starts(&group, began);
        let claimed = queries::claim(connection, requests, starts.as_deref(), options).await?;
        let new_jobs = claimed.iter().flat_map(|claimed| match claimed {
            Claimed::Jobs { is_new: true, jobs, .. } => jobs.as_slice(),
            _ => &[],
        });
        let places = new_jobs.filter_map(|job| {
            let queue = group.1.iter().position(|queue| *queue == job.queue)?;
            let priority = usize::try_from(job.priority).ok()?.checked_sub(1)?;
            Some((queue * queries::PRIORITIES + priority, job.run_at))
        });
        let read_from_start = starts.is_none();
        let count = group.1.len() * queries::PRIORITIES;
        self.marks.record(&group, (began, began.elapsed()), read_from_start, count, places);
        Ok(claimed.into_iter().map(Some).collect())
    }
}

impl GroupedWrite for ExtendClaims {
    type Request = Heartbeat;
    /// `None` if the claim holds no job.
    type Outcome = Option<Held>;
    type Group = TenantId;

    const NAME: &'static str = "heartbeat";
    const OF_ONE_TENANT: bool = true;

    fn tenant(heartbeat: &Heartbeat) -> TenantId {
        heartbeat.tenant
    }

    fn group(heartbeat: &Heartbeat) -> TenantId {
        heartbeat.tenant
    }

    fn size(_: &Heartbeat) -> Size {
        Size { jobs: 1, bytes: ROW_BYTES }
    }

    fn identity(heartbeat: &Heartbeat) -> Option<Uuid> {
        Some(heartbeat.claim.0)
    }

    async fn write(
        &self,
        connection: &mut PgConnection,
        heartbeats: &[Arc<Heartbeat>],
        options: WriteOptions,
    ) -> sqlx::Result<Vec<Option<Option<Held>>>> {
        let held = queries::heartbeat(connection, heartbeats, options).await?;
        Ok(held.into_iter().map(Some).collect())
    }
}

impl GroupedWrite for SettleJobs {
    type Request = Settlement;
    type Outcome = Vec<Settled>;
    type Group = TenantId;

    const NAME: &'static str = "settle";
    const OF_ONE_TENANT: bool = true;

    fn tenant(settlement: &Settlement) -> TenantId {
        settlement.tenant
    }

    fn group(settlement: &Settlement) -> TenantId {
        settlement.tenant
    }

    fn size(Settlement { reports, .. }: &Settlement) -> Size {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let texts: usize = reports.iter().map(|report| length(&report.result) + length(&report.error)).sum();
        Size { jobs: reports.len(), bytes: ROW_BYTES * reports.len() + texts }
    }

    /// Two reports of one claim about one job cannot both be judged in one statement.
    fn identity(settlement: &Settlement) -> Option<Uuid> {
        Some(settlement.claim.0)
    }

    async fn write(
        &self,
        connection: &mut PgConnection,
        settlements: &[Arc<Settlement>],
        options: WriteOptions,
    ) -> sqlx::Result<Vec<Option<Vec<Settled>>>> {
        let settled = queries::settle(connection, settlements, &self.settings, options).await?;
        Ok(settled.into_iter().map(Some).collect())
    }
}
