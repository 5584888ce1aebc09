//! What a client may ask for, read member by member so that each error names its place.

use chrono::{DateTime, Datelike, Utc};
use thiserror::Error;

use super::microseconds;
use crate::json::{DIFFERENCES_MAX, Document, Kind, Value, differences, member_pointer};

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
}

/// Which member of a request is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{detail}")]
pub struct InvalidJob {
    /// A JSON Pointer (RFC 6901) to the member.
    pub pointer: String,
    pub detail: String,
}

const NAME_LENGTH_MAX: usize = 128;
const QUEUE_DEFAULT: &str = "default";
const PRIORITY_DEFAULT: i16 = 2;
const PRIORITY_RANGE: std::ops::RangeInclusive<i16> = 1..=4;
/// With the usual exponential back-off, about three weeks of trying.
const MAX_ATTEMPTS_DEFAULT: i32 = 25;
const MAX_ATTEMPTS_RANGE: std::ops::RangeInclusive<i32> = 1..=1000;

impl NewJob {
    /// Reads the body of a submission.
    ///
    /// # Errors
    /// [`InvalidJob`] for the first member that is unknown, repeated, missing, of the wrong kind or out of range.
    pub fn parse(document: &Document<'_>) -> Result<Self, InvalidJob> {
        let root = document.root();
        if root.kind() != Kind::Object {
            return Err(invalid("", "the body must be a JSON object"));
        }
        let mut members = Members::default();
        for (name, value) in root.members() {
            let slot = match name.as_ref() {
                "type" => &mut members.kind,
                "payload" => &mut members.payload,
                "queue" => &mut members.queue,
                "priority" => &mut members.priority,
                "run_at" => &mut members.run_at,
                "max_attempts" => &mut members.max_attempts,
                _ => return Err(unknown_member(&name)),
            };
            if slot.replace(value).is_some() {
                return Err(invalid(&member_pointer("", &name), "the member is given twice"));
            }
        }
        let required = |slot: Option<Value<'_, '_>>, pointer: &str| match slot {
            Some(_) => Ok(()),
            None => Err(invalid(pointer, "the member is required")),
        };
        required(members.kind, "/type")?;
        required(members.payload, "/payload")?;
        Ok(Self {
            kind: members.kind.map(|value| name(value, "/type")).transpose()?.unwrap_or_default(),
            queue: members.queue.map(|value| name(value, "/queue")).transpose()?,
            priority: members.priority.map(|value| integer(value, "/priority", PRIORITY_RANGE)).transpose()?,
            run_at: members.run_at.map(|value| moment(value, "/run_at")).transpose()?,
            max_attempts: members
                .max_attempts
                .map(|value| integer(value, "/max_attempts", MAX_ATTEMPTS_RANGE))
                .transpose()?,
            payload: members.payload.map(|value| value.text().to_owned()).unwrap_or_default(),
        })
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

    /// Where this request differs from another that has a different fingerprint, as JSON Pointers.
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
        match (Document::parse(self.payload.as_bytes()), Document::parse(other.payload.as_bytes())) {
            (Ok(ours), Ok(theirs)) => differences(ours.root(), theirs.root(), "/payload", &mut found),
            _ => found.push("/payload".to_owned()),
        }
        if found.is_empty() && self.run_at.is_some() {
            // Every other member is compared by its text; only a time can be written in two ways.
            found.push("/run_at".to_owned());
        }
        found.truncate(DIFFERENCES_MAX);
        found
    }
}

#[derive(Default)]
struct Members<'d, 'a> {
    kind: Option<Value<'d, 'a>>,
    payload: Option<Value<'d, 'a>>,
    queue: Option<Value<'d, 'a>>,
    priority: Option<Value<'d, 'a>>,
    run_at: Option<Value<'d, 'a>>,
    max_attempts: Option<Value<'d, 'a>>,
}

fn name(value: Value<'_, '_>, pointer: &str) -> Result<String, InvalidJob> {
    let text = value.as_str().ok_or_else(|| invalid(pointer, "a string is expected"))?;
    if text.is_empty() || text.len() > NAME_LENGTH_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid(pointer, "1 to 128 visible ASCII characters without space are expected"));
    }
    Ok(text.into_owned())
}

fn integer<T>(value: Value<'_, '_>, pointer: &str, range: std::ops::RangeInclusive<T>) -> Result<T, InvalidJob>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let number = (value.kind() == Kind::Number).then(|| value.text().parse::<T>().ok()).flatten();
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        let detail = format!("an integer from {} to {} is expected", range.start(), range.end());
        InvalidJob { pointer: pointer.to_owned(), detail }
    })
}

fn moment(value: Value<'_, '_>, pointer: &str) -> Result<DateTime<Utc>, InvalidJob> {
    let text = value.as_str();
    let at = text.as_deref().and_then(rfc3339).map(microseconds);
    // Beyond these years the answer would no longer be RFC 3339.
    at.filter(|at| (1..=9999).contains(&at.year())).ok_or_else(|| {
        invalid(
            pointer,
            "a date and time of RFC 3339 in the years 0001 to 9999 is expected, such as 2030-01-31T12:00:00Z",
        )
    })
}

fn rfc3339(text: &str) -> Option<DateTime<Utc>> {
    // chrono takes a minus sign of another alphabet, too.
    if !text.is_ascii() {
        return None;
    }
    Some(DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc))
}

fn unknown_member(name: &str) -> InvalidJob {
    const SHOWN_LENGTH_MAX: usize = 64;
    let pointer = if name.len() <= SHOWN_LENGTH_MAX { member_pointer("", name) } else { String::new() };
    invalid(&pointer, "a member is unknown; known are type, payload, queue, priority, run_at and max_attempts")
}

fn invalid(pointer: &str, detail: &str) -> InvalidJob {
    InvalidJob { pointer: pointer.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<NewJob, InvalidJob> {
        NewJob::parse(&Document::parse(body.as_bytes()).unwrap())
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
        assert_eq!(utc.differences(&offset), ["/run_at"]);
    }
}
