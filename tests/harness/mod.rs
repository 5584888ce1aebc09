//! The test harness: ledgers (one database per test), servers, clients and answers.

mod addresses;
mod answer;
mod balancer;
mod client;
mod contract;
mod examples;
mod ledger;
mod load;
mod pooler;
mod postgres;
mod proxy;
mod raw;
mod server;
mod waiting;
mod worker;

pub use addresses::free_address;
pub use answer::Answer;
pub use balancer::Balancer;
pub use client::Client;
pub use contract::Contract;
pub use examples::{Response, key_examples, paths, request_examples, responses};
pub use ledger::{Ledger, OpenTransaction};
pub use load::{Load, OnFailure};
pub use pooler::Pooler;
pub use postgres::OwnPostgres;
pub use proxy::{Fault, Proxy};
pub use raw::RawConnection;
pub use server::{NO_QUOTAS, REPLAY_CACHE_ON, SHORT_DEADLINES, Server, hapax, hapax_through, run_hapax};
pub use waiting::{HANG_TIMEOUT, in_time, until};
pub use worker::{Claim, new_id};

use serde_json::{Value, json};

/// A valid body for `POST /jobs`. `n` makes bodies different.
pub fn job(n: u64) -> Value {
    json!({ "type": "demo.count", "payload": { "n": n } })
}
