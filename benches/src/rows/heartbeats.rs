//! J: heartbeats of claims with one job and with a hundred.

use crate::ledger::Ledger;
use crate::results::{Results, Row};
use crate::rows::fill::{Due, fill, make_steady};
use crate::rows::found;
use crate::run::Setting;

pub const FEW_JOBS: u32 = 1;
pub const MANY_JOBS: u32 = 100;
/// Each has one claim.
const WORKERS: usize = 8;

pub fn measure(setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
    let Setting { postgres, release, plan } = setting;
    for jobs in [FEW_JOBS, MANY_JOBS] {
        let ledger = Ledger::with_workers(postgres, release, "workers")?;
        fill(postgres, &ledger, 1..=WORKERS as u64 * u64::from(jobs), Due::Now)?;
        make_steady(postgres, &ledger)?;
        let replica = ledger.serve(&[])?;
        found(results, Row::Heartbeats { jobs }, ledger.heartbeat(replica, WORKERS, jobs, plan.times)?);
    }
    Ok(())
}
