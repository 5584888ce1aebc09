//! E: new keys on a ledger with many keys, and during a purge of expired keys.

use anyhow::ensure;

use crate::ledger::Ledger;
use crate::plan::{MANY_CONNECTIONS, MILLION};
use crate::postgres::Postgres;
use crate::requests::{BLANK, Payload};
use crate::results::{Results, Row, grouped};
use crate::rows::found;
use crate::run::Setting;

/// The filled ledgers.
pub struct Stored<'run> {
    filled: Vec<(u64, Ledger<'run>)>,
    expired: Ledger<'run>,
}

/// Disk space of a key and its job, with indexes and WAL; a generous estimate.
const BYTES_A_KEY: u64 = 1800;
/// Disk space for the rest of the run.
const ROOM: u64 = 6 << 30;

impl<'run> Stored<'run> {
    /// Inserts keys and jobs directly into the tables.
    pub fn fill(setting: &'run Setting, results: &mut Results) -> anyhow::Result<Self> {
        let Setting { postgres, release, plan } = setting;
        let mut filled = Vec::new();
        for &keys in plan.filled {
            if postgres.free_bytes()? < keys * BYTES_A_KEY + ROOM {
                results.leave_out(&format!("E with {} keys was not run: the disk is too small.", grouped(keys)));
                continue;
            }
            let ledger = Ledger::empty(postgres, release, &format!("filled_{keys}"))?;
            fill(postgres, &ledger, keys)?;
            filled.push((keys, ledger));
        }
        Ok(Self { filled, expired: Ledger::empty(postgres, release, "expired")? })
    }

    pub fn measure(&self, setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
        let plan = &setting.plan;
        for (keys, ledger) in &self.filled {
            settle(&setting.postgres, ledger)?;
            let replica = ledger.serve(&[])?;
            let measurement = ledger.create(&replica, MANY_CONNECTIONS, Payload::Mail, plan.growth)?;
            found(results, Row::Filled { keys: *keys }, measurement);
        }
        self.measure_purging(setting, results)
    }

    fn measure_purging(&self, setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
        let Setting { postgres, plan, .. } = setting;
        const EXPIRED: &str = "select count(*) from hapax.idempotency_keys where expires_at <= now()";
        let expired = || anyhow::Ok(u64::try_from(postgres.ask::<i64>(self.expired.database(), EXPIRED)?)?);
        let missing = plan.expired_keys.saturating_sub(expired()?);
        println!("expiring {} keys", grouped(missing));
        let sql = include_str!("fill_expired.sql").replace("COUNT", &missing.to_string());
        postgres.run(self.expired.database(), &sql)?;
        settle(postgres, &self.expired)?;
        // The purger is busy from before the measurement to its end.
        let replica = self.expired.serve(&[("HAPAX__PURGE__INTERVAL", "500ms")])?;
        let measurement = self.expired.create(&replica, MANY_CONNECTIONS, Payload::Mail, plan.purging)?;
        let left = expired()?;
        ensure!(0 < left && left < plan.expired_keys, "{left} of {} keys are left by the purger", plan.expired_keys);
        found(results, Row::Purging, measurement);
        Ok(())
    }
}

fn fill(postgres: &Postgres, ledger: &Ledger<'_>, keys: u64) -> anyhow::Result<()> {
    let sql = include_str!("fill.sql").replace("PAYLOAD", &Payload::Mail.json()).replace("BLANK", BLANK);
    let mut first = 1;
    while first <= keys {
        let last = keys.min(first + MILLION - 1);
        println!("filling a ledger with {} keys and jobs: {} to {}", grouped(keys), grouped(first), grouped(last));
        let sql = sql.replace("FIRST", &first.to_string()).replace("LAST", &last.to_string());
        postgres.run(ledger.database(), &sql)?;
        first = last + 1;
    }
    Ok(())
}

/// Brings the ledger into a steady state: statistics exist, and nothing is left to be written.
fn settle(postgres: &Postgres, ledger: &Ledger<'_>) -> anyhow::Result<()> {
    postgres.run(ledger.database(), "vacuum (analyze)")?;
    postgres.run(ledger.database(), "checkpoint")
}
