//! C: the same requests to a handler as tutorials write it.

use anyhow::ensure;

use crate::account::Accounts;
use crate::handlers::Serving;
use crate::ledger::fresh_seed;
use crate::load::{self, Independent, Plan};
use crate::measurement::Measurement;
use crate::requests::{Payload, Requests};
use crate::results::{Results, Row};
use crate::rows::found;
use crate::run::Setting;

const DATABASE: &str = "tutorial";

pub fn measure(setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
    let Setting { postgres, plan, .. } = setting;
    for &pool in plan.tutorial_pools {
        for &connections in plan.tutorial_connections {
            postgres.make_database(DATABASE)?;
            let (pool_text, url) = (pool.to_string(), postgres.url(DATABASE));
            let handler = Serving::start(&["tutorial", "--database-url", &url, "--pool", &pool_text])?;
            let accounts = Accounts { server: Some(handler.process()), postmaster: postgres.postmaster() };
            let requests = Requests::new(handler.address, "none", Payload::Mail, fresh_seed()?);
            let mut number = 0;
            let load_plan = Plan { address: handler.address, connections, extent: plan.times.into() };
            let mut traffic = Independent::new(201, |_, out| {
                requests.write(number, out);
                number += 1;
            });
            let load = load::run(&load_plan, accounts, &mut traffic)?;
            let made: i64 = postgres.ask(DATABASE, "select count(*) from tutorial.jobs")?;
            let answered = load.answered_in_all;
            ensure!(u64::try_from(made)? == answered, "{made} jobs for {answered} answers of 201");
            found(results, Row::Tutorial { pool, connections }, Measurement::of(&load));
        }
    }
    Ok(())
}
