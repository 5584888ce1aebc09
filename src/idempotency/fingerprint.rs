//! The fingerprint of a request.

use sha2::{Digest, Sha256};

/// SHA-256 over the path and the canonical form of the body. Equal requests have equal fingerprints, whatever their
/// spelling, headers and transfer framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(path: &str, canonical: impl AsRef<[u8]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(path);
        hash.update(b"\n");
        hash.update(canonical);
        Self(hash.finalize().into())
    }

    /// Reads a stored fingerprint; `None` if it is not 32 bytes.
    pub fn stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;
    use crate::json::Document;

    fn of(text: &str) -> Fingerprint {
        Fingerprint::of("/jobs", Document::parse(text.as_bytes()).unwrap().root().canonical())
    }

    #[test]
    fn the_path_is_part_of_it() {
        assert_ne!(Fingerprint::of("/jobs", "{}"), Fingerprint::of("/jobs/1/retry", "{}"));
    }

    /// A fixed value, because stored fingerprints outlive a release.
    #[test]
    fn a_fingerprint_never_changes_between_releases() {
        let fingerprint = of(r#"{ "payload" : {"n":1.0,"s":"\u00e9\/"}, "type":"demo" }"#);
        let canonical = "/jobs\n{\"payload\":{\"n\":1.0,\"s\":\"é/\"},\"type\":\"demo\"}";
        assert_eq!(fingerprint.as_bytes(), &Sha256::digest(canonical)[..]);
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            "[a-c\\u{0001}\\n\"\\\\/é]{0,4}".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                prop::collection::btree_map("[a-c\"é]{0,3}", inner, 0..4)
                    .prop_map(|members| Json::Object(members.into_iter().collect())),
            ]
        })
    }

    /// The same value, spelled differently: members reversed, white space everywhere, every character escaped.
    fn respelled(value: &Json) -> String {
        let escaped = |text: &str| {
            let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            format!("\"{units}\"")
        };
        match value {
            Json::String(text) => escaped(text),
            Json::Array(elements) => {
                format!("[ {} ]", elements.iter().map(respelled).collect::<Vec<_>>().join(" ,\n"))
            }
            Json::Object(members) => {
                let members =
                    members.iter().rev().map(|(name, value)| format!("{}\t: {}", escaped(name), respelled(value)));
                format!("{{ {} }}", members.collect::<Vec<_>>().join(" ,\r\n"))
            }
            _ => value.to_string(),
        }
    }

    proptest! {
        #[test]
        fn spelling_changes_nothing(value in any_json()) {
            prop_assert_eq!(of(&value.to_string()), of(&respelled(&value)));
        }

        #[test]
        fn another_value_is_another_request(first in any_json(), second in any_json()) {
            prop_assert_eq!(first == second, of(&first.to_string()) == of(&second.to_string()));
        }
    }
}
