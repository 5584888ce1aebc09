//! JSON text, kept exactly as sent.
//!
//! Owns the scanner (RFC 8259, and stricter where PostgreSQL is), the canonical form for fingerprints, the differences
//! between two texts, and JSON Pointers. It never converts numbers: 9007199254740993 stays as sent. `serde_json::Value`
//! and RFC 8785 would change it.

mod canonical;
mod difference;
mod pointer;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod scanner;

pub use canonical::Counted;
pub use difference::{DIFFERENCES_MAX, differences};
pub use pointer::{InvalidPointer, member_pointer, resolve};
pub use scanner::InvalidJson;

use std::borrow::Cow;

/// A scanned text. Values are positions in the text; nothing is converted or copied.
#[derive(Debug)]
pub struct Document<'a> {
    text: &'a str,
    nodes: Vec<Node>,
}

/// One value of a [`Document`].
#[derive(Clone, Copy, Debug)]
pub struct Value<'d, 'a> {
    document: &'d Document<'a>,
    index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

/// A value's position in the text, and where its subtree ends in the list of nodes. An object's children are its names
/// and values in turn.
#[derive(Debug)]
struct Node {
    kind: Kind,
    escaped: bool,
    start: u32,
    end: u32,
    next: u32,
}

impl<'a> Document<'a> {
    /// Scans a whole text.
    ///
    /// # Errors
    /// [`InvalidJson`] says what is wrong and at which byte.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InvalidJson> {
        scanner::scan(bytes, 0)
    }

    /// Scans an envelope. Each value inside its outermost level may nest as deep as a whole document.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn parse_envelope(bytes: &'a [u8]) -> Result<Self, InvalidJson> {
        scanner::scan(bytes, 1)
    }

    pub fn root(&self) -> Value<'_, 'a> {
        Value { document: self, index: 0 }
    }
}

impl<'d, 'a> Value<'d, 'a> {
    pub fn kind(self) -> Kind {
        self.node().kind
    }

    /// The value as sent, without surrounding white space.
    pub fn text(self) -> &'a str {
        let node = self.node();
        &self.document.text[node.start as usize..node.end as usize]
    }

    /// The decoded content of a string; `None` for any other kind.
    pub fn as_str(self) -> Option<Cow<'a, str>> {
        if self.kind() != Kind::String {
            return None;
        }
        if self.node().escaped {
            let decoded: String = serde_json::from_str(self.text()).expect("the scanner checked this string");
            return Some(Cow::Owned(decoded));
        }
        let quoted = self.text();
        Some(Cow::Borrowed(&quoted[1..quoted.len() - 1]))
    }

    /// An object's names and values, in the order sent; empty for any other kind.
    pub fn members(self) -> impl Iterator<Item = (Cow<'a, str>, Value<'d, 'a>)> {
        self.named_members().map(|(name, _, value)| (name, value))
    }

    /// Like [`Value::members`], but each name also as a value of the text.
    fn named_members(self) -> impl Iterator<Item = (Cow<'a, str>, Value<'d, 'a>, Value<'d, 'a>)> {
        let mut children = self.children_of(Kind::Object);
        std::iter::from_fn(move || {
            let name = children.next()?;
            let value = children.next().expect("a member has a value");
            Some((name.as_str().expect("a member's name is a string"), name, value))
        })
    }

    /// An array's elements; empty for any other kind.
    pub fn elements(self) -> impl Iterator<Item = Value<'d, 'a>> {
        self.children_of(Kind::Array)
    }

    fn children_of(self, kind: Kind) -> impl Iterator<Item = Value<'d, 'a>> {
        let node = self.node();
        let end = if node.kind == kind { node.next as usize } else { 0 };
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            if index >= end {
                return None;
            }
            let child = Value { document: self.document, index };
            index = child.node().next as usize;
            Some(child)
        })
    }

    fn node(self) -> &'d Node {
        &self.document.nodes[self.index]
    }
}
