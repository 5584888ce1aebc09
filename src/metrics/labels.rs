//! The labels of the metrics. No label has a value that a client chooses.

use prometheus_client::encoding::EncodeLabelSet;

use crate::overload::Shed;

/// The outcome of a request with an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyedOutcome {
    Created,
    /// It changed an existing job.
    Changed,
    /// A job with the same unique content exists under another key.
    Deduplicated,
    Replayed,
    Mismatch,
    InFlight,
    /// Answered without using the key.
    Refused,
    /// An attempt was lost, and the server could not find out whether it was committed.
    Unknown,
}

/// The result of looking up a token in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLookup {
    Known,
    Unknown,
    Failed,
}

/// Whether a key was found in the replay cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recall {
    Remembered,
    NotRemembered,
}

/// Why a batch of submissions was split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Another transaction holds one of its keys.
    Locked,
    /// PostgreSQL rejected it, perhaps because of a single submission.
    Refused,
}

/// Why a statement was retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No connection could be opened, or an idle connection was dead before anything was sent on it.
    Connect,
    /// The connection broke during the statement, or was silent for too long.
    Lost,
    /// The session does not fit: its prepared statements are invalid, its schema differs, or it is read-only.
    Stale,
    /// A deadlock or a serialization failure.
    Collided,
}

/// What became of an event that replicas tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notified {
    Sent,
    Received,
    /// It did not fit among those to be sent.
    Dropped,
}

/// The answer to a request for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimResult {
    Claimed,
    Repeated,
    Nothing,
    /// The id stands for another request.
    Other,
    Ended,
}

/// What became of a job whose worker reported a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    Succeeded,
    Failed,
    Cancelled,
    /// The attempt failed, and the job is queued again.
    Retried,
    /// The worker gave the job back.
    Released,
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

impl Notified {
    pub(super) const ALL: [Self; 3] = [Self::Sent, Self::Received, Self::Dropped];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
            Self::Dropped => "dropped",
        }
    }
}

impl ClaimResult {
    pub(super) const ALL: [Self; 5] = [Self::Claimed, Self::Repeated, Self::Nothing, Self::Other, Self::Ended];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Repeated => "repeated",
            Self::Nothing => "nothing",
            Self::Other => "other",
            Self::Ended => "ended",
        }
    }
}

impl JobOutcome {
    pub(super) const ALL: [Self; 5] = [Self::Succeeded, Self::Failed, Self::Cancelled, Self::Retried, Self::Released];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Retried => "retried",
            Self::Released => "released",
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
    /// The label.
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
pub struct JobLabels {
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReportLabels {
    pub status: &'static str,
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
pub struct SplitLabels {
    pub statement: &'static str,
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatementLabels {
    pub statement: &'static str,
}
