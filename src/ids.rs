//! Identifiers that all modules share.
//!
//! Owns their types and text forms. Contains nothing about tables or HTTP.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// The owner of a row. Every primary key of a tenant's table begins with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub Uuid);

/// The id of a job, unique within its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub Uuid);

/// The id of a claim, unique within its tenant. The worker makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimId(pub Uuid);

/// The id of an HTTP request, in logs, problem documents and `X-Request-Id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl JobId {
    /// A new id for something created at this time: a UUIDv7 (RFC 9562, section 5.7) whose twelve bits below the
    /// millisecond also hold the time (section 6.2, method 3). An id that is created a microsecond later is greater, on
    /// any replica, so the index grows at its end.
    pub fn mint(at: DateTime<Utc>) -> Self {
        let random: u64 = rand::random();
        Self(Uuid::from_u128(Self::first_of(at).0.as_u128() | u128::from(random >> 2)))
    }

    /// The smallest id that [`JobId::mint`] can make for this time.
    pub fn first_of(at: DateTime<Utc>) -> Self {
        const VERSION_7: u128 = 7 << 76;
        const VARIANT: u128 = 0b10 << 62;
        let microseconds = u128::try_from(at.timestamp_micros()).unwrap_or(0);
        let milliseconds = (microseconds / 1000) & ((1 << 48) - 1);
        let fraction = (microseconds % 1000) * 4096 / 1000;
        Self(Uuid::from_u128(milliseconds << 80 | VERSION_7 | fraction << 64 | VARIANT))
    }

    /// Parses the hyphenated form in upper or lower case (RFC 9562, section 4) and no other. The nil and max UUIDs
    /// (sections 5.9 and 5.10) are reserved for a missing id and the end of a list.
    pub fn parse(text: &str) -> Option<Self> {
        uuid(text).map(Self)
    }
}

impl ClaimId {
    /// Like [`JobId::parse`].
    pub fn parse(text: &str) -> Option<Self> {
        uuid(text).map(Self)
    }
}

fn uuid(text: &str) -> Option<Uuid> {
    const HYPHENATED_LENGTH: usize = 36;
    if text.len() != HYPHENATED_LENGTH {
        return None;
    }
    Uuid::try_parse(text).ok().filter(|id| !id.is_nil() && !id.is_max())
}

impl RequestId {
    /// Long enough for any tracing system, short enough to store with each idempotency key.
    const MAX_LENGTH: usize = 128;

    pub fn mint() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// Accepts an id from a load balancer if it has 1 to 128 characters of `A-Za-z0-9._:-`, which need no escaping in a
    /// header, a log line or a URI.
    pub fn accept(bytes: &[u8]) -> Option<Self> {
        let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:-".contains(byte);
        if bytes.is_empty() || bytes.len() > Self::MAX_LENGTH || !bytes.iter().all(sane) {
            return None;
        }
        String::from_utf8(bytes.to_vec()).ok().map(Self)
    }

    /// Reads a stored id, which was checked before it was stored.
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ClaimId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_creation_time() {
        let at = |microseconds| DateTime::from_timestamp_micros(1_795_000_000_000_000 + microseconds).unwrap();
        for n in 0..5000_i64 {
            let (id, later) = (JobId::mint(at(n)), JobId::mint(at(n + 1)));
            assert!(JobId::first_of(at(n)) <= id && id < JobId::first_of(at(n + 1)) && id < later, "{n}");
            assert_eq!((id.0.get_version_num(), id.0.get_variant()), (7, uuid::Variant::RFC4122));
            let (seconds, nanoseconds) = id.0.get_timestamp().unwrap().to_unix();
            assert_eq!(seconds * 1000 + u64::from(nanoseconds) / 1_000_000, at(n).timestamp_millis() as u64);
        }
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| JobId::mint(at(0))).collect();
        assert_eq!(ids.len(), 1000);
    }

    #[test]
    fn a_job_id_has_one_text_form() {
        let id = JobId::mint(Utc::now());
        assert_eq!(JobId::parse(&id.to_string()), Some(id));
        assert_eq!(JobId::parse(&id.0.simple().to_string()), None);
        assert_eq!(JobId::parse(&id.0.urn().to_string()), None);
        assert_eq!(JobId::parse(&id.0.braced().to_string()), None);
    }

    #[test]
    fn the_nil_and_max_uuids_are_not_job_ids() {
        for none in [Uuid::nil(), Uuid::max()] {
            assert_eq!(JobId::parse(&none.to_string()), None);
            assert_eq!(JobId::parse(&none.to_string().to_uppercase()), None);
        }
    }

    #[test]
    fn a_request_id_that_would_need_escaping_is_not_accepted() {
        assert!(RequestId::accept(b"req-1.a:B_2").is_some());
        for bad in [&b""[..], b"a b", b"a\"b", b"a\nb", b"a/b", b"\xff", &[b'a'; 129]] {
            assert_eq!(RequestId::accept(bad), None, "{bad:?}");
        }
    }
}
