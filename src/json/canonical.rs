//! The canonical form: the same text for every spelling of a value.
//!
//! Object members sorted by the bytes of their names, no white space, string escapes decoded, numbers as sent. Repeated
//! members keep their order, because readers differ in which one they use.

use super::{Kind, Value};

/// How an object's member enters the canonical form.
pub enum Counted {
    /// In its own canonical form.
    AsSent,
    /// As if this JSON text had been sent.
    As(String),
    /// As if it had been left out.
    Not,
}

impl Value<'_, '_> {
    /// The canonical form.
    pub fn canonical(self) -> String {
        let mut out = Vec::new();
        self.write_canonical(&mut out);
        String::from_utf8(out).expect("it is made of texts")
    }

    /// Appends the canonical form to `out`.
    pub fn write_canonical(self, out: &mut Vec<u8>) {
        match self.kind() {
            Kind::Null | Kind::Boolean | Kind::Number => out.extend_from_slice(self.text().as_bytes()),
            Kind::String => self.write_canonical_string(out),
            Kind::Array => {
                out.push(b'[');
                for (position, element) in self.elements().enumerate() {
                    if position > 0 {
                        out.push(b',');
                    }
                    element.write_canonical(out);
                }
                out.push(b']');
            }
            Kind::Object => self.write_canonical_object(out, |_, _| Counted::AsSent),
        }
    }

    /// The canonical form of an object, where `count` replaces or drops members. Repeated members are always kept. A
    /// value that is not an object has its usual form.
    pub fn canonical_where(self, count: impl Fn(&str, Self) -> Counted) -> Vec<u8> {
        // The canonical form is rarely longer.
        let mut out = Vec::with_capacity(self.text().len());
        match self.kind() {
            Kind::Object => self.write_canonical_object(&mut out, count),
            _ => self.write_canonical(&mut out),
        }
        out
    }

    fn write_canonical_object(self, out: &mut Vec<u8>, count: impl Fn(&str, Self) -> Counted) {
        let mut members: Vec<_> = self.named_members().collect();
        members.sort_by(|(a, ..), (b, ..)| a.as_bytes().cmp(b.as_bytes()));
        let is_repeated = |position: usize| {
            let name = &members[position].0;
            let neighbours = [position.checked_sub(1), Some(position + 1)].into_iter().flatten();
            neighbours.filter_map(|neighbour| members.get(neighbour)).any(|(other, ..)| other == name)
        };
        let start = out.len() + 1;
        out.push(b'{');
        for (position, (name, name_value, value)) in members.iter().enumerate() {
            let counted = match count(name, *value) {
                Counted::As(_) | Counted::Not if is_repeated(position) => Counted::AsSent,
                counted => counted,
            };
            if let Counted::Not = counted {
                continue;
            }
            if out.len() > start {
                out.push(b',');
            }
            name_value.write_canonical_string(out);
            out.push(b':');
            match counted {
                Counted::As(text) => out.extend_from_slice(text.as_bytes()),
                _ => value.write_canonical(out),
            }
        }
        out.push(b'}');
    }

    fn write_canonical_string(self, out: &mut Vec<u8>) {
        if !self.node().escaped {
            // The text contains no escapes, and everything that must be escaped already is.
            return out.extend_from_slice(self.text().as_bytes());
        }
        let content = self.as_str().expect("its kind is string");
        serde_json::to_writer(out, &content).expect("writing a string to memory cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Document;
    use super::*;

    fn canonical(text: &str) -> String {
        Document::parse(text.as_bytes()).unwrap().root().canonical()
    }

    #[test]
    fn spelling_does_not_matter() {
        let plain = canonical(r#"{"a":[1,true,null],"b":"é\n/"}"#);
        assert_eq!(plain, r#"{"a":[1,true,null],"b":"é\n/"}"#);
        assert_eq!(canonical("{ \"b\" : \"\\u00e9\\u000a\\/\",\n\"\\u0061\":[1 ,true, null] }"), plain);
    }

    #[test]
    fn numbers_differ_by_their_text() {
        assert_ne!(canonical("9007199254740993"), canonical("9007199254740992"));
        assert_ne!(canonical("1"), canonical("1.0"));
        assert_ne!(canonical("-0"), canonical("0"));
    }

    #[test]
    fn names_are_sorted_decoded_and_repeated_ones_keep_their_order() {
        assert_eq!(canonical(r#"{"\u0062":1,"a":2}"#), r#"{"a":2,"b":1}"#);
        assert_ne!(canonical(r#"{"a":1,"a":2}"#), canonical(r#"{"a":2,"a":1}"#));
    }

    #[test]
    fn a_member_can_be_replaced_or_dropped_unless_it_is_repeated() {
        let canonical = |text: &str| {
            let document = Document::parse(text.as_bytes()).unwrap();
            let form = document.root().canonical_where(|name, _| match name {
                "a" => Counted::Not,
                "b" => Counted::As("0".to_owned()),
                _ => Counted::AsSent,
            });
            String::from_utf8(form).unwrap()
        };
        assert_eq!(canonical(r#"{"d":{"a":1},"c":2,"b":1,"\u0061":1}"#), r#"{"b":0,"c":2,"d":{"a":1}}"#);
        assert_eq!(canonical(r#"{"a":1,"b":1,"a":1,"b":2}"#), r#"{"a":1,"a":1,"b":1,"b":2}"#);
        assert_eq!((canonical(r#"{"a":1}"#), canonical(r#"["a"]"#)), ("{}".to_owned(), r#"["a"]"#.to_owned()));
    }

    #[test]
    fn structure_cannot_be_forged_with_strings() {
        assert_ne!(canonical(r#"["a","b"]"#), canonical(r#"["a\",\"b"]"#));
        assert_ne!(canonical(r#"["1"]"#), canonical("[1]"));
    }
}
