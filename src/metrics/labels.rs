//! By what metrics are told apart. No label holds anything that a client chooses.

use prometheus_client::encoding::EncodeLabelSet;
use thiserror::Error;

/// What became of a request under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyedOutcome {
    Created,
    /// It changed a job that was there.
    Changed,
    /// Another key's job has the same content.
    Deduplicated,
    Replayed,
    Mismatch,
    InFlight,
    /// Answered without touching the key.
    Refused,
    /// The deadline came before the database's answer.
    Unknown,
}

/// What the database said of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLookup {
    Known,
    Unknown,
    Failed,
}

/// Whether a key was found in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recall {
    Remembered,
    NotRemembered,
}

/// Why a batch of submissions was split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Somebody holds one of its keys.
    Locked,
    /// PostgreSQL refused it, because of one of them maybe.
    Refused,
}

/// Why a statement was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No connection could be opened, or an idle one had died before anything was sent on it.
    Connect,
    /// The connection was lost under way.
    Lost,
    /// The session's prepared statements no longer fit.
    Stale,
    /// A deadlock or a serialization failure.
    Collided,
}

/// Why a request is refused before anything is done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Shed {
    #[error("as many requests as may be are being worked on")]
    InFlight,
    #[error("as many requests of one tenant as may be are being worked on")]
    TenantInFlight,
    #[error("the bodies of all requests and answers take as much memory as they may")]
    BodyBytes,
    #[error("the bodies of one tenant's requests and answers take as much memory as they may")]
    TenantBodyBytes,
    #[error("too many large bodies of one tenant are waiting for a CPU")]
    Cpu,
    #[error("no connection to the database came free in time")]
    Waited,
    #[error("none of the tenant's connections to the database came free in time")]
    TenantWaited,
    #[error("as many submissions as may be are waiting to be written")]
    QueueFull,
    #[error("as many submissions of one tenant as may be are waiting to be written")]
    TenantQueueFull,
    #[error("the database is away, and another request is looking whether it is back")]
    Outage,
    #[error("too many tokens that this replica has not seen are being looked up, or one for too long")]
    UnknownTokens,
}

impl KeyedOutcome {
    pub(super) const ALL: [Self; 8] = [
        Self::Created,
        Self::Changed,
        Self::Deduplicated,
        Self::Replayed,
        Self::Mismatch,
        Self::InFlight,
        Self::Refused,
        Self::Unknown,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Deduplicated => "deduplicated",
            Self::Replayed => "replayed",
            Self::Mismatch => "mismatch",
            Self::InFlight => "in_flight",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

impl TokenLookup {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
}

impl Recall {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Remembered => "remembered",
            Self::NotRemembered => "not_remembered",
        }
    }
}

impl Split {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Refused => "refused",
        }
    }
}

impl Retry {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Lost => "lost",
            Self::Stale => "stale",
            Self::Collided => "collided",
        }
    }
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

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::TenantInFlight => "tenant_in_flight",
            Self::BodyBytes => "body_bytes",
            Self::TenantBodyBytes => "tenant_body_bytes",
            Self::Cpu => "cpu",
            Self::Waited => "waited",
            Self::TenantWaited => "tenant_waited",
            Self::QueueFull => "queue_full",
            Self::TenantQueueFull => "tenant_queue_full",
            Self::Outage => "outage",
            Self::UnknownTokens => "unknown_tokens",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub method: &'static str,
    pub route: &'static str,
    pub status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    pub method: &'static str,
    pub route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    pub route: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ShedLabels {
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QuotaLabels {
    pub policy: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LookupLabels {
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RetryLabels {
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    pub pool: &'static str,
    pub state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabels {
    pub pool: &'static str,
}
