//! Access: who may call, and for what.
//!
//! Owns tenants, tokens, scopes, the verifier and quotas. It stores no token, only digests.

mod failure_log;
mod lookups;
pub mod queries;
mod quota;
mod token;
pub mod use_times;
mod verifier;

pub use quota::{Policy, Quota, QuotaStatus, Rate, Reservation};
pub use token::{InvalidTokenName, Scope, Scopes, Token, TokenDigest, TokenName, UnknownScope};
pub use use_times::UseTimes;
pub use verifier::{Lives, Recalled, Rejection, TokenPools, Verifier};

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::ids::TenantId;

/// Who sent a request, as its token says.
#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant: TenantId,
    pub tenant_name: Arc<str>,
    pub scopes: Scopes,
    /// How long the tenant's keys live, if not as long as the setting says.
    pub key_time_to_live: Option<Duration>,
    /// How long the token was valid from the moment when it was looked up; `None`: without end.
    pub token_life: Option<Duration>,
}

/// How long a tenant's keys may live. The column's constraint says the same.
pub const KEY_TIME_TO_LIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 60 * 60);

/// What a tenant is called: lower case letters, digits and `._-`, 1 to 63 of them, a letter or a digit first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantName(String);

#[derive(Debug, PartialEq, Eq, Error)]
#[error("a tenant's name is 1 to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or a digit")]
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
