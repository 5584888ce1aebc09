//! The content by which a job is unique.

use sha2::{Digest, Sha256};

use super::members::{InvalidMember, invalid, members, required, unexpected};
use crate::json::{InvalidPointer, Kind, Value, resolve};

/// SHA-256 of a job's type, its queue, and the values at the pointers of `unique.by`. Different spellings of the same
/// content have the same digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentDigest([u8; 32]);

/// Limits what is stored with each job.
const POINTERS_MAX: usize = 16;
/// In characters, as in the API contract.
const POINTER_LENGTH_MAX: usize = 256;

/// Parses `{"by": ["/payload/…", …]}`.
///
/// # Errors
/// [`InvalidMember`] for the first pointer that leads out of the payload or is repeated.
pub fn pointers(unique: Value<'_, '_>) -> Result<Vec<String>, InvalidMember> {
    let [by] = members(unique, "/unique", ["by"])?;
    let by = required(by, "/unique/by")?;
    let elements: Vec<_> = by.elements().collect();
    if by.kind() != Kind::Array || elements.is_empty() || elements.len() > POINTERS_MAX {
        return Err(unexpected(by, "/unique/by", "an array of 1 to 16 JSON Pointers"));
    }
    let mut pointers = Vec::new();
    for (position, element) in elements.into_iter().enumerate() {
        let pointer = element.as_str().filter(|pointer| leads_into_payload(pointer));
        let pointer = pointer.ok_or_else(|| {
            invalid(&place(position), "expected a JSON Pointer of at most 256 characters that starts with /payload")
        })?;
        // A pointer into the value of another pointer adds nothing.
        if pointers.iter().any(|known: &String| is_within(known, &pointer) || is_within(&pointer, known)) {
            return Err(invalid(
                &place(position),
                "the pointer leads to the same place as another one, or into it; remove one of them",
            ));
        }
        pointers.push(pointer.into_owned());
    }
    Ok(pointers)
}

fn leads_into_payload(pointer: &str) -> bool {
    let rest = pointer.strip_prefix("/payload");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) && pointer.chars().count() <= POINTER_LENGTH_MAX
}

/// Whether `inner` is the same pointer as `outer`, or leads into its value.
fn is_within(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn place(position: usize) -> String {
    format!("/unique/by/{position}")
}

impl ContentDigest {
    /// The digest of the values at these pointers in a request.
    ///
    /// # Errors
    /// [`InvalidMember`] for the first pointer that is invalid or ambiguous, or if no pointer leads to a value.
    pub fn of(kind: &str, queue: &str, request: Value<'_, '_>, by: &[String]) -> Result<Self, InvalidMember> {
        let mut places = Vec::new();
        for (position, pointer) in by.iter().enumerate() {
            let value = resolve(request, pointer).map_err(|error| {
                let detail = match error {
                    InvalidPointer::Syntax => {
                        "a JSON Pointer may contain ~ only as ~0 or ~1; write ~ as ~0 and / as ~1"
                    }
                    InvalidPointer::Ambiguous => {
                        "the pointer leads through a member that occurs twice; send the member once"
                    }
                };
                invalid(&place(position), detail)
            })?;
            places.push((pointer, value));
        }
        // A missing value is content, too. But without any value, all such jobs would have the same content.
        if places.iter().all(|(_, value)| value.is_none()) {
            return Err(invalid(
                &place(0),
                "none of the pointers leads to a value in this payload; correct the pointers or the payload",
            ));
        }
        // The order of the pointers does not matter.
        places.sort_by_key(|(pointer, _)| *pointer);
        // JSON text, so that different content always has different bytes. A missing value adds nothing.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut hash = Sha256::new();
        hash.update(format!("[{},{}", quoted(kind), quoted(queue)));
        for (pointer, value) in places {
            hash.update(format!(",[{}", quoted(pointer)));
            if let Some(value) = value {
                hash.update(",");
                hash.update(value.canonical());
            }
            hash.update("]");
        }
        hash.update("]");
        Ok(Self(hash.finalize().into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::NewJob;
    use crate::json::Document;

    fn parse(options: &str) -> Result<ContentDigest, InvalidMember> {
        let body = format!(r#"{{"type":"t",{options}}}"#);
        NewJob::parse(Document::parse(body.as_bytes()).unwrap().root()).map(|(_, content)| content.unwrap())
    }

    fn digest(options: &str) -> ContentDigest {
        parse(options).unwrap()
    }

    #[test]
    fn content_is_the_same_in_every_spelling() {
        let first = digest(r#""payload":{"a":1,"b":"é","c":0},"unique":{"by":["/payload/a","/payload/b"]}"#);
        for same in [
            r#""payload":{"c":9,"b":"\u00e9","a":1},"unique":{"by":["/payload/b","/payload/a"]}"#,
            r#""payload":{"a":1,"b":"é"},"unique":{"by":["/payload/a","/payload/b"]},"queue":"default","priority":1"#,
        ] {
            assert_eq!(digest(same), first, "{same}");
        }
        for other in [
            r#""payload":{"a":1.0,"b":"é"},"unique":{"by":["/payload/a","/payload/b"]}"#,
            r#""payload":{"a":1,"b":"é"},"unique":{"by":["/payload/a","/payload/b"]},"queue":"q""#,
            r#""payload":{"a":1,"b":"é"},"unique":{"by":["/payload/a","/payload/b","/payload/d"]}"#,
            r#""payload":{"a":1,"b":"é"},"unique":{"by":["/payload"]}"#,
        ] {
            assert_ne!(digest(other), first, "{other}");
        }
    }

    #[test]
    fn a_missing_value_differs_from_null() {
        let by = r#""unique":{"by":["/payload/a","/payload/b"]}"#;
        let of = |payload: &str| digest(&format!(r#""payload":{payload},{by}"#));
        assert_ne!(of(r#"{"b":1}"#), of(r#"{"a":null,"b":1}"#));
        assert_eq!(of(r#"{"b":1}"#), of(r#"{"b":1,"c":[1]}"#));
    }

    #[test]
    fn at_least_one_pointer_must_lead_to_a_value() {
        for (payload, by) in [
            ("{}", r#"["/payload/a"]"#),
            (r#"{"customer":7}"#, r#"["/payload/custommer"]"#),
            (r#"{"a":{"b":1}}"#, r#"["/payload/a/c","/payload/d"]"#),
            ("[1]", r#"["/payload/1"]"#),
            ("null", r#"["/payload/a"]"#),
        ] {
            let refused = parse(&format!(r#""payload":{payload},"unique":{{"by":{by}}}"#)).unwrap_err();
            assert_eq!(refused.pointer, "/unique/by/0", "{payload} {by}");
        }
        // Null is a value.
        assert!(parse(r#""payload":null,"unique":{"by":["/payload"]}"#).is_ok());
        assert!(parse(r#""payload":{"a":null},"unique":{"by":["/payload/a","/payload/b"]}"#).is_ok());
    }

    #[test]
    fn a_pointer_may_have_256_characters_of_any_size_in_bytes() {
        let longest = format!("/payload/{}", "é".repeat(247));
        assert!(parse(&format!(r#""payload":{{"{}":1}},"unique":{{"by":["{longest}"]}}"#, "é".repeat(247))).is_ok());
    }

    #[test]
    fn an_invalid_pointer_is_refused_and_named() {
        for (by, pointer) in [
            ("{}", "/unique/by"),
            ("[]", "/unique/by"),
            ("[1]", "/unique/by/0"),
            (r#"["payload"]"#, "/unique/by/0"),
            (r#"["/type"]"#, "/unique/by/0"),
            (r#"["/payloads"]"#, "/unique/by/0"),
            (r#"["/payload/a","/payload/~2"]"#, "/unique/by/1"),
            (r#"["/payload/a","/payload/a"]"#, "/unique/by/1"),
            (r#"["/payload/a","/payload/ab","/payload/a/b"]"#, "/unique/by/2"),
            (r#"["/payload/a/b","/payload"]"#, "/unique/by/1"),
            (r#"["/payload/twice"]"#, "/unique/by/0"),
            (&format!(r#"["/payload/{}"]"#, "é".repeat(248)), "/unique/by/0"),
        ] {
            let body = format!(r#""payload":{{"twice":1,"twice":2}},"unique":{{"by":{by}}}"#);
            assert_eq!(parse(&body).unwrap_err().pointer, pointer, "{by}");
        }
    }
}
