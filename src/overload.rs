//! Limited resources: how much of one is in use, and why a request is shed.

use thiserror::Error;

/// Why a request is shed, before anything is written for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Shed {
    #[error("too many requests are in flight")]
    InFlight,
    #[error("too many requests of one tenant are in flight")]
    TenantInFlight,
    #[error("request and answer bodies use all the memory that they may")]
    BodyBytes,
    #[error("one tenant's request and answer bodies use all the memory that they may")]
    TenantBodyBytes,
    #[error("too many large bodies of one tenant are waiting for a CPU")]
    Cpu,
    #[error("no database connection became free in time")]
    Waited,
    #[error("none of the tenant's database connections became free in time")]
    TenantWaited,
    #[error("the intake queue is full")]
    QueueFull,
    #[error("one tenant's share of the intake queue is full")]
    TenantQueueFull,
    #[error("the database is unreachable and the circuit breaker is open")]
    Outage,
    #[error("too many look-ups of tokens that this replica has never seen, or one took too long")]
    UnknownTokens,
}

/// How much of a limited resource is in use.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub now: usize,
    pub limit: usize,
}

impl Shed {
    pub const ALL: [Self; 11] = [
        Self::InFlight,
        Self::TenantInFlight,
        Self::BodyBytes,
        Self::TenantBodyBytes,
        Self::Cpu,
        Self::Waited,
        Self::TenantWaited,
        Self::QueueFull,
        Self::TenantQueueFull,
        Self::Outage,
        Self::UnknownTokens,
    ];
}
