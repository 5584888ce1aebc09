//! Hapax: an HTTP job service on PostgreSQL in which every request is safe to retry.
//!
//! The modules are in reading order. ARCHITECTURE.md describes them; `tests/architecture.rs` checks which module may
//! import which.

#![forbid(unsafe_code)]

pub mod ids;
pub mod json;
pub mod overload;
pub mod shares;
pub mod timestamp;
pub mod wakeups;

pub mod long_poll;
pub mod notifications;

pub mod jobs;

pub mod idempotency;

pub mod group_commit;

pub mod intake;

pub mod changes;

pub mod claims;

pub mod access;

pub mod offload;

pub mod http;

pub mod audit;
pub mod database;
pub mod metrics;

pub mod configuration;
pub mod server;
pub mod telemetry;

pub mod cli;
