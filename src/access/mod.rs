//! Authentication, authorization and quotas.
//!
//! Owns tenants, tokens, scopes, the verifier and quotas. It stores digests, never tokens.

mod failure_log;
mod lookups;
pub mod queries;
mod quota;
mod token;
pub mod use_times;
mod verifier;

pub use quota::{Policy, Quota, QuotaStatus, Rate, Reservation, TENANT_RATE};
pub use token::{InvalidTokenName, Scope, Scopes, Token, TokenDigest, TokenName, UnknownScope};
pub use use_times::UseTimes;
pub use verifier::{Lives, Recalled, Rejection, TokenPools, Verifier};

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::ids::TenantId;

/// The authenticated caller of a request.
#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant: TenantId,
    pub tenant_name: Arc<str>,
    pub scopes: Scopes,
    pub settings: TenantSettings,
    /// How long the token was still valid when it was looked up; `None`: it does not expire.
    pub token_life: Option<Duration>,
}

/// What an operator has set for one tenant; `None`: the configured default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantSettings {
    /// How long the tenant's new idempotency keys live.
    pub key_time_to_live: Option<Duration>,
    /// Requests per token.
    pub requests: Option<Rate>,
    /// New jobs.
    pub creations: Option<Rate>,
    /// Requests per idempotency key.
    pub replays: Option<Rate>,
}

/// Limits for a tenant's key lifetime. A CHECK constraint on the column holds the same limits.
pub const KEY_TIME_TO_LIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 60 * 60);

/// A tenant's name: 1 to 63 lower-case letters, digits, `.`, `_` or `-`, beginning with a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantName(String);

#[derive(Debug, PartialEq, Eq, Error)]
#[error("a tenant's name has 1 to 63 characters of a-z, 0-9, '.', '_' and '-', and begins with a letter or a digit")]
pub struct InvalidTenantName;

impl TenantName {
    const LENGTH_MAX: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for TenantName {
    type Err = InvalidTenantName;

    fn from_str(name: &str) -> Result<Self, InvalidTenantName> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let begins_well = name.bytes().next().is_some_and(plain);
        let goes_on_well = name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte));
        if !begins_well || !goes_on_well || name.len() > Self::LENGTH_MAX {
            return Err(InvalidTenantName);
        }
        Ok(Self(name.to_owned()))
    }
}
