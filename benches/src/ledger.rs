//! A ledger: a database with schema and token, its servers, and checks that every acknowledged job is stored.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::account::Accounts;
use crate::load::{self, Extent, Independent, Load, Plan, Traffic, ask};
use crate::measurement::Measurement;
use crate::postgres::Postgres;
use crate::replica::{Release, Replica};
use crate::requests::{Payload, Requests, mix};
use crate::workers::{ClaimRequests, Work, Workers};

pub struct Ledger<'run> {
    postgres: &'run Postgres,
    release: &'run Release,
    database: String,
    token: String,
}

const MEETING: Duration = Duration::from_secs(30);
const REPORT_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// How long a worker waits that knows that a job comes. Less than the load waits for an answer.
pub const WAIT_SECONDS: u32 = 20;

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
        Self::with_scopes(postgres, release, database, "submit,read")
    }

    /// An empty ledger with workers, which an older build to compare with may not know.
    pub fn with_workers(postgres: &'run Postgres, release: &'run Release, database: &str) -> anyhow::Result<Self> {
        Self::with_scopes(postgres, release, database, "submit,read,work")
    }

    fn with_scopes(
        postgres: &'run Postgres,
        release: &'run Release,
        database: &str,
        scopes: &str,
    ) -> anyhow::Result<Self> {
        postgres.make_database(database)?;
        let token = release.prepare(postgres, database, scopes)?;
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
        let requests = self.requests(replica, payload, fresh_seed()?);
        let mut number = 0;
        let mut traffic = Independent::new(201, |_, out| {
            requests.write(number, out);
            number += 1;
        });
        self.write("jobs", || self.load(replica, connections, times.into(), &mut traffic))
    }

    /// Lets workers claim jobs and report them. Fails unless there is one new outcome for each recorded result.
    pub fn work(&self, replica: &Replica, workers: usize, work: Work, extent: Extent) -> anyhow::Result<Measurement> {
        let (claims, submissions) = match work {
            Work::Drain { jobs_at_once } => (self.claims(replica, jobs_at_once, 0)?, None),
            Work::Life => {
                (self.claims(replica, 1, WAIT_SECONDS)?, Some(self.requests(replica, Payload::Mail, fresh_seed()?)))
            }
        };
        let mut traffic = Workers::new(workers, claims, submissions);
        self.write("job_outcomes", || self.load(replica, workers, extent, &mut traffic))
    }

    /// Lets workers claim `jobs` jobs each, then measures their heartbeats. Stops the replica, so that its sessions report
    /// how they updated rows.
    pub fn heartbeat(&self, replica: Replica, workers: usize, jobs: u32, times: Times) -> anyhow::Result<Measurement> {
        let claims = self.claims(&replica, jobs, 0)?;
        let mut number = 0;
        let mut traffic = Independent::new(201, |_, out| {
            claims.claim(number, out);
            number += 1;
        });
        self.load(&replica, 1, Extent::Requests(workers as u64), &mut traffic)?;
        let (leases, expected) = (self.count("job_leases")?, workers as u64 * u64::from(jobs));
        ensure!(leases == expected, "{leases} instead of {expected} jobs are claimed");
        let mut traffic = Independent::new(200, |connection, out| claims.heartbeat(connection as u64, out));
        let load = self.load(&replica, workers, times.into(), &mut traffic)?;
        drop(replica);
        let hot_share = self.hot_share("claims", load.answered_in_all)?;
        Ok(Measurement { hot_share: Some(hot_share), ..Measurement::of(&load) })
    }

    /// The share of a table's updates that were HOT, once so many are reported.
    fn hot_share(&self, table: &str, updates: u64) -> anyhow::Result<f64> {
        let reported = |column: &str| -> anyhow::Result<i64> {
            let sql = format!("select {column} from pg_stat_user_tables where relid = 'hapax.{table}'::regclass");
            self.postgres.ask(&self.database, &sql)
        };
        let began = Instant::now();
        while u64::try_from(reported("n_tup_upd")?)? < updates {
            ensure!(began.elapsed() < REPORT_DEADLINE, "PostgreSQL has not reported {updates} updates");
            std::thread::sleep(POLL);
        }
        Ok(reported("n_tup_hot_upd")? as f64 / reported("n_tup_upd")? as f64)
    }

    /// Measures a load that adds a row to a table for each unit.
    fn write(&self, table: &str, load: impl FnOnce() -> anyhow::Result<Load>) -> anyhow::Result<Measurement> {
        let (rows, wal) = (self.count(table)?, self.postgres.wal_bytes()?);
        let load = load()?;
        let (rows, wal) = (self.count(table)? - rows, self.postgres.wal_bytes()? - wal);
        let answered = load.answered_in_all;
        ensure!(rows == answered, "{rows} new rows in {table}, but {answered} were acknowledged");
        ensure!(load.answered > 0, "nothing was left to do before the measurement began");
        Ok(Measurement { wal_bytes: Some(wal as f64 / answered as f64), ..Measurement::of(&load) })
    }

    /// Replays one request over and over, after submitting it once.
    pub fn replay_one(&self, replica: &Replica, connections: usize, times: Times) -> anyhow::Result<Measurement> {
        let requests = self.requests(replica, Payload::Mail, fresh_seed()?);
        let write = |_, out: &mut Vec<u8>| requests.write(0, out);
        self.load(replica, 1, Extent::Requests(1), &mut Independent::new(201, write))?;
        let load = self.load(replica, connections, times.into(), &mut Independent::new(200, write))?;
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
        let mut traffic = Independent::new(expected, |_, out| {
            requests.write(number, out);
            number += 1;
        });
        let load = self.load(replica, connections, Extent::Requests(count), &mut traffic)?;
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
        let mut traffic = Independent::new(200, |_, out| {
            draw = draw.wrapping_add(1);
            requests.write(mix(draw) % count, out);
        });
        let load = self.load(replica, connections, times.into(), &mut traffic)?;
        Ok(Measurement::of(&load))
    }

    pub fn requests(&self, replica: &Replica, payload: Payload, seed: u64) -> Requests {
        Requests::new(replica.address, &self.token, payload, seed)
    }

    /// The requests of workers, with new ids of claims.
    pub fn claims(&self, replica: &Replica, jobs_at_once: u32, wait_seconds: u32) -> anyhow::Result<ClaimRequests> {
        Ok(ClaimRequests::new(replica.address, &self.token, jobs_at_once, wait_seconds, fresh_seed()?))
    }

    fn load(
        &self,
        replica: &Replica,
        connections: usize,
        extent: Extent,
        traffic: &mut dyn Traffic,
    ) -> anyhow::Result<Load> {
        let accounts = Accounts { server: Some(replica.process()), postmaster: self.postgres.postmaster() };
        let plan = Plan { address: replica.address, connections, extent };
        load::run(&plan, accounts, traffic)
            .with_context(|| format!("the load failed; the server's log: {}", replica.complaints()))
    }

    fn count(&self, table: &str) -> anyhow::Result<u64> {
        let rows: i64 = self.postgres.ask(&self.database, &format!("select count(*) from {table}"))?;
        Ok(u64::try_from(rows)?)
    }
}

/// A seed for keys that no earlier row has used.
pub fn fresh_seed() -> anyhow::Result<u64> {
    let now = std::time::UNIX_EPOCH.elapsed()?;
    Ok(mix(u64::try_from(now.as_nanos() & u128::from(u64::MAX))?))
}
