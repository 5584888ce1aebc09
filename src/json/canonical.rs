//! The canonical form: one text for every spelling of one value.
//!
//! Object members sorted by the bytes of their names, white space gone, string escapes decoded, numbers by their
//! literal text. Members of one name keep their order, for which of them counts is the reader's business.

use super::{Kind, Value};

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
            Kind::Object => {
                let mut members: Vec<_> = self.named_members().collect();
                members.sort_by(|(a, ..), (b, ..)| a.as_bytes().cmp(b.as_bytes()));
                out.push(b'{');
                for (position, (_, name, value)) in members.into_iter().enumerate() {
                    if position > 0 {
                        out.push(b',');
                    }
                    name.write_canonical_string(out);
                    out.push(b':');
                    value.write_canonical(out);
                }
                out.push(b'}');
            }
        }
    }

    fn write_canonical_string(self, out: &mut Vec<u8>) {
        if !self.node().escaped {
            // Nothing in it may be escaped but what must be, which would have been.
            return out.extend_from_slice(self.text().as_bytes());
        }
        let content = self.as_str().expect("its kind is string");
        serde_json::to_writer(out, &content).expect("writing a string to memory cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Document;

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
    fn structure_cannot_be_forged_with_strings() {
        assert_ne!(canonical(r#"["a","b"]"#), canonical(r#"["a\",\"b"]"#));
        assert_ne!(canonical(r#"["1"]"#), canonical("[1]"));
    }
}
