//! The text form of times: RFC 3339, UTC, microseconds.
//!
//! Every answer and every log line uses this form.

use std::fmt;

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::{Serialize, Serializer};

/// A time to be printed. chrono parses its format strings anew each time, which costs ten times as much.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp(pub DateTime<Utc>);

const LENGTH: usize = "2026-11-22T07:10:59.123456Z".len();

impl Timestamp {
    fn digits(self) -> [u8; LENGTH] {
        let Self(at) = self;
        let year = u32::try_from(at.year()).unwrap_or(0);
        // Leap seconds do not occur: all times have been stored in PostgreSQL, which does not have them.
        let microsecond = at.timestamp_subsec_micros().min(999_999);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        for (end, width, number) in [
            (4, 4, year),
            (7, 2, at.month()),
            (10, 2, at.day()),
            (13, 2, at.hour()),
            (16, 2, at.minute()),
            (19, 2, at.second()),
            (26, 6, microsecond),
        ] {
            let mut rest = number;
            for digit in text[end - width..end].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        text
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text(&self.digits()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text(&self.digits()))
    }
}

fn text(digits: &[u8]) -> &str {
    std::str::from_utf8(digits).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use chrono::SecondsFormat;

    use super::*;

    #[test]
    fn a_timestamp_has_the_form_of_rfc_3339() {
        let days = (0..3000).map(|n| n * 997 * 86_400 + n * 7919);
        let moments = days.map(|seconds| DateTime::from_timestamp(seconds - 62_135_596_800, 123_456_789).unwrap());
        for at in moments.filter(|at| at.year() <= 9999) {
            assert_eq!(Timestamp(at).to_string(), at.to_rfc3339_opts(SecondsFormat::Micros, true));
        }
        assert_eq!(Timestamp(DateTime::UNIX_EPOCH).to_string(), "1970-01-01T00:00:00.000000Z");
    }
}
