//! I: how long a claim takes, if many jobs wait, and after many jobs have passed under an open snapshot.

use crate::ledger::Ledger;
use crate::load::Extent;
use crate::results::{Results, Row, grouped};
use crate::rows::fill::{Due, fill, fits, make_steady};
use crate::rows::{found, work};
use crate::run::Setting;
use crate::workers::Work;

/// How many jobs wait, if a row is not about their number.
pub const WAITING: u64 = 1000;

/// Ledgers with few and with many waiting jobs.
pub struct Queues<'run>(Vec<(Row, Ledger<'run>)>);

impl<'run> Queues<'run> {
    /// Inserts the jobs directly into the tables. The urgent ones of tomorrow are before the others in the order of
    /// claims.
    pub fn fill(setting: &'run Setting, results: &mut Results) -> anyhow::Result<Self> {
        let Setting { postgres, release, plan } = setting;
        let mut queues = Vec::new();
        for (waiting, urgent_tomorrow) in [(WAITING, 0), (plan.waiting, plan.urgent_tomorrow)] {
            let jobs = waiting + urgent_tomorrow;
            if !fits(postgres, jobs)? {
                results.leave_out(&format!(
                    "I with {} waiting jobs was not run: the disk is too small.",
                    grouped(waiting)
                ));
                continue;
            }
            let ledger = Ledger::with_workers(postgres, release, &format!("waiting_{waiting}"))?;
            fill(postgres, &ledger, 1..=waiting, Due::Now)?;
            fill(postgres, &ledger, waiting + 1..=jobs, Due::TomorrowAndUrgent)?;
            queues.push((Row::Waiting { waiting, urgent_tomorrow }, ledger));
        }
        Ok(Self(queues))
    }

    pub fn measure(&self, setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
        let Setting { postgres, plan, .. } = setting;
        for (row, ledger) in &self.0 {
            make_steady(postgres, ledger)?;
            let replica = ledger.serve(&[])?;
            found(results, row.clone(), ledger.work(&replica, 1, Work::Life, plan.times.into())?);
        }
        Ok(())
    }
}

/// Claims before, and after jobs have passed while another session had a snapshot, as a report or a backup has. Until
/// its end, PostgreSQL cannot remove their index entries, which are those that a claim reads first.
pub fn measure_snapshot(setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
    let Setting { postgres, release, plan } = setting;
    let passed = plan.passed;
    let ledger = Ledger::with_workers(postgres, release, "workers")?;
    fill(postgres, &ledger, 1..=passed + WAITING, Due::Now)?;
    make_steady(postgres, &ledger)?;
    let replica = ledger.serve(&[])?;
    let claim_alone = || ledger.work(&replica, 1, Work::Life, plan.times.into());
    found(results, Row::Snapshot { passed: 0 }, claim_alone()?);
    let after = postgres.with_snapshot(ledger.database(), || {
        let work::Shape { workers, jobs_at_once, .. } = work::HUNDRED;
        // A claim and a report for each hundred.
        let requests = Extent::Requests(2 * passed / u64::from(jobs_at_once));
        ledger.work(&replica, workers, Work::Drain { jobs_at_once }, requests)?;
        claim_alone()
    })?;
    found(results, Row::Snapshot { passed }, after);
    Ok(())
}
