//! The body of a submission, read member by member so that each error names the member.

use chrono::{DateTime, Utc};

use super::members::{InvalidMember, counted_run_at, max_attempts, members, name, priority, required, run_at};
use super::{ContentDigest, MAX_ATTEMPTS_DEFAULT, PRIORITY_DEFAULT, unique};
use crate::json::{Counted, DIFFERENCES_MAX, Document, Value, differences};

/// A job as submitted. A member sent with its default value becomes `None`, as if it had been left out: some clients
/// send defaults and others do not, and both ask for the same job (ADR 0023).
#[derive(Clone, Debug)]
pub struct NewJob {
    pub kind: String,
    pub queue: Option<String>,
    pub priority: Option<i16>,
    pub run_at: Option<DateTime<Utc>>,
    pub max_attempts: Option<i32>,
    /// JSON text, exactly as sent.
    pub payload: String,
    /// JSON Pointers (RFC 6901) to the content that no other active job may have.
    pub unique_by: Option<Vec<String>>,
}

const QUEUE_DEFAULT: &str = "default";

impl NewJob {
    /// Parses the body of a submission, and computes the digest of the content that the job asks to be unique by.
    ///
    /// # Errors
    /// [`InvalidMember`] for the first member that is unknown, repeated, missing, of the wrong kind or out of range.
    pub fn parse(request: Value<'_, '_>) -> Result<(Self, Option<ContentDigest>), InvalidMember> {
        let names = ["type", "payload", "queue", "priority", "run_at", "max_attempts", "unique"];
        let [kind, payload, queue, urgency, earliest, attempts, unique] = members(request, "", names)?;
        let (kind, payload) = (required(kind, "/type")?, required(payload, "/payload")?);
        let mut job = Self {
            kind: name(kind, "/type")?,
            queue: queue.map(|value| name(value, "/queue")).transpose()?.filter(|queue| queue != QUEUE_DEFAULT),
            priority: urgency.map(priority).transpose()?.filter(|priority| *priority != PRIORITY_DEFAULT),
            run_at: earliest.map(run_at).transpose()?,
            max_attempts: attempts.map(max_attempts).transpose()?.filter(|max| *max != MAX_ATTEMPTS_DEFAULT),
            payload: payload.text().to_owned(),
            unique_by: None,
        };
        let Some(unique) = unique else { return Ok((job, None)) };
        let by = unique::pointers(unique)?;
        let content = ContentDigest::of(&job.kind, job.queue_or_default(), request, &by)?;
        job.unique_by = Some(by);
        Ok((job, Some(content)))
    }

    /// The canonical form for fingerprints: the same for every body that asks for the same job. A member sent with its
    /// default value counts as left out, and a time counts as its moment. It does not validate the body.
    pub fn canonical(request: Value<'_, '_>) -> Vec<u8> {
        let is_default = |member: &str, value: Value<'_, '_>| match member {
            "queue" => value.as_str().as_deref() == Some(QUEUE_DEFAULT),
            "priority" => priority(value) == Ok(PRIORITY_DEFAULT),
            "max_attempts" => max_attempts(value) == Ok(MAX_ATTEMPTS_DEFAULT),
            _ => false,
        };
        request.canonical_where(|member, value| match member {
            "run_at" => counted_run_at(value),
            _ if is_default(member, value) => Counted::Not,
            _ => Counted::AsSent,
        })
    }

    /// Where this job differs from another, as JSON Pointers. Numbers and names are compared as text, times as moments.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut note = |differs: bool, pointer: &str| {
            if differs {
                found.push(pointer.to_owned());
            }
        };
        note(self.kind != other.kind, "/type");
        note(self.queue != other.queue, "/queue");
        note(self.priority != other.priority, "/priority");
        note(self.run_at != other.run_at, "/run_at");
        note(self.max_attempts != other.max_attempts, "/max_attempts");
        note(self.unique_by != other.unique_by, "/unique/by");
        match (Document::parse(self.payload.as_bytes()), Document::parse(other.payload.as_bytes())) {
            (Ok(ours), Ok(theirs)) => differences(ours.root(), theirs.root(), "/payload", &mut found),
            _ => found.push("/payload".to_owned()),
        }
        found.truncate(DIFFERENCES_MAX);
        found
    }

    /// The digest of the content that the job is unique by. `None` if it is not unique.
    pub fn content(&self) -> Option<ContentDigest> {
        let by = self.unique_by.as_ref()?;
        let request = format!("{{\"payload\":{}}}", self.payload);
        let document = Document::parse_envelope(request.as_bytes()).ok()?;
        ContentDigest::of(&self.kind, self.queue_or_default(), document.root(), by).ok()
    }

    pub fn queue_or_default(&self) -> &str {
        self.queue.as_deref().unwrap_or(QUEUE_DEFAULT)
    }

    pub fn priority_or_default(&self) -> i16 {
        self.priority.unwrap_or(PRIORITY_DEFAULT)
    }

    pub fn max_attempts_or_default(&self) -> i32 {
        self.max_attempts.unwrap_or(MAX_ATTEMPTS_DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn parse(body: &str) -> Result<NewJob, InvalidMember> {
        NewJob::parse(Document::parse(body.as_bytes()).unwrap().root()).map(|(job, _)| job)
    }

    #[test]
    fn each_error_names_the_member() {
        for (body, pointer) in [
            ("[]", ""),
            (r#"{"payload":1}"#, "/type"),
            (r#"{"type":"a"}"#, "/payload"),
            (r#"{"type":"a","payload":1,"x/y":1}"#, "/x~1y"),
            (r#"{"type":"a","payload":1,"payload":1}"#, "/payload"),
            (r#"{"type":"a","p\u0061yload":1,"payload":1}"#, "/payload"),
            (r#"{"type":"","payload":1}"#, "/type"),
            (r#"{"type":"a b","payload":1}"#, "/type"),
            (r#"{"type":7,"payload":1}"#, "/type"),
            (r#"{"type":"a","payload":1,"queue":null}"#, "/queue"),
            (r#"{"type":"a","payload":1,"unique":null}"#, "/unique"),
            (r#"{"type":"a","payload":1,"unique":{}}"#, "/unique/by"),
            (r#"{"type":"a","payload":1,"unique":{"by":["/payload"],"for":1}}"#, "/unique/for"),
            (r#"{"type":"a","payload":1,"priority":0}"#, "/priority"),
            (r#"{"type":"a","payload":1,"priority":5}"#, "/priority"),
            (r#"{"type":"a","payload":1,"priority":1.0}"#, "/priority"),
            (r#"{"type":"a","payload":1,"priority":"1"}"#, "/priority"),
            (r#"{"type":"a","payload":1,"max_attempts":99999999999}"#, "/max_attempts"),
            (r#"{"type":"a","payload":1,"run_at":"tomorrow"}"#, "/run_at"),
            (r#"{"type":"a","payload":1,"run_at":"2030-01-01T00:00:00\u221201:00"}"#, "/run_at"),
            (r#"{"type":"a","payload":1,"run_at":"9999-12-31T23:59:59-01:00"}"#, "/run_at"),
            (r#"{"type":"a","payload":1,"run_at":"0000-06-01T00:00:00Z"}"#, "/run_at"),
        ] {
            assert_eq!(parse(body).unwrap_err().pointer, pointer, "{body}");
        }
    }

    #[test]
    fn the_payload_is_kept_byte_for_byte() {
        let job = parse(r#"{ "payload" :  { "a" : 1.0, "a": 1e400000 }  , "type":"a"}"#).unwrap();
        assert_eq!(job.payload, r#"{ "a" : 1.0, "a": 1e400000 }"#);
    }

    #[test]
    fn a_leap_second_is_normalized_and_a_time_truncated_to_microseconds() {
        let job = parse(r#"{"type":"a","payload":1,"run_at":"2016-12-31T23:59:60.1234567Z"}"#).unwrap();
        assert_eq!(job.run_at.unwrap().to_rfc3339(), "2017-01-01T00:00:00.123456+00:00");
    }

    /// The canonical form and the job are compared in different places, and must agree.
    #[test]
    fn a_default_counts_as_left_out_and_a_time_as_its_moment() {
        let body = |options: &str| format!(r#"{{"type":"a","payload":{{"n":1}}{options}}}"#);
        let canonical = |options: &str| {
            let body = body(options);
            NewJob::canonical(Document::parse(body.as_bytes()).unwrap().root())
        };
        let are_same = |one: &str, other: &str| {
            let differences = parse(&body(one)).unwrap().differences(&parse(&body(other)).unwrap());
            assert_eq!(canonical(one) == canonical(other), differences.is_empty(), "{one} {other}");
            differences.is_empty()
        };
        for default in [
            r#","queue":"default""#,
            r#","queue":"def\u0061ult""#,
            r#","priority":2"#,
            r#","max_attempts":25"#,
            r#","max_attempts":25,"queue":"default","priority":2"#,
        ] {
            assert!(are_same("", default), "{default}");
        }
        for other in
            [r#","queue":"Default""#, r#","priority":1"#, r#","max_attempts":2"#, r#","run_at":"2030-01-01T00:00:00Z""#]
        {
            assert!(!are_same("", other), "{other}");
        }
        let utc = r#","run_at":"2030-01-01T00:00:00Z""#;
        for same in ["2030-01-01T00:00:00+00:00", "2030-01-01t01:00:00.0000009+01:00", "2029-12-31T23:00:00.0-01:00"] {
            assert!(are_same(utc, &format!(r#","run_at":"{same}""#)), "{same}");
        }
        assert!(!are_same(utc, r#","run_at":"2030-01-01T00:00:00.000001Z""#));
    }

    /// For authors of clients and of SQL. Stored fingerprints outlive a release, so no vector ever changes.
    #[test]
    fn the_published_fingerprints_are_those_of_this_release() {
        let published: serde_json::Value =
            serde_json::from_str(include_str!("../../api-design/fingerprints.json")).unwrap();
        for vector in published["vectors"].as_array().unwrap() {
            let member = |name: &str| vector[name].as_str().unwrap();
            let document = Document::parse(member("body").as_bytes()).unwrap();
            let canonical = NewJob::canonical(document.root());
            assert_eq!(String::from_utf8(canonical.clone()).unwrap(), member("canonical"), "{}", member("rule"));
            let hash = Sha256::new().chain_update("/jobs\n").chain_update(canonical).finalize();
            assert_eq!(hex::encode(hash), member("fingerprint"), "{}", member("rule"));
            assert!(NewJob::parse(document.root()).is_ok(), "{}", member("rule"));
        }
    }

    #[test]
    fn an_invalid_body_never_has_the_canonical_form_of_a_valid_one() {
        let canonical = |text: &str| NewJob::canonical(Document::parse(text.as_bytes()).unwrap().root());
        let good = canonical(r#"{"type":"a","payload":1}"#);
        for refused in [
            r#"{"type":"a","payload":1,"priority":2,"priority":2}"#,
            r#"{"type":"a","payload":1,"priority":2.0}"#,
            r#"{"type":"a","payload":1,"priority":"2"}"#,
            r#"{"type":"a","payload":1,"queue":null}"#,
            r#"{"type":"a","payload":1,"run_at":"now"}"#,
        ] {
            assert!(parse(refused).is_err() && canonical(refused) != good, "{refused}");
        }
    }
}
