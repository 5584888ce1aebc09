//! E: new keys on a ledger with many keys, and during a purge of expired keys.

use anyhow::ensure;

use crate::ledger::Ledger;
use crate::plan::MANY_CONNECTIONS;
use crate::requests::Payload;
use crate::results::{Results, Row, grouped};
use crate::rows::fill::{Due, fill, fits, make_steady};
use crate::rows::found;
use crate::run::Setting;

/// The filled ledgers.
pub struct Stored<'run> {
    filled: Vec<(u64, Ledger<'run>)>,
    expired: Ledger<'run>,
}

impl<'run> Stored<'run> {
    /// Inserts keys and jobs directly into the tables.
    pub fn fill(setting: &'run Setting, results: &mut Results) -> anyhow::Result<Self> {
        let Setting { postgres, release, plan } = setting;
        let mut filled = Vec::new();
        for &keys in plan.filled {
            if !fits(postgres, keys)? {
                results.leave_out(&format!("E with {} keys was not run: the disk is too small.", grouped(keys)));
                continue;
            }
            let ledger = Ledger::empty(postgres, release, &format!("filled_{keys}"))?;
            fill(postgres, &ledger, 1..=keys, Due::Now)?;
            filled.push((keys, ledger));
        }
        Ok(Self { filled, expired: Ledger::empty(postgres, release, "expired")? })
    }

    pub fn measure(&self, setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
        let plan = &setting.plan;
        for (keys, ledger) in &self.filled {
            make_steady(&setting.postgres, ledger)?;
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
        make_steady(postgres, &self.expired)?;
        // The purger is busy from before the measurement to its end.
        let replica = self.expired.serve(&[("HAPAX__PURGE__INTERVAL", "500ms")])?;
        let measurement = self.expired.create(&replica, MANY_CONNECTIONS, Payload::Mail, plan.purging)?;
        let left = expired()?;
        ensure!(0 < left && left < plan.expired_keys, "{left} of {} keys are left by the purger", plan.expired_keys);
        found(results, Row::Purging, measurement);
        Ok(())
    }
}
