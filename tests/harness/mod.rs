//! What the tests speak: a ledger (a database of its own), servers on it, and answers.

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

pub use addresses::free_address;
pub use answer::Answer;
pub use balancer::Balancer;
pub use client::Client;
pub use contract::Contract;
pub use examples::{Response, key_examples, paths, request_examples, responses};
pub use ledger::{Held, Ledger};
pub use load::{Load, Persistence};
pub use pooler::Pooler;
pub use postgres::OwnPostgres;
pub use proxy::{Proxy, Treatment};
pub use raw::RawConnection;
pub use server::{MEMORY, NO_QUOTAS, QUICK, Server, hapax, hapax_through, run_hapax};
pub use waiting::{ENOUGH, in_time, until};

use serde_json::{Value, json};

/// A body that `POST /jobs` takes; `n` tells one from another.
pub fn job(n: u64) -> Value {
    json!({ "type": "demo.count", "payload": { "n": n } })
}
