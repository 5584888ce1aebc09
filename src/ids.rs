//! The identifiers that every concept shares.
//!
//! Owns their types and their text forms; knows nothing of tables or HTTP.

use std::fmt;

use serde::{Serialize, Serializer};
use uuid::Uuid;

/// Whom a row belongs to. Every primary key of the ledger begins with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub Uuid);

/// The name of one job within its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub Uuid);

/// The name of one HTTP request, in logs, problem documents and `X-Request-Id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl JobId {
    /// A new id. UUIDv7 (RFC 9562, section 5.7), so that ids sort by time and the index grows at its end.
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
    }

    /// Reads the hyphenated form, in either case (RFC 9562, section 4), and none of the others that a UUID has.
    pub fn parse(text: &str) -> Option<Self> {
        const HYPHENATED_LENGTH: usize = 36;
        if text.len() != HYPHENATED_LENGTH {
            return None;
        }
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl RequestId {
    /// Long enough for any tracing system's id, short enough to store with each key.
    const MAX_LENGTH: usize = 128;

    pub fn mint() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// Accepts what a load balancer sent if it is 1 to 128 characters of `A-Za-z0-9._:-`, which need no escaping
    /// in a header, a log line or a URI.
    pub fn accept(bytes: &[u8]) -> Option<Self> {
        let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:-".contains(byte);
        if bytes.is_empty() || bytes.len() > Self::MAX_LENGTH || !bytes.iter().all(sane) {
            return None;
        }
        String::from_utf8(bytes.to_vec()).ok().map(Self)
    }

    /// What the database gave back; it was sane when it was stored.
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

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_has_one_text_form() {
        let id = JobId::mint();
        assert_eq!(JobId::parse(&id.to_string()), Some(id));
        assert_eq!(JobId::parse(&id.0.simple().to_string()), None);
        assert_eq!(JobId::parse(&id.0.urn().to_string()), None);
        assert_eq!(JobId::parse(&id.0.braced().to_string()), None);
    }

    #[test]
    fn a_request_id_that_would_need_escaping_is_not_accepted() {
        assert!(RequestId::accept(b"req-1.a:B_2").is_some());
        for bad in [&b""[..], b"a b", b"a\"b", b"a\nb", b"a/b", b"\xff", &[b'a'; 129]] {
            assert_eq!(RequestId::accept(bad), None, "{bad:?}");
        }
    }
}
