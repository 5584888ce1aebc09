//! Black-box tests: real server processes, a real PostgreSQL, a database for each test.
//!
//! Run them with `make test`. DATABASE_URL must name a server on which databases may be created.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../harness/mod.rs"]
mod harness;

mod access;
mod audit;
mod batches;
mod changes;
mod claim_groups;
mod claim_plans;
mod claim_races;
mod claims;
mod command_line;
mod concurrency;
mod connections;
mod contract;
mod database_roles;
mod dev;
mod docs;
mod example_worker;
mod expiry;
mod faults;
mod first_sent;
mod intake;
mod interleavings;
mod key_lives;
mod key_lookup;
mod keyed_routes;
mod keys;
mod list_plans;
mod lists;
mod long_polls;
mod named_jobs;
mod notifications;
mod operations;
mod outages;
mod overload;
mod pooler;
mod protocol;
mod public_url;
mod queues;
mod quotas;
mod reclaims;
mod refusals;
mod replays;
mod replicas;
mod results;
mod retries;
mod retries_of_jobs;
mod schema;
mod sql_submission;
mod submission;
mod telemetry;
mod tenant_quotas;
mod uniques;
mod worker_faults;
mod worker_metrics;
