//! Conditional requests by version (RFC 9110, section 13).

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::header::{HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use actix_web::{FromRequest, HttpRequest};

use super::Problem;
use crate::changes::Condition;
use crate::jobs::etag;

/// The `If-Match` of an operation that requires one.
pub struct IfMatch {
    pub condition: Condition,
    /// Weak tags never match. The client needs to know that they are the reason.
    only_weak_tags: bool,
}

/// Refuses a request that has a condition, for an operation that does not support conditions. A server must not ignore
/// a condition and perform the method without it (section 13.1).
pub struct NoConditions;

/// The `If-None-Match` of a read: the versions that the client already has.
pub struct IfNoneMatch(Option<Tags>);

enum Tags {
    Any,
    Listed(Vec<Tag>),
}

struct Tag {
    weak: bool,
    /// With its quotation marks.
    opaque: String,
}

impl IfNoneMatch {
    /// Whether the client has this version. The comparison is weak.
    pub fn has(&self, version: i32) -> bool {
        match &self.0 {
            None => false,
            Some(Tags::Any) => true,
            Some(Tags::Listed(tags)) => tags.iter().any(|tag| tag.opaque == etag(version)),
        }
    }
}

impl IfMatch {
    /// Adds to a failed precondition that all tags are weak.
    pub fn explain(&self, problem: Problem) -> Problem {
        match problem {
            Problem::PreconditionFailed { job_id, version, .. } => {
                Problem::PreconditionFailed { job_id, version, only_weak_tags: self.only_weak_tags }
            }
            other => other,
        }
    }
}

impl FromRequest for IfMatch {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(match tags(request.headers(), &IF_MATCH) {
            Ok(None) => Err(Problem::PreconditionRequired),
            Ok(Some(Tags::Any)) => Ok(Self { condition: Condition::Any, only_weak_tags: false }),
            // `If-Match` compares strongly, so a weak tag matches nothing (section 8.8.3.2). A tag that Hapax did not
            // make matches no version.
            Ok(Some(Tags::Listed(tags))) => Ok(Self {
                condition: Condition::OneOf(tags.iter().filter_map(Tag::version).collect()),
                only_weak_tags: tags.iter().all(|tag| tag.weak),
            }),
            Err(Malformed) => Err(Problem::InvalidIfMatch),
        })
    }
}

impl FromRequest for NoConditions {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let conditions = [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE];
        let conditional = conditions.iter().any(|field| request.headers().contains_key(field));
        ready(if conditional { Err(Problem::UnsupportedCondition) } else { Ok(Self) })
    }
}

impl FromRequest for IfNoneMatch {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        // A malformed field is ignored: the client then gets the full answer.
        ready(Ok(Self(tags(request.headers(), &IF_NONE_MATCH).unwrap_or(None))))
    }
}

impl Tag {
    /// The version that the tag names, if it is a strong tag that Hapax makes.
    fn version(&self) -> Option<i32> {
        let version = self.opaque.trim_matches('"').parse().ok()?;
        (!self.weak && etag(version) == self.opaque).then_some(version)
    }
}

struct Malformed;

/// Parses `*` or a list of entity tags. The list may span several lines of the field.
fn tags(headers: &HeaderMap, field: &HeaderName) -> Result<Option<Tags>, Malformed> {
    let mut lines = Vec::new();
    for line in headers.get_all(field) {
        lines.push(line.to_str().map_err(|_| Malformed)?);
    }
    match lines[..] {
        [] => Ok(None),
        [line] if line.trim() == "*" => Ok(Some(Tags::Any)),
        _ => list(&lines.join(",")).map(|tags| Some(Tags::Listed(tags))),
    }
}

fn list(mut rest: &str) -> Result<Vec<Tag>, Malformed> {
    let mut tags = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return if tags.is_empty() { Err(Malformed) } else { Ok(tags) };
        }
        let (weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |quoted| (true, quoted));
        let end = quoted.strip_prefix('"').and_then(|content| content.find('"')).ok_or(Malformed)? + 2;
        let (opaque, after) = quoted.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        if opaque.contains([' ', '\t']) || !(after.is_empty() || after.starts_with(',')) {
            return Err(Malformed);
        }
        tags.push(Tag { weak, opaque: opaque.to_owned() });
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(line: &str) -> Option<Vec<i32>> {
        list(line).ok().map(|tags| tags.iter().filter_map(Tag::version).collect())
    }

    #[test]
    fn only_strong_tags_that_hapax_makes_are_versions() {
        assert_eq!(versions("\"7\""), Some(vec![7]));
        assert_eq!(versions(" , \"7\" ,\"8\", "), Some(vec![7, 8]));
        for nothing in ["W/\"7\"", "\"07\"", "\"x,y\"", "\"\"", "\"+7\"", "\"99999999999\""] {
            assert_eq!(versions(nothing), Some(vec![]), "{nothing}");
        }
        for malformed in ["", ",", "7", "\"7", "7\"", "\"7\" \"8\"", "*, \"7\"", "w/\"7\"", "\"a b\""] {
            assert_eq!(versions(malformed), None, "{malformed}");
        }
    }
}
