//! What holds for every text and every pair of texts. Unit tests check it on generated texts, and the fuzz targets of
//! `fuzz/` on mutated ones.
//!
//! serde_json is the oracle. A [`Model`] is the value of a text as serde_json reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{DIFFERENCES_MAX, Document, Value, differences, resolve};

const DEPTH_MAX: usize = 64;

/// The scanner accepts what it must accept and nothing else. The canonical form is the one that the model has, and is
/// its own canonical form.
///
/// # Panics
/// If that does not hold.
pub fn hold_for_text(bytes: &[u8]) {
    let model = Model::of(bytes);
    let document = match Document::parse(bytes) {
        Ok(document) => document,
        Err(error) => {
            assert!(model.is_none(), "refused, although serde_json accepts it: {error}");
            assert!(error.offset <= bytes.len(), "{error}");
            return assert_eq!(Document::parse_envelope(bytes).is_ok(), Model::within(bytes, DEPTH_MAX + 1).is_some());
        }
    };
    let model = model.expect("accepted, so serde_json accepts it, within the limits");
    assert!(Document::parse_envelope(bytes).is_ok(), "an envelope may nest as deep as a document");
    let canonical = document.root().canonical();
    assert_eq!(canonical, model.canonical());
    let again = Document::parse(canonical.as_bytes()).expect("the canonical form is JSON");
    assert_eq!(again.root().canonical(), canonical);
}

/// `differences` is empty for equal values only. Each pointer leads to one place in each text, and the texts differ
/// there. None occurs twice.
///
/// # Panics
/// If that does not hold.
pub fn hold_for_pair(first: &Document<'_>, second: &Document<'_>) {
    let mut found = Vec::new();
    differences(first.root(), second.root(), "", &mut found);
    assert_eq!(found.is_empty(), first.root().canonical() == second.root().canonical());
    assert!(found.len() <= DIFFERENCES_MAX);
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "a pointer occurs twice: {found:?}");
    for pointer in &found {
        let there = |document| resolve_one(document, pointer).map(Value::canonical);
        assert_ne!(there(first), there(second), "{pointer}");
    }
}

fn resolve_one<'d, 'a>(document: &'d Document<'a>, pointer: &str) -> Option<Value<'d, 'a>> {
    resolve(document.root(), pointer).expect("a pointer is well formed and leads to one place")
}

/// A value, read by serde_json. Equal models are equal requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    /// `null`, `true`, `false` or a number, as sent.
    Literal(String),
    String(String),
    Array(Vec<Self>),
    /// Sorted by name. Members of one name are in the order sent.
    Object(Vec<(String, Self)>),
}

impl Model {
    /// What a text must be read as; `None` if it must be refused.
    ///
    /// The scanner refuses what serde_json refuses, and also: nesting of more than 64 levels, lone surrogates, and the
    /// character U+0000. It accepts repeated names and numbers of any size, because it does not interpret them.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        Self::within(bytes, DEPTH_MAX)
    }

    fn within(bytes: &[u8], depth_max: usize) -> Option<Self> {
        let raw: &RawValue = serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()?;
        if depth(raw.get()) > depth_max { None } else { Self::read(raw) }
    }

    fn read(raw: &RawValue) -> Option<Self> {
        match raw.get().bytes().next()? {
            b'{' => {
                let Members(members) = serde_json::from_str(raw.get()).ok()?;
                let read = |(name, value)| Some((storable(name)?, Self::read(value)?));
                Some(Self::object(members.into_iter().map(read).collect::<Option<_>>()?))
            }
            b'[' => {
                let elements: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
                Some(Self::Array(elements.into_iter().map(Self::read).collect::<Option<_>>()?))
            }
            // An error for a lone surrogate.
            b'"' => Some(Self::String(storable(serde_json::from_str(raw.get()).ok()?)?)),
            _ => Some(Self::Literal(raw.get().to_owned())),
        }
    }

    pub fn object(mut members: Vec<(String, Self)>) -> Self {
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self::Object(members)
    }

    /// The canonical form, as serde_json writes it.
    pub fn canonical(&self) -> String {
        match self {
            Self::Literal(text) => text.clone(),
            Self::String(text) => quoted(text),
            Self::Array(elements) => {
                format!("[{}]", elements.iter().map(Self::canonical).collect::<Vec<_>>().join(","))
            }
            Self::Object(members) => {
                let members = members.iter().map(|(name, value)| format!("{}:{}", quoted(name), value.canonical()));
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }
        }
    }

    /// The same value in another spelling: other white space, other escapes, members in another order. Members of one
    /// name keep their order, and numbers their text, because both count.
    pub fn respelled(&self, choices: &mut Choices<'_>) -> String {
        let mut out = String::new();
        self.respell(choices, &mut out);
        out
    }

    fn respell(&self, choices: &mut Choices<'_>, out: &mut String) {
        out.push_str(choices.white_space());
        match self {
            Self::Literal(text) => out.push_str(text),
            Self::String(text) => respell_string(text, choices, out),
            Self::Array(elements) => {
                out.push('[');
                for (position, element) in elements.iter().enumerate() {
                    out.push_str(if position > 0 { "," } else { "" });
                    element.respell(choices, out);
                }
                out.push_str(choices.white_space());
                out.push(']');
            }
            Self::Object(members) => {
                let ranks: BTreeMap<&str, usize> =
                    members.iter().map(|(name, _)| (name.as_str(), choices.below(256))).collect();
                let mut members: Vec<_> = members.iter().collect();
                members.sort_by_key(|(name, _)| ranks[name.as_str()]);
                out.push('{');
                for (position, (name, value)) in members.into_iter().enumerate() {
                    out.push_str(if position > 0 { "," } else { "" });
                    out.push_str(choices.white_space());
                    respell_string(name, choices, out);
                    out.push_str(choices.white_space());
                    out.push(':');
                    value.respell(choices, out);
                }
                out.push_str(choices.white_space());
                out.push('}');
            }
        }
        out.push_str(choices.white_space());
    }
}

/// Choices that depend on the input alone, so that a failure can be repeated.
pub struct Choices<'a> {
    bytes: std::iter::Cycle<std::slice::Iter<'a, u8>>,
}

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.iter().cycle() }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.bytes.next().map_or(0, |byte| usize::from(*byte) % limit)
    }

    fn white_space(&mut self) -> &'static str {
        ["", "", "", " ", "\t", "\n", "\r\n "][self.below(7)]
    }
}

fn respell_string(text: &str, choices: &mut Choices<'_>, out: &mut String) {
    const SHORT: [(char, char); 8] =
        [('"', '"'), ('\\', '\\'), ('/', '/'), ('\u{8}', 'b'), ('\u{c}', 'f'), ('\n', 'n'), ('\r', 'r'), ('\t', 't')];
    out.push('"');
    for character in text.chars() {
        let units = character.encode_utf16(&mut [0; 2]).to_vec();
        let short = SHORT.iter().find(|(escaped, _)| *escaped == character);
        match (choices.below(4), short) {
            (0, _) => out.extend(units.iter().map(|unit| format!("\\u{unit:04x}"))),
            (1, _) => out.extend(units.iter().map(|unit| format!("\\u{unit:04X}"))),
            (2, Some((_, letter))) => out.extend(['\\', *letter]),
            _ => {
                let quoted = quoted(&character.to_string());
                out.push_str(&quoted[1..quoted.len() - 1]);
            }
        }
    }
    out.push('"');
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("writing a string to memory cannot fail")
}

/// PostgreSQL's texts cannot hold U+0000.
fn storable(text: String) -> Option<String> {
    if text.contains('\0') { None } else { Some(text) }
}

/// How deep a valid text nests.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    deepest
}

/// An object's members, repeated names included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = entries.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Values with few names and few strings, so that equal and almost equal ones are common.
    pub fn any_model() -> impl Strategy<Value = Model> {
        const LITERALS: &[&str] = &["null", "true", "false", "0", "-0", "1", "1.0", "1E400", "9007199254740993"];
        let leaf = prop_oneof![
            prop::sample::select(LITERALS).prop_map(|text| Model::Literal(text.to_owned())),
            "[a-c\\u{0001}\\n\"\\\\/é😀]{0,4}".prop_map(Model::String),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Model::Array),
                prop::collection::vec(("[a-c\"~/é]{0,3}", inner), 0..4).prop_map(Model::object),
            ]
        })
    }

    /// A text, and the same text with one character replaced, which often is another value or no JSON.
    pub fn two_texts() -> impl Strategy<Value = (String, String)> {
        let parts = (any_model(), prop::collection::vec(any::<u8>(), 0..16), any::<prop::sample::Index>(), "[ -~]?");
        parts.prop_map(|(model, choices, place, replacement)| {
            let text = model.respelled(&mut Choices::new(&choices));
            let mut characters: Vec<String> = text.chars().map(String::from).collect();
            let place = place.index(characters.len());
            characters[place] = replacement;
            (text, characters.concat())
        })
    }

    proptest! {
        #[test]
        fn they_hold_for_any_characters(text in r#"[\[\]{}",:0-9eE+.\-truefalsn\\u /dD]{0,24}"#) {
            hold_for_text(text.as_bytes());
        }

        #[test]
        fn they_hold_for_texts_that_are_almost_json((text, almost) in two_texts()) {
            hold_for_text(text.as_bytes());
            hold_for_text(almost.as_bytes());
        }
    }

    #[test]
    fn they_hold_at_the_limits() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for levels in [64, 65, 66, 20_000] {
            hold_for_text(nested(levels).as_bytes());
        }
    }

    /// The fuzz targets start from these texts.
    #[test]
    fn they_hold_for_the_seeds_of_the_fuzz_target() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/json");
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|seed| seed.unwrap().path()).collect();
        assert!(seeds.len() > 10, "{seeds:?}");
        seeds.iter().for_each(|seed| hold_for_text(&std::fs::read(seed).unwrap()));
    }
}
