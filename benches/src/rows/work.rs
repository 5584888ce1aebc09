//! H: workers that claim waiting jobs and report their results. Also for `quick`. L: the whole life of a job.

use crate::ledger::{Ledger, Times};
use crate::measurement::Measurement;
use crate::plan::USUAL_CONNECTIONS;
use crate::postgres::Postgres;
use crate::replica::Release;
use crate::results::{Results, Row};
use crate::rows::fill::{Due, fill, make_steady};
use crate::rows::found;
use crate::run::Setting;
use crate::workers::Work;

/// Workers, and how many jobs each claims and reports at once.
#[derive(Clone, Copy)]
pub struct Shape {
    pub workers: usize,
    pub jobs_at_once: u32,
    /// More jobs than are done in a second, so that some are left at the end of the row.
    jobs_per_second: u64,
}

pub const ONE: Shape = Shape { workers: 64, jobs_at_once: 1, jobs_per_second: 12_000 };
pub const HUNDRED: Shape = Shape { workers: 8, jobs_at_once: 100, jobs_per_second: 40_000 };

impl Shape {
    pub fn row(self) -> Row {
        Row::Work { workers: self.workers, jobs_at_once: self.jobs_at_once }
    }
}

pub fn measure(setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
    let Setting { postgres, release, plan } = setting;
    for shape in [ONE, HUNDRED] {
        found(results, shape.row(), drain(postgres, release, shape, plan.times)?);
    }
    let ledger = Ledger::with_workers(postgres, release, "workers")?;
    let replica = ledger.serve(&[])?;
    let life = ledger.work(&replica, USUAL_CONNECTIONS, Work::Life, plan.times.into())?;
    found(results, Row::Life { workers: USUAL_CONNECTIONS }, life);
    Ok(())
}

/// Fills a new ledger and lets the workers drain it.
pub fn drain(postgres: &Postgres, release: &Release, shape: Shape, times: Times) -> anyhow::Result<Measurement> {
    let ledger = Ledger::with_workers(postgres, release, "workers")?;
    let seconds = (times.warm_up + times.measured).as_secs_f64();
    let jobs = (shape.jobs_per_second as f64 * seconds) as u64;
    fill(postgres, &ledger, 1..=jobs, Due::Now)?;
    make_steady(postgres, &ledger)?;
    let replica = ledger.serve(&[])?;
    ledger.work(&replica, shape.workers, Work::Drain { jobs_at_once: shape.jobs_at_once }, times.into())
}
