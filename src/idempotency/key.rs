//! The `Idempotency-Key` header field, as in draft-ietf-httpapi-idempotency-key-header-07, section 2.1.

use std::str::FromStr;

use sfv::{BareItem, Item, Parser};
use thiserror::Error;

/// The longest limit among well-known services that use the field, and far below the limit of a PostgreSQL index entry.
pub const KEY_LENGTH_MAX: usize = 255;

/// An idempotency key: 1 to 255 characters from 0x21 to 0x7E, case-sensitive.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidKey {
    #[error(
        "`Idempotency-Key` header is missing. Send a unique value, for example a UUID, and reuse it when you retry"
    )]
    Missing,
    #[error(
        "the member `idempotency_key` is missing. Send a unique value, for example a UUID, and reuse it when you retry"
    )]
    MissingInItem,
    #[error("`Idempotency-Key` header is sent {0} times. Send it once, with one key")]
    Repeated(usize),
    #[error(
        "the value of `Idempotency-Key` starts with a quotation mark but is not a quoted string (RFC 9651, section \
         3.3.3). Put the whole key in quotation marks, and a backslash before each quotation mark or backslash in it"
    )]
    NotAString,
    #[error("the key is empty. Send 1 to 255 visible ASCII characters, for example a UUID")]
    Empty,
    #[error("the key is longer than 255 characters. Send a shorter one, for example a UUID")]
    TooLong,
    #[error(
        "the key contains a space, a control character or a non-ASCII character. Use only visible ASCII characters \
         (0x21 to 0x7E)"
    )]
    Character,
    #[error("the key contains a comma. Put a key with a comma in quotation marks, or use a key without one")]
    Comma,
}

impl Key {
    /// Parses the key from all lines of the header field.
    ///
    /// A value that begins with a quotation mark is a String of Structured Fields; its parameters are ignored. Any
    /// other value is taken literally, because clients send it so. Both forms of a key are the same key.
    ///
    /// # Errors
    /// [`InvalidKey`] says why the lines are not one valid key.
    pub fn from_header<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Self, InvalidKey> {
        let lines: Vec<&[u8]> = lines.collect();
        match lines[..] {
            [] => Err(InvalidKey::Missing),
            [line] => Self::from_value(line),
            _ => Err(InvalidKey::Repeated(lines.len())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_value(value: &[u8]) -> Result<Self, InvalidKey> {
        let value = trim_optional_white_space(value);
        let key = if value.starts_with(b"\"") {
            let item: Item = Parser::new(value).parse().map_err(|_| InvalidKey::NotAString)?;
            let BareItem::String(string) = item.bare_item else {
                return Err(InvalidKey::NotAString);
            };
            string.as_str().as_bytes().to_vec()
        } else if value.contains(&b',') {
            return Err(InvalidKey::Comma);
        } else {
            value.to_vec()
        };
        Self::check(key)
    }

    fn check(key: Vec<u8>) -> Result<Self, InvalidKey> {
        if key.is_empty() {
            return Err(InvalidKey::Empty);
        }
        if !key.iter().all(u8::is_ascii_graphic) {
            return Err(InvalidKey::Character);
        }
        if key.len() > KEY_LENGTH_MAX {
            return Err(InvalidKey::TooLong);
        }
        Ok(Self(String::from_utf8(key).expect("graphic ASCII is UTF-8")))
    }
}

/// Takes the text literally, for sources that need no quotes: a decoded path segment or a command line.
impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::check(text.as_bytes().to_vec())
    }
}

/// Spaces and tabs around a value are not part of it (RFC 9110, section 5.6.3).
fn trim_optional_white_space(value: &[u8]) -> &[u8] {
    let inner = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let start = value.iter().position(inner).unwrap_or(value.len());
    let end = value.iter().rposition(inner).map_or(start, |last| last + 1);
    &value[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(line: &str) -> Result<String, InvalidKey> {
        Key::from_header(std::iter::once(line.as_bytes())).map(|key| key.0)
    }

    #[test]
    fn the_quoted_and_the_bare_form_are_the_same_key() {
        assert_eq!(key("8e03978e").unwrap(), "8e03978e");
        assert_eq!(key("\"8e03978e\"").unwrap(), "8e03978e");
        assert_eq!(key("\"8e03978e\";q=1; v=\"x\"").unwrap(), "8e03978e");
        assert_eq!(key("  8e03978e\t").unwrap(), "8e03978e");
        assert_eq!(key(r#""a\"b\\c,d""#).unwrap(), r#"a"b\c,d"#);
    }

    #[test]
    fn a_bare_value_is_taken_literally() {
        assert_eq!(key("a;b=c").unwrap(), "a;b=c");
        assert_eq!(key("ab\"c").unwrap(), "ab\"c");
        assert_eq!(key(":YWJj:").unwrap(), ":YWJj:");
    }

    #[test]
    fn a_key_outside_of_a_header_is_taken_literally() {
        let text = |text: &str| text.parse::<Key>().map(|key| key.0);
        assert_eq!(text("\"a,b\\").unwrap(), "\"a,b\\");
        let refused = [("", InvalidKey::Empty), (" a", InvalidKey::Character), ("\u{e9}", InvalidKey::Character)];
        for (bad, error) in refused {
            assert_eq!(text(bad), Err(error));
        }
    }

    #[test]
    fn invalid_keys_are_refused() {
        use InvalidKey::*;
        let long = "k".repeat(KEY_LENGTH_MAX + 1);
        for (line, error) in [
            ("", Empty),
            ("   ", Empty),
            ("\"\"", Empty),
            ("a b", Character),
            ("a\tb", Character),
            ("\"a b\"", Character),
            ("é", Character),
            ("a,b", Comma),
            ("\"a\", \"b\"", NotAString),
            ("\"a", NotAString),
            ("\"a\" b", NotAString),
            ("\"é\"", NotAString),
            (&long, TooLong),
            (&format!("\"{long}\""), TooLong),
        ] {
            assert_eq!(key(line), Err(error), "{line}");
        }
        assert_eq!(Key::from_header(std::iter::empty()), Err(Missing));
        assert_eq!(Key::from_header([&b"a"[..], b"a"].into_iter()), Err(Repeated(2)));
        assert_eq!(key(&long[1..]).unwrap().len(), KEY_LENGTH_MAX);
    }
}
