//! Scans the bytes once: grammar, nesting depth, and text that PostgreSQL cannot store.

use std::error::Error;
use std::fmt;

use super::{Document, Kind, Node};

/// Deeper nesting is refused, because recursive readers, such as PostgreSQL's own, could overflow their stacks.
const DEPTH_MAX: usize = 64;

/// Typical bytes per value, and the maximum number of nodes to allocate in advance.
const NODE_BYTES: usize = 6;
const NODES_EXPECTED_MAX: usize = 256;

/// Why a text is not JSON that can be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidJson {
    pub reason: &'static str,
    pub offset: usize,
}

/// Only bodies can be empty: the lines of a batch are not, because empty lines are skipped.
const EMPTY: &str = "the body is empty; send a JSON object";
const BYTE_ORDER_MARK: &str =
    "the text starts with a byte order mark (EF BB BF); send it as UTF-8 without the byte order mark";

impl fmt::Display for InvalidJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { reason: EMPTY, .. } => f.write_str(EMPTY),
            Self { reason, offset } => write!(f, "at byte {offset}: {reason}"),
        }
    }
}

impl Error for InvalidJson {}

/// `around`: levels outside of the text that the depth limit applies to.
pub fn scan(bytes: &[u8], around: usize) -> Result<Document<'_>, InvalidJson> {
    let text = std::str::from_utf8(bytes).map_err(|error| InvalidJson {
        reason: "the text is not UTF-8; encode it as UTF-8",
        offset: error.valid_up_to(),
    })?;
    if u32::try_from(text.len()).is_err() {
        return Err(InvalidJson { reason: "the text is larger than 4 GiB; send less", offset: 0 });
    }
    let nodes = Vec::with_capacity((text.len() / NODE_BYTES).min(NODES_EXPECTED_MAX));
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0, depth_max: DEPTH_MAX + around, nodes };
    if scanner.bytes.starts_with("\u{feff}".as_bytes()) {
        return Err(scanner.error(BYTE_ORDER_MARK));
    }
    scanner.white_space();
    if scanner.peek().is_none() {
        return Err(InvalidJson { reason: EMPTY, offset: 0 });
    }
    scanner.value(0)?;
    scanner.white_space();
    if scanner.at < scanner.bytes.len() {
        return Err(scanner.error("text follows the JSON value; send one value only"));
    }
    Ok(Document { text, nodes: scanner.nodes })
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    depth_max: usize,
    nodes: Vec<Node>,
}

impl Scanner<'_> {
    fn value(&mut self, depth: usize) -> Result<(), InvalidJson> {
        match self.peek() {
            Some(b'{') => self.container(depth, Kind::Object),
            Some(b'[') => self.container(depth, Kind::Array),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal(b"true", Kind::Boolean),
            Some(b'f') => self.literal(b"false", Kind::Boolean),
            Some(b'n') => self.literal(b"null", Kind::Null),
            Some(_) => Err(self.error("expected a JSON value")),
            None => Err(self.error("the text ends where a JSON value is expected; send the whole text")),
        }
    }

    fn container(&mut self, depth: usize, kind: Kind) -> Result<(), InvalidJson> {
        if depth == self.depth_max {
            return Err(self.error("the text nests deeper than 64 levels; send a flatter value"));
        }
        let close = if kind == Kind::Object { b'}' } else { b']' };
        let index = self.open(kind);
        self.at += 1;
        self.white_space();
        if self.peek() == Some(close) {
            self.at += 1;
            self.close(index);
            return Ok(());
        }
        loop {
            if kind == Kind::Object {
                self.name()?;
            }
            self.value(depth + 1)?;
            self.white_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(byte) if byte == close => break,
                _ => return Err(self.error("expected a comma or the closing bracket")),
            }
            self.white_space();
        }
        self.at += 1;
        self.close(index);
        Ok(())
    }

    fn name(&mut self) -> Result<(), InvalidJson> {
        if self.peek() != Some(b'"') {
            return Err(self.error("expected the name of a member, in quotation marks"));
        }
        self.string()?;
        self.white_space();
        if self.peek() != Some(b':') {
            return Err(self.error("expected a colon after the name of the member"));
        }
        self.at += 1;
        self.white_space();
        Ok(())
    }

    fn string(&mut self) -> Result<(), InvalidJson> {
        let index = self.open(Kind::String);
        self.at += 1;
        loop {
            let rest = &self.bytes[self.at..];
            let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
            self.at += plain.unwrap_or(rest.len());
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    self.nodes[index].escaped = true;
                    self.escape()?;
                }
                Some(_) => {
                    return Err(self.error("a string contains a control character; escape it, for example as \\n"));
                }
                None => return Err(self.error("the text ends inside a string; send the whole text")),
            }
        }
        self.at += 1;
        self.close(index);
        Ok(())
    }

    fn escape(&mut self) -> Result<(), InvalidJson> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => self.unicode_escape(),
            _ => Err(self.error("a string contains an unknown escape; write a backslash as \\\\")),
        }
    }

    /// Refuses escapes that PostgreSQL text cannot hold: `\u0000` and unpaired surrogates.
    fn unicode_escape(&mut self) -> Result<(), InvalidJson> {
        match self.code_unit(self.at)? {
            0 => Err(self.error("the escape \\u0000 cannot be stored; remove it")),
            0xdc00..=0xdfff => Err(self.error("a low surrogate has no high surrogate before it; send both or neither")),
            0xd800..=0xdbff => {
                let follows = self.bytes.get(self.at + 6..self.at + 8) == Some(b"\\u".as_slice());
                if !follows || !matches!(self.code_unit(self.at + 6)?, 0xdc00..=0xdfff) {
                    return Err(self.error("a high surrogate has no low surrogate after it; send both or neither"));
                }
                self.at += 12;
                Ok(())
            }
            _ => {
                self.at += 6;
                Ok(())
            }
        }
    }

    fn code_unit(&self, backslash: usize) -> Result<u16, InvalidJson> {
        let digits = self.bytes.get(backslash + 2..backslash + 6).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u16::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.error("expected four hexadecimal digits after \\u"))
    }

    fn number(&mut self) -> Result<(), InvalidJson> {
        let index = self.open(Kind::Number);
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        self.close(index);
        Ok(())
    }

    fn digits(&mut self) -> Result<(), InvalidJson> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.error("expected a digit"));
        }
        Ok(())
    }

    fn literal(&mut self, word: &[u8], kind: Kind) -> Result<(), InvalidJson> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(self.error("expected a JSON value"));
        }
        let index = self.open(kind);
        self.at += word.len();
        self.close(index);
        Ok(())
    }

    fn white_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn open(&mut self, kind: Kind) -> usize {
        let start = offset(self.at);
        self.nodes.push(Node { kind, escaped: false, start, end: start, next: 0 });
        self.nodes.len() - 1
    }

    fn close(&mut self, index: usize) {
        let next = offset(self.nodes.len());
        self.nodes[index].end = offset(self.at);
        self.nodes[index].next = next;
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn error(&self, reason: &'static str) -> InvalidJson {
        InvalidJson { reason, offset: self.at }
    }
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("a text of under 4 GiB has no larger offset")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_postgresql_cannot_store_is_refused_with_its_offset() {
        for (text, reason, offset) in [
            (r#"{"a":"x\u0000"}"#, "the escape \\u0000 cannot be stored; remove it", 7),
            (r#"["\ud800"]"#, "a high surrogate has no low surrogate after it; send both or neither", 2),
            (r#"["\ud800\u0041"]"#, "a high surrogate has no low surrogate after it; send both or neither", 2),
            (r#"["\udc00"]"#, "a low surrogate has no high surrogate before it; send both or neither", 2),
            ("[1,]", "expected a JSON value", 3),
            ("{} x", "text follows the JSON value; send one value only", 3),
            ("\u{feff}{}", BYTE_ORDER_MARK, 0),
            ("", EMPTY, 0),
            (" \n", EMPTY, 0),
        ] {
            assert_eq!(scan(text.as_bytes(), 0).unwrap_err(), InvalidJson { reason, offset }, "{text}");
        }
        assert_eq!(scan(b"\"\xff\"", 0).unwrap_err().reason, "the text is not UTF-8; encode it as UTF-8");
    }

    #[test]
    fn nesting_is_bounded_at_64_levels() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(scan(nested(64).as_bytes(), 0).is_ok());
        assert!(scan(nested(65).as_bytes(), 0).is_err());
        assert!(scan(nested(65).as_bytes(), 1).is_ok() && scan(nested(66).as_bytes(), 1).is_err());
        assert!(scan("[".repeat(20_000).as_bytes(), 0).is_err());
    }

    #[test]
    fn numbers_are_kept_as_sent() {
        for number in ["0", "-0", "1.0", "1e400000", "9007199254740993", "1E-2"] {
            let document = scan(number.as_bytes(), 0).unwrap();
            assert_eq!(document.root().text(), number);
        }
        for bad in ["01", "+1", "1.", ".5", "1e", "-", "0x1", "NaN", "Infinity"] {
            assert!(scan(bad.as_bytes(), 0).is_err(), "{bad}");
        }
    }
}
