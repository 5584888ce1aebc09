//! Reads the members of a JSON object one by one, so that each error names the member.

use std::borrow::Cow;

use chrono::{DateTime, Datelike, Timelike, Utc};
use thiserror::Error;

use super::microseconds;
use crate::json::{Counted, Kind, Value, member_pointer};
use crate::timestamp::Timestamp;

/// Which member of a request is invalid, and why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{detail}")]
pub struct InvalidMember {
    /// A JSON Pointer (RFC 6901) to the member.
    pub pointer: String,
    pub detail: String,
}

/// The members without a default that must not be null.
const REQUIRED: [&str; 4] = ["/type", "/unique/by", "/queues", "/results"];
const NAME_LENGTH_MAX: usize = 128;
const PRIORITY_RANGE: std::ops::RangeInclusive<i16> = 1..=4;
const MAX_ATTEMPTS_RANGE: std::ops::RangeInclusive<i32> = 1..=1000;

/// The values of an object's members, in the order of `names`. `pointer` is the place of the object.
///
/// # Errors
/// [`InvalidMember`] if it is not an object, or has an unknown or repeated member.
pub fn members<'d, 'a, const N: usize>(
    object: Value<'d, 'a>,
    pointer: &str,
    names: [&str; N],
) -> Result<[Option<Value<'d, 'a>>; N], InvalidMember> {
    if object.kind() != Kind::Object {
        return Err(match pointer {
            "" => invalid(pointer, "expected a JSON object"),
            _ => unexpected(object, pointer, "a JSON object"),
        });
    }
    let mut values = [None; N];
    for (name, value) in object.members() {
        let Some(index) = names.iter().position(|known| **known == *name) else {
            return Err(unknown_member(pointer, &name, &names));
        };
        if values[index].replace(value).is_some() {
            return Err(invalid(&member_pointer(pointer, &name), "the member occurs twice; send it once"));
        }
    }
    Ok(values)
}

/// # Errors
/// [`InvalidMember`] if the member is missing.
pub fn required<'d, 'a>(value: Option<Value<'d, 'a>>, pointer: &str) -> Result<Value<'d, 'a>, InvalidMember> {
    value.ok_or_else(|| invalid(pointer, "the member is missing; it is required"))
}

/// The name of a job type or a queue.
pub fn name(value: Value<'_, '_>, pointer: &str) -> Result<String, InvalidMember> {
    let text = value.as_str().filter(|text| is_name(text));
    text.map(Cow::into_owned)
        .ok_or_else(|| unexpected(value, pointer, "a string of 1 to 128 visible ASCII characters without spaces"))
}

pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_LENGTH_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
}

pub fn priority(value: Value<'_, '_>) -> Result<i16, InvalidMember> {
    integer(value, "/priority", PRIORITY_RANGE)
}

pub fn max_attempts(value: Value<'_, '_>) -> Result<i32, InvalidMember> {
    integer(value, "/max_attempts", MAX_ATTEMPTS_RANGE)
}

pub fn run_at(value: Value<'_, '_>) -> Result<DateTime<Utc>, InvalidMember> {
    match value.as_str() {
        None => Err(unexpected(value, "/run_at", "a string with a date and time, such as 2030-01-31T12:00:00Z")),
        Some(text) => moment(&text).ok_or_else(|| invalid("/run_at", why_no_moment(&text))),
    }
}

/// The canonical form of `run_at` in a fingerprint: each moment has one form, however it is written.
pub fn counted_run_at(value: Value<'_, '_>) -> Counted {
    run_at(value).map_or(Counted::AsSent, |at| Counted::As(format!("\"{}\"", Timestamp(at))))
}

/// Parses a date and time of RFC 3339, to the microsecond.
pub fn moment(text: &str) -> Option<DateTime<Utc>> {
    // chrono also accepts the Unicode minus sign.
    if !text.is_ascii() {
        return None;
    }
    let at = DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc);
    if is_leap_second(at) && !may_have_leap_second(at) {
        return None;
    }
    let at = microseconds(at);
    // Outside of these years the answer would not be RFC 3339.
    (1..=9999).contains(&at.year()).then_some(at)
}

/// Tells the client why [`moment`] refuses a text, and what to send.
pub fn why_no_moment(text: &str) -> &'static str {
    let has_no_offset = ["Z", "z"].iter().any(|offset| moment(&format!("{text}{offset}")).is_some());
    if has_no_offset {
        "the time has no offset from UTC; append Z for UTC, or an offset such as +01:00"
    } else {
        "expected a date and time of RFC 3339 in the years 0001 to 9999, such as 2030-01-31T12:00:00Z"
    }
}

/// chrono accepts the second 60 in any minute, and keeps it in the fraction.
fn is_leap_second(at: DateTime<Utc>) -> bool {
    at.nanosecond() >= 1_000_000_000
}

/// Whether UTC can have a leap second in this minute: at the end of June and of December (RFC 3339, section 5.7). The
/// years are not known long in advance.
fn may_have_leap_second(at: DateTime<Utc>) -> bool {
    matches!((at.month(), at.day(), at.hour(), at.minute()), (6, 30, 23, 59) | (12, 31, 23, 59))
}

/// An integer in a range.
pub fn integer<T>(value: Value<'_, '_>, pointer: &str, range: std::ops::RangeInclusive<T>) -> Result<T, InvalidMember>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let number = (value.kind() == Kind::Number).then(|| value.text().parse::<T>().ok()).flatten();
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| unexpected(value, pointer, &format!("an integer from {} to {}", range.start(), range.end())))
}

fn unknown_member(pointer: &str, name: &str, known: &[&str]) -> InvalidMember {
    const SHOWN_LENGTH_MAX: usize = 64;
    let pointer = if name.len() <= SHOWN_LENGTH_MAX { member_pointer(pointer, name) } else { pointer.to_owned() };
    let detail = match known {
        [only] => format!("the member is unknown; the only member here is {only}"),
        [others @ .., last] => format!("the member is unknown; the members here are {} and {last}", others.join(", ")),
        [] => "the member is unknown".to_owned(),
    };
    InvalidMember { pointer, detail }
}

/// The error for a value of the wrong kind or out of range.
pub fn unexpected(value: Value<'_, '_>, pointer: &str, expected: &str) -> InvalidMember {
    let null = "null is not accepted here; send";
    let detail = match value.kind() {
        Kind::Null if REQUIRED.contains(&pointer) => format!("{null} {expected}"),
        Kind::Null => format!("{null} {expected}, or leave the member out to get the default"),
        _ => format!("expected {expected}"),
    };
    InvalidMember { pointer: pointer.to_owned(), detail }
}

pub fn invalid(pointer: &str, detail: &str) -> InvalidMember {
    InvalidMember { pointer: pointer.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leap_second_is_accepted_only_where_utc_may_have_one() {
        for (text, next) in [
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
            ("2012-06-30T23:59:60.5Z", "2012-07-01T00:00:00.500Z"),
            ("2017-01-01T08:59:60+09:00", "2017-01-01T00:00:00Z"),
            ("2016-12-31T18:59:60-05:00", "2017-01-01T00:00:00Z"),
        ] {
            assert_eq!(moment(text), moment(next), "{text}");
            assert!(moment(text).is_some(), "{text}");
        }
        for never in [
            "2030-01-31T12:00:60Z",
            "2030-01-31T23:59:60Z",
            "2016-12-31T22:59:60Z",
            "2016-12-31T23:58:60Z",
            "2016-12-31T23:59:60+01:00",
            "2016-12-30T23:59:60Z",
            "2016-12-31T23:59:61Z",
        ] {
            assert_eq!(moment(never), None, "{never}");
        }
    }
}
