//! A server on an empty ledger, and whether the ledger holds afterwards what was answered.

use std::time::Duration;

use anyhow::ensure;

use crate::account::Accounts;
use crate::load::{self, Extent, Load, Plan};
use crate::measurement::Measurement;
use crate::postgres::Postgres;
use crate::replica::{Release, Replica};
use crate::requests::{Payload, Requests, mix};

pub struct Ledger<'bench> {
    postgres: &'bench Postgres,
    database: String,
    pub token: String,
}

/// How long a row warms up and is measured.
#[derive(Clone, Copy)]
pub struct Times {
    pub warm_up: Duration,
    pub measured: Duration,
}

impl<'bench> Ledger<'bench> {
    /// With schema and caller, and nothing in it.
    pub fn empty(postgres: &'bench Postgres, release: &Release, database: &str) -> anyhow::Result<Self> {
        postgres.make_database(database)?;
        let token = release.prepare(postgres, database)?;
        Ok(Self { postgres, database: database.to_owned(), token })
    }

    pub fn serve(&self, release: &Release, settings: &[(&str, &str)]) -> anyhow::Result<Replica> {
        release.serve(self.postgres, &self.database, settings)
    }

    /// Submissions, each under a key of its own, for a time. Afterwards there must be as many more jobs as 201s.
    pub fn create(
        &self,
        replica: &Replica,
        connections: usize,
        payload: Payload,
        times: Times,
    ) -> anyhow::Result<Measurement> {
        let before = self.jobs()?;
        let requests = Requests::new(replica.address, &self.token, payload, seed()?);
        let mut number = 0;
        let load = self.load(replica, connections, 201, times.into(), &mut |out| {
            requests.write(number, out);
            number += 1;
        })?;
        let made = self.jobs()? - before;
        ensure!(made == load.answered_in_all, "{made} jobs for {} answers of 201", load.answered_in_all);
        Ok(Measurement::of(&load))
    }

    /// The same request over and over, which was carried out before.
    pub fn replay_one(&self, replica: &Replica, connections: usize, times: Times) -> anyhow::Result<Measurement> {
        let requests = Requests::new(replica.address, &self.token, Payload::Mail, seed()?);
        self.load(replica, 1, 201, Extent::Requests(1), &mut |out| requests.write(0, out))?;
        let load = self.load(replica, connections, 200, times.into(), &mut |out| requests.write(0, out))?;
        Ok(Measurement::of(&load))
    }

    pub fn load(
        &self,
        replica: &Replica,
        connections: usize,
        expected: u16,
        extent: Extent,
        next: &mut dyn FnMut(&mut Vec<u8>),
    ) -> anyhow::Result<Load> {
        let accounts = Accounts { server: Some(replica.process()), postmaster: self.postgres.postmaster() };
        load::run(&Plan { address: replica.address, connections, expected, extent }, accounts, next)
    }

    fn jobs(&self) -> anyhow::Result<u64> {
        let jobs: i64 = self.postgres.ask(&self.database, "select count(*) from jobs")?;
        Ok(u64::try_from(jobs)?)
    }
}

impl From<Times> for Extent {
    fn from(times: Times) -> Self {
        Self::Time { warm_up: times.warm_up, measured: times.measured }
    }
}

/// Keys that no row before has used.
fn seed() -> anyhow::Result<u64> {
    let now = std::time::UNIX_EPOCH.elapsed()?;
    Ok(mix(u64::try_from(now.as_nanos() & u128::from(u64::MAX))?))
}
