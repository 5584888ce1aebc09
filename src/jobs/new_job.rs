//! What a client may ask for, read member by member so that each error names its place.

use chrono::{DateTime, Utc};

use super::members::{InvalidJob, max_attempts, members, name, priority, required, run_at};
use super::{ContentDigest, MAX_ATTEMPTS_DEFAULT, PRIORITY_DEFAULT, unique};
use crate::json::{DIFFERENCES_MAX, Document, Value, differences};

/// A job as submitted. `None` is what the request was silent about: a default filled in here could not be told
/// from a value that was sent.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub kind: String,
    pub queue: Option<String>,
    pub priority: Option<i16>,
    pub run_at: Option<DateTime<Utc>>,
    pub max_attempts: Option<i32>,
    /// JSON text, to the byte.
    pub payload: String,
    /// JSON Pointers (RFC 6901) to what nobody else may have while the job is active.
    pub unique_by: Option<Vec<String>>,
}

const QUEUE_DEFAULT: &str = "default";

impl NewJob {
    /// Reads the body of a submission, and sums up the content that the job asks to be unique by.
    ///
    /// # Errors
    /// [`InvalidJob`] for the first member that is unknown, repeated, missing, of the wrong kind or out of range.
    pub fn parse(request: Value<'_, '_>) -> Result<(Self, Option<ContentDigest>), InvalidJob> {
        let names = ["type", "payload", "queue", "priority", "run_at", "max_attempts", "unique"];
        let [kind, payload, queue, urgency, earliest, attempts, unique] = members(request, "", names)?;
        let (kind, payload) = (required(kind, "/type")?, required(payload, "/payload")?);
        let mut job = Self {
            kind: name(kind, "/type")?,
            queue: queue.map(|value| name(value, "/queue")).transpose()?,
            priority: urgency.map(priority).transpose()?,
            run_at: earliest.map(run_at).transpose()?,
            max_attempts: attempts.map(max_attempts).transpose()?,
            payload: payload.text().to_owned(),
            unique_by: None,
        };
        let Some(unique) = unique else { return Ok((job, None)) };
        let by = unique::pointers(unique)?;
        let content = ContentDigest::of(&job.kind, job.queue_or_default(), request, &by)?;
        job.unique_by = Some(by);
        Ok((job, Some(content)))
    }

    /// Where this job differs from another, as JSON Pointers. Numbers and names are compared by their text, a time by
    /// the moment that it is.
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

    /// Where this request differs from another of another fingerprint.
    pub fn differences_in_writing(&self, other: &Self) -> Vec<String> {
        let mut found = self.differences(other);
        if found.is_empty() && self.run_at.is_some() {
            // Every other member is compared by its text; only a time can be written in two ways.
            found.push("/run_at".to_owned());
        }
        found
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
    use super::*;

    fn parse(body: &str) -> Result<NewJob, InvalidJob> {
        NewJob::parse(Document::parse(body.as_bytes()).unwrap().root()).map(|(job, _)| job)
    }

    #[test]
    fn each_error_names_its_place() {
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
    fn the_payload_is_kept_to_the_byte() {
        let job = parse(r#"{ "payload" :  { "a" : 1.0, "a": 1e400000 }  , "type":"a"}"#).unwrap();
        assert_eq!(job.payload, r#"{ "a" : 1.0, "a": 1e400000 }"#);
    }

    #[test]
    fn a_leap_second_is_unfolded_and_a_time_cut_to_microseconds() {
        let job = parse(r#"{"type":"a","payload":1,"run_at":"2016-12-31T23:59:60.1234567Z"}"#).unwrap();
        assert_eq!(job.run_at.unwrap().to_rfc3339(), "2017-01-01T00:00:00.123456+00:00");
    }

    #[test]
    fn silence_differs_from_the_default_and_one_time_has_many_spellings() {
        let job = |options: &str| parse(&format!(r#"{{"type":"a","payload":{{"n":1}}{options}}}"#)).unwrap();
        assert_eq!(job("").differences(&job(r#","queue":"default""#)), ["/queue"]);
        let (utc, offset) =
            (job(r#","run_at":"2030-01-01T00:00:00Z""#), job(r#","run_at":"2030-01-01T00:00:00+00:00""#));
        assert_eq!(utc.differences_in_writing(&offset), ["/run_at"]);
        assert_eq!(utc.differences(&offset), [""; 0]);
    }
}
