//! A ledger: a database with schema and token, its servers, and checks that every acknowledged job is stored.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::account::Accounts;
use crate::load::{self, Extent, Load, Plan, ask};
use crate::measurement::Measurement;
use crate::postgres::Postgres;
use crate::replica::{Release, Replica};
use crate::requests::{Payload, Requests, mix};

pub struct Ledger<'run> {
    postgres: &'run Postgres,
    release: &'run Release,
    database: String,
    token: String,
}

const MEETING: Duration = Duration::from_secs(30);

/// How long a row warms up and is measured.
#[derive(Clone, Copy)]
pub struct Times {
    pub warm_up: Duration,
    pub measured: Duration,
}

impl Times {
    pub const fn of(warm_up_seconds: u64, measured_seconds: u64) -> Self {
        Self { warm_up: Duration::from_secs(warm_up_seconds), measured: Duration::from_secs(measured_seconds) }
    }
}

impl From<Times> for Extent {
    fn from(times: Times) -> Self {
        Self::Time { warm_up: times.warm_up, measured: times.measured }
    }
}

impl<'run> Ledger<'run> {
    /// An empty ledger.
    pub fn empty(postgres: &'run Postgres, release: &'run Release, database: &str) -> anyhow::Result<Self> {
        postgres.make_database(database)?;
        let token = release.prepare(postgres, database)?;
        Ok(Self { postgres, release, database: database.to_owned(), token })
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// A server on this ledger that has verified the token, because on a busy machine many requests with an unseen
    /// token may get 503.
    pub fn serve(&self, settings: &[(&str, &str)]) -> anyhow::Result<Replica> {
        let replica = self.release.serve(self.postgres, &self.database, settings)?;
        let (address, token) = (replica.address, &self.token);
        let request = format!("GET /queues HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n");
        let began = Instant::now();
        while !ask(address, request.as_bytes())?.starts_with(b"HTTP/1.1 200 ") {
            ensure!(began.elapsed() < MEETING, "the server does not take the token: {}", replica.complaints());
        }
        Ok(replica)
    }

    /// Submits for a time, each request with a new key. Fails unless there is one new job for each 201.
    pub fn create(
        &self,
        replica: &Replica,
        connections: usize,
        payload: Payload,
        times: Times,
    ) -> anyhow::Result<Measurement> {
        let before = self.jobs()?;
        let requests = self.requests(replica, payload, fresh_seed()?);
        let mut number = 0;
        let load = self.load(replica, connections, 201, times.into(), &mut |out| {
            requests.write(number, out);
            number += 1;
        })?;
        let made = self.jobs()? - before;
        ensure!(made == load.answered_in_all, "{made} jobs for {} answers of 201", load.answered_in_all);
        Ok(Measurement::of(&load))
    }

    /// Replays one request over and over, after submitting it once.
    pub fn replay_one(&self, replica: &Replica, connections: usize, times: Times) -> anyhow::Result<Measurement> {
        let requests = self.requests(replica, Payload::Mail, fresh_seed()?);
        self.load(replica, 1, 201, Extent::Requests(1), &mut |out| requests.write(0, out))?;
        let load = self.load(replica, connections, 200, times.into(), &mut |out| requests.write(0, out))?;
        Ok(Measurement::of(&load))
    }

    /// Sends each of `count` requests once. Fails unless all get the expected status.
    pub fn each_once(
        &self,
        replica: &Replica,
        connections: usize,
        requests: &Requests,
        count: u64,
        expected: u16,
    ) -> anyhow::Result<()> {
        let mut number = 0;
        let load = self.load(replica, connections, expected, Extent::Requests(count), &mut |out| {
            requests.write(number, out);
            number += 1;
        })?;
        ensure!(load.answered_in_all == count, "{} of {count} were answered {expected}", load.answered_in_all);
        Ok(())
    }

    /// Replays requests drawn at random from many, all of which were submitted before.
    pub fn replay_drawn(
        &self,
        replica: &Replica,
        connections: usize,
        requests: &Requests,
        count: u64,
        times: Times,
    ) -> anyhow::Result<Measurement> {
        let mut draw = fresh_seed()?;
        let load = self.load(replica, connections, 200, times.into(), &mut |out| {
            draw = draw.wrapping_add(1);
            requests.write(mix(draw) % count, out);
        })?;
        Ok(Measurement::of(&load))
    }

    pub fn requests(&self, replica: &Replica, payload: Payload, seed: u64) -> Requests {
        Requests::new(replica.address, &self.token, payload, seed)
    }

    fn load(
        &self,
        replica: &Replica,
        connections: usize,
        expected: u16,
        extent: Extent,
        next: &mut dyn FnMut(&mut Vec<u8>),
    ) -> anyhow::Result<Load> {
        let accounts = Accounts { server: Some(replica.process()), postmaster: self.postgres.postmaster() };
        let plan = Plan { address: replica.address, connections, expected, extent };
        load::run(&plan, accounts, next)
            .with_context(|| format!("the load failed; the server's log: {}", replica.complaints()))
    }

    fn jobs(&self) -> anyhow::Result<u64> {
        let jobs: i64 = self.postgres.ask(&self.database, "select count(*) from jobs")?;
        Ok(u64::try_from(jobs)?)
    }
}

/// A seed for keys that no earlier row has used.
pub fn fresh_seed() -> anyhow::Result<u64> {
    let now = std::time::UNIX_EPOCH.elapsed()?;
    Ok(mix(u64::try_from(now.as_nanos() & u128::from(u64::MAX))?))
}
