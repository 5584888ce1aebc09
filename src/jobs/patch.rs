//! The body of a PATCH: what may be changed of a waiting job.

use chrono::{DateTime, Utc};

use super::members::{InvalidMember, counted_run_at, max_attempts, members, priority, run_at};
use super::{Job, MAX_ATTEMPTS_DEFAULT, PRIORITY_DEFAULT};
use crate::json::{Counted, Document, Kind, Value};

/// A JSON Merge Patch (RFC 7396) of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    priority: Option<NewValue<i16>>,
    run_at: Option<NewValue<DateTime<Utc>>>,
    max_attempts: Option<NewValue<i32>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewValue<T> {
    Is(T),
    /// `null` resets a member to its default.
    Default,
}

impl Patch {
    /// Parses the body of a PATCH.
    ///
    /// # Errors
    /// [`InvalidMember`] for the first member that cannot be changed, is repeated, of the wrong kind or out of range.
    pub fn parse(document: &Document<'_>) -> Result<Self, InvalidMember> {
        let names = ["priority", "run_at", "max_attempts"];
        let [new_priority, new_run_at, new_max_attempts] = members(document.root(), "", names)?;
        Ok(Self {
            priority: change(new_priority, priority)?,
            run_at: change(new_run_at, run_at)?,
            max_attempts: change(new_max_attempts, max_attempts)?,
        })
    }

    /// The canonical form for fingerprints. A default value counts as sent, because in a patch a missing member stays
    /// unchanged.
    pub fn canonical(request: Value<'_, '_>) -> Vec<u8> {
        request.canonical_where(|member, value| match member {
            "run_at" => counted_run_at(value),
            _ => Counted::AsSent,
        })
    }

    /// Applies the changes to a job.
    pub fn apply(&self, job: &mut Job) {
        let created_at = job.created_at;
        set(&mut job.priority, self.priority, PRIORITY_DEFAULT);
        set(&mut job.run_at, self.run_at, created_at);
        set(&mut job.max_attempts, self.max_attempts, MAX_ATTEMPTS_DEFAULT);
        job.version = job.version.saturating_add(1);
    }
}

fn change<T>(
    value: Option<Value<'_, '_>>,
    read: impl Fn(Value<'_, '_>) -> Result<T, InvalidMember>,
) -> Result<Option<NewValue<T>>, InvalidMember> {
    let change = |value: Value<'_, '_>| match value.kind() {
        Kind::Null => Ok(NewValue::Default),
        _ => read(value).map(NewValue::Is),
    };
    value.map(change).transpose()
}

fn set<T>(member: &mut T, change: Option<NewValue<T>>, default: T) {
    match change {
        None => {}
        Some(NewValue::Is(value)) => *member = value,
        Some(NewValue::Default) => *member = default,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;
    use crate::jobs::NewJob;

    fn parse(body: &str) -> Result<Patch, InvalidMember> {
        Patch::parse(&Document::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn an_invalid_change_is_refused_and_its_member_named() {
        for (body, pointer) in [
            ("[]", ""),
            (r#"{"payload":1}"#, "/payload"),
            (r#"{"queue":"q"}"#, "/queue"),
            (r#"{"priority":1,"priority":1}"#, "/priority"),
            (r#"{"priority":5}"#, "/priority"),
            (r#"{"run_at":"tomorrow"}"#, "/run_at"),
            (r#"{"max_attempts":0}"#, "/max_attempts"),
        ] {
            assert_eq!(parse(body).unwrap_err().pointer, pointer, "{body}");
        }
    }

    #[test]
    fn a_default_counts_as_sent_and_a_time_as_its_moment() {
        let canonical = |text: &str| Patch::canonical(Document::parse(text.as_bytes()).unwrap().root());
        assert_ne!(canonical(r#"{"priority":2}"#), canonical("{}"));
        assert_eq!(
            canonical(r#"{"run_at":"2030-01-01T00:00:00Z"}"#),
            canonical(r#"{"run_at":"2030-01-01T01:00:00+01:00"}"#)
        );
        assert_ne!(canonical(r#"{"run_at":null}"#), canonical("{}"));
    }

    #[test]
    fn null_resets_a_member_to_its_default() {
        let new = r#"{"type":"a","payload":1,"priority":1,"run_at":"2030-01-01T00:00:00Z","max_attempts":3}"#;
        let (new, _) = NewJob::parse(Document::parse(new.as_bytes()).unwrap().root()).unwrap();
        let at = crate::jobs::now();
        let mut job = Job::submitted(JobId::mint(at), at, &new);
        parse(r#"{"priority":4}"#).unwrap().apply(&mut job);
        assert_eq!((job.priority, job.max_attempts, job.version), (4, 3, 2));
        parse(r#"{"priority":null,"run_at":null,"max_attempts":null}"#).unwrap().apply(&mut job);
        assert_eq!((job.priority, job.run_at, job.max_attempts), (2, at, 25));
    }
}
