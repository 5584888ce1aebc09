//! The body of a request for a claim.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::ids::{ClaimId, TenantId};
use crate::jobs::{InvalidMember, members};
use crate::json::{Counted, Document, Kind, Value};

/// A request for a claim.
#[derive(Clone, Debug)]
pub struct Request {
    pub tenant: TenantId,
    pub id: ClaimId,
    /// Tells whether another request under the same id asks for the same.
    pub fingerprint: [u8; 32],
    pub queues: Vec<String>,
    pub max_jobs: i32,
    pub lease: Duration,
    /// How long the client waits for a job. Not part of what the claim is.
    pub wait: Duration,
    pub worker: Option<String>,
}

/// The limits of the members of a claim.
struct Limits {
    queues: usize,
    max_jobs: RangeInclusive<i32>,
    lease_seconds: RangeInclusive<u32>,
    wait_seconds: RangeInclusive<u32>,
    worker_length: usize,
}

const LIMITS: Limits =
    Limits { queues: 16, max_jobs: 1..=100, lease_seconds: 5..=900, wait_seconds: 0..=30, worker_length: 128 };

const MAX_JOBS_DEFAULT: i32 = 1;
const LEASE_SECONDS_DEFAULT: u32 = 60;
const WAIT_SECONDS_DEFAULT: u32 = 0;

impl Request {
    /// Parses the body of a claim. `fingerprint` gets the canonical form of the body.
    ///
    /// # Errors
    /// [`InvalidMember`] for the first member that is unknown, repeated, missing, of the wrong kind or out of range.
    pub fn parse(
        document: &Document<'_>,
        (tenant, id): (TenantId, ClaimId),
        fingerprint: impl FnOnce(&[u8]) -> [u8; 32],
    ) -> Result<Self, InvalidMember> {
        let names = ["queues", "max_jobs", "lease_seconds", "wait_seconds", "worker"];
        let [queues, max_jobs, lease, wait, worker] = members::members(document.root(), "", names)?;
        let seconds = |value: Option<Value<'_, '_>>, pointer, range, default| {
            let seconds = value.map(|value| members::integer(value, pointer, range)).transpose()?;
            Ok(Duration::from_secs(u64::from(seconds.unwrap_or(default))))
        };
        let max_jobs = max_jobs.map(|value| members::integer(value, "/max_jobs", LIMITS.max_jobs)).transpose()?;
        Ok(Self {
            tenant,
            id,
            queues: read_queues(members::required(queues, "/queues")?)?,
            max_jobs: max_jobs.unwrap_or(MAX_JOBS_DEFAULT),
            lease: seconds(lease, "/lease_seconds", LIMITS.lease_seconds, LEASE_SECONDS_DEFAULT)?,
            wait: seconds(wait, "/wait_seconds", LIMITS.wait_seconds, WAIT_SECONDS_DEFAULT)?,
            worker: worker.map(read_worker).transpose()?,
            fingerprint: fingerprint(&canonical(document.root())),
        })
    }
}

/// A member with its default value counts as left out. The wait does not count: a client that repeats its request has
/// less time left.
fn canonical(request: Value<'_, '_>) -> Vec<u8> {
    let is_default = |member: &str, value: Value<'_, '_>| match member {
        "max_jobs" => value.text() == MAX_JOBS_DEFAULT.to_string(),
        "lease_seconds" => value.text() == LEASE_SECONDS_DEFAULT.to_string(),
        "wait_seconds" => true,
        _ => false,
    };
    request.canonical_where(|member, value| if is_default(member, value) { Counted::Not } else { Counted::AsSent })
}

fn read_queues(value: Value<'_, '_>) -> Result<Vec<String>, InvalidMember> {
    let expected = format!("an array of 1 to {} names of queues", LIMITS.queues);
    let count = value.elements().count();
    if value.kind() != Kind::Array || !(1..=LIMITS.queues).contains(&count) {
        return Err(members::unexpected(value, "/queues", &expected));
    }
    let mut queues = Vec::with_capacity(count);
    for (index, element) in value.elements().enumerate() {
        let pointer = format!("/queues/{index}");
        let queue = members::name(element, &pointer)?;
        if queues.contains(&queue) {
            return Err(members::invalid(&pointer, "the queue occurs twice; send it once"));
        }
        queues.push(queue);
    }
    Ok(queues)
}

fn read_worker(value: Value<'_, '_>) -> Result<String, InvalidMember> {
    let text = value.as_str().filter(|text| {
        (1..=LIMITS.worker_length).contains(&text.chars().count()) && !text.chars().any(char::is_control)
    });
    let expected = format!("a string of 1 to {} characters without control characters", LIMITS.worker_length);
    text.map(std::borrow::Cow::into_owned).ok_or_else(|| members::unexpected(value, "/worker", &expected))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn parse(body: &str) -> Result<Request, InvalidMember> {
        let document = Document::parse(body.as_bytes()).unwrap();
        let scope = (TenantId(Uuid::nil()), ClaimId(Uuid::max()));
        Request::parse(&document, scope, |canonical| {
            let mut start = [0; 32];
            let length = canonical.len().min(32);
            start[..length].copy_from_slice(&canonical[..length]);
            start
        })
    }

    #[test]
    fn each_error_names_the_member() {
        for (body, pointer) in [
            ("[]", ""),
            ("{}", "/queues"),
            (r#"{"queues":[]}"#, "/queues"),
            (r#"{"queues":"default"}"#, "/queues"),
            (r#"{"queues":["a b"]}"#, "/queues/0"),
            (r#"{"queues":["a","a"]}"#, "/queues/1"),
            (r#"{"queues":["a"],"max_jobs":0}"#, "/max_jobs"),
            (r#"{"queues":["a"],"max_jobs":101}"#, "/max_jobs"),
            (r#"{"queues":["a"],"lease_seconds":4}"#, "/lease_seconds"),
            (r#"{"queues":["a"],"lease_seconds":901}"#, "/lease_seconds"),
            (r#"{"queues":["a"],"wait_seconds":31}"#, "/wait_seconds"),
            (r#"{"queues":["a"],"wait_seconds":-1}"#, "/wait_seconds"),
            (r#"{"queues":["a"],"worker":""}"#, "/worker"),
            (r#"{"queues":["a"],"worker":"a\nb"}"#, "/worker"),
            (r#"{"queues":["a"],"max":1}"#, "/max"),
        ] {
            assert_eq!(parse(body).unwrap_err().pointer, pointer, "{body}");
        }
        let seventeen: Vec<String> = (0..17).map(|n| format!("\"q{n}\"")).collect();
        assert_eq!(parse(&format!(r#"{{"queues":[{}]}}"#, seventeen.join(","))).unwrap_err().pointer, "/queues");
    }

    #[test]
    fn defaults_and_the_wait_do_not_change_the_fingerprint() {
        let plain = parse(r#"{"queues":["a"]}"#).unwrap();
        let same = parse(r#"{"wait_seconds":20,"lease_seconds":60,"max_jobs":1,"queues":["a"]}"#).unwrap();
        assert_eq!(plain.fingerprint, same.fingerprint);
        let other = parse(r#"{"queues":["b"]}"#).unwrap();
        assert_ne!(plain.fingerprint, other.fingerprint);
    }
}
