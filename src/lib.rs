//! Hapax: an HTTP job service on PostgreSQL on which every retry is harmless.
//!
//! The modules in reading order. ARCHITECTURE.md is the map; `tests/architecture.rs` holds who may import whom.

pub mod ids;
pub mod json;
pub mod shares;
pub mod timestamp;

pub mod jobs;

pub mod idempotency;

pub mod intake;

pub mod changes;

pub mod access;

pub mod offload;

pub mod http;

pub mod database;
pub mod metrics;

pub mod configuration;
pub mod server;
pub mod telemetry;

pub mod cli;
