//! Quotas in HTTP: the status 429, and the header fields of draft-ietf-httpapi-ratelimit-headers-11.

use std::hash::Hash;
use std::time::Duration;

use actix_web::HttpMessage;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

use super::Problem;
use crate::access::{Quota, QuotaStatus, Rate, Reservation};

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Enough for three items.
const TEXT_LENGTH: usize = 128;

/// The quotas that a request was charged to, in order.
#[derive(Default)]
pub struct QuotaStatuses(Vec<QuotaStatus>);

/// Reserves one unit of a quota for a request. The header fields of its answer show what is left. `own_rate` is the rate
/// that an operator has set for the caller's tenant.
///
/// # Errors
/// [`Problem::QuotaExceeded`] if nothing is left.
pub fn reserve<S: Hash + Eq + Clone>(
    quota: &Quota<S>,
    subject: &S,
    own_rate: Option<Rate>,
    request: &impl HttpMessage,
) -> Result<Reservation, Problem> {
    reserve_many(quota, subject, own_rate, 1, request)
}

/// Reserves several units.
///
/// # Errors
/// [`Problem::QuotaExceeded`] if fewer units are left.
pub fn reserve_many<S: Hash + Eq + Clone>(
    quota: &Quota<S>,
    subject: &S,
    own_rate: Option<Rate>,
    units: u32,
    request: &impl HttpMessage,
) -> Result<Reservation, Problem> {
    let taken = quota.take_many(subject, own_rate, units);
    record(
        taken.as_ref().map_or_else(|quota_status| Some(*quota_status), |reservation| reservation.quota_status),
        request,
    );
    taken.map_err(Problem::QuotaExceeded)
}

/// Refunds the units of a reservation that the request did not need.
pub fn refund(reservation: Reservation, request: &impl HttpMessage) {
    record(reservation.refund(), request);
}

/// Keeps the status for the answer's header fields. A later status of the same quota replaces the earlier one.
fn record(quota_status: Option<QuotaStatus>, request: &impl HttpMessage) {
    let Some(quota_status) = quota_status else { return };
    let mut extensions = request.extensions_mut();
    let quota_statuses = extensions.get_or_insert(QuotaStatuses::default());
    match quota_statuses.0.iter_mut().find(|known| known.policy == quota_status.policy) {
        Some(known) => *known = quota_status,
        None => quota_statuses.0.push(quota_status),
    }
}

/// Writes `RateLimit-Policy` and `RateLimit`, with one item for each quota that was charged.
pub fn write_headers(quota_statuses: &QuotaStatuses, headers: &mut HeaderMap) {
    let (mut policies, mut limits) = (String::with_capacity(TEXT_LENGTH), String::with_capacity(TEXT_LENGTH));
    for QuotaStatus { policy, remaining, reset, .. } in &quota_statuses.0 {
        write_item(&mut policies, policy.name, [(";q=", policy.quota.into()), (";w=", whole_seconds(policy.window))]);
        write_item(&mut limits, policy.name, [(";r=", (*remaining).into()), (";t=", whole_seconds(*reset))]);
    }
    for (name, value) in [(RATELIMIT_POLICY, policies), (RATELIMIT, limits)] {
        let value = HeaderValue::try_from(value).expect("names and numbers are plain characters");
        headers.insert(name, value);
    }
}

/// Writes an item of a list (RFC 9651). Without `format!`, which would cost each answer as much as its routing.
fn write_item(list: &mut String, name: &str, parameters: [(&str, u64); 2]) {
    list.push_str(if list.is_empty() { "\"" } else { ", \"" });
    list.push_str(name);
    list.push('"');
    for (parameter, value) in parameters {
        list.push_str(parameter);
        list.push_str(itoa::Buffer::new().format(value));
    }
}

/// Rounds up to whole seconds, so that a client that waits for this time has waited long enough.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
