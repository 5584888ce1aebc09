//! D: replays, of one key and of many, compared with a handler that only answers the same bytes. G: the memory of the
//! replay cache.

use std::fs;

use crate::account::{Accounts, peak_memory_bytes};
use crate::handlers::Serving;
use crate::ledger::{Ledger, fresh_seed};
use crate::load::{self, Independent, Plan, ask};
use crate::measurement::Measurement;
use crate::plan::{MANY_CONNECTIONS, USUAL_CONNECTIONS};
use crate::replica::Replica;
use crate::requests::{Payload, Requests};
use crate::results::{Memory, Results, Row, grouped};
use crate::rows::found;
use crate::run::Setting;

/// A ledger whose keys are replayed.
pub struct Replayed<'run> {
    ledger: Ledger<'run>,
    seed: u64,
    keys: u64,
}

/// Room for a million outcomes of less than a kilobyte each.
const ROOMY: (&str, &str) = ("HAPAX__IDEMPOTENCY__REPLAY_CACHE_BYTES", "2147483648");

impl<'run> Replayed<'run> {
    /// Submits all requests once.
    pub fn create(setting: &'run Setting) -> anyhow::Result<Self> {
        let keys = setting.plan.replayed_keys;
        println!("creating {} keys to replay", grouped(keys));
        let ledger = Ledger::empty(&setting.postgres, &setting.release, "replayed")?;
        let replayed = Self { ledger, seed: fresh_seed()?, keys };
        let replica = replayed.ledger.serve(&[])?;
        replayed.ledger.each_once(&replica, MANY_CONNECTIONS, &replayed.requests(&replica), keys, 201)?;
        Ok(replayed)
    }

    pub fn measure(&self, setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
        let Setting { postgres, release, plan } = setting;
        let remembers = release.replay_cache_bytes(postgres)?.is_some();
        let replica = self.ledger.serve(if remembers { &[ROOMY] } else { &[] })?;
        let one = self.ledger.replay_one(&replica, USUAL_CONNECTIONS, plan.times)?;
        found(results, Row::OneKey, one);

        // Replays every key once, so that all are cached before the measurement.
        let (keys, requests) = (self.keys, self.requests(&replica));
        self.ledger.each_once(&replica, USUAL_CONNECTIONS, &requests, keys, 200)?;
        let many = self.ledger.replay_drawn(&replica, USUAL_CONNECTIONS, &requests, keys, plan.times)?;
        found(results, Row::ManyKeys { keys }, many);

        found(results, Row::Bare, self.bare(setting, &replica)?);
        Ok(())
    }

    /// Gives the handler Hapax's answer and the same request.
    fn bare(&self, setting: &Setting, replica: &Replica) -> anyhow::Result<Measurement> {
        let Setting { postgres, plan, .. } = setting;
        let requests = self.requests(replica);
        let mut request = Vec::new();
        requests.write(0, &mut request);
        let file = postgres.folder().join("answer.http");
        fs::write(&file, ask(replica.address, &request)?)?;
        let handler = Serving::start(&["bare", "--answer", &file.to_string_lossy()])?;
        let accounts = Accounts { server: Some(handler.process()), postmaster: postgres.postmaster() };
        let load_plan = Plan { address: handler.address, connections: USUAL_CONNECTIONS, extent: plan.times.into() };
        let mut traffic = Independent::new(200, |_, out| requests.write(0, out));
        let load = load::run(&load_plan, accounts, &mut traffic)?;
        Ok(Measurement::of(&load))
    }

    /// A new server with the default cache size, after a replay of every key.
    pub fn measure_memory(&self, setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
        let limit = setting.release.replay_cache_bytes(&setting.postgres)?;
        let replica = self.ledger.serve(&[])?;
        self.ledger.each_once(&replica, MANY_CONNECTIONS, &self.requests(&replica), self.keys, 200)?;
        results.memory.push(Memory {
            when: format!("after {} replays, each of another key", grouped(self.keys)),
            bytes: peak_memory_bytes(replica.process())?,
            replay_cache_limit_bytes: limit.unwrap_or(0),
        });
        Ok(())
    }

    fn requests(&self, replica: &Replica) -> Requests {
        self.ledger.requests(replica, Payload::Mail, self.seed)
    }
}
