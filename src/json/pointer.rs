//! JSON Pointers (RFC 6901).

use std::borrow::Cow;

use super::{Kind, Value};

/// Why a pointer does not identify one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidPointer {
    /// It does not begin with a slash, or `~` is not followed by 0 or 1.
    Syntax,
    /// An object on the way has the member more than once.
    Ambiguous,
}

/// The value at `pointer` below `root`; `None` if there is none.
///
/// # Errors
/// [`InvalidPointer`], whether or not a value exists there.
pub fn resolve<'d, 'a>(root: Value<'d, 'a>, pointer: &str) -> Result<Option<Value<'d, 'a>>, InvalidPointer> {
    let mut steps = pointer.split('/');
    if steps.next() != Some("") {
        return Err(InvalidPointer::Syntax);
    }
    let mut place = Some(root);
    for step in steps {
        let step = unescape(step)?;
        place = match place {
            Some(value) => child(value, &step)?,
            None => None,
        };
    }
    Ok(place)
}

/// `pointer` extended by one member's name.
pub fn member_pointer(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn unescape(step: &str) -> Result<Cow<'_, str>, InvalidPointer> {
    if !step.contains('~') {
        return Ok(Cow::Borrowed(step));
    }
    let sound = step.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if sound { Ok(Cow::Owned(step.replace("~1", "/").replace("~0", "~"))) } else { Err(InvalidPointer::Syntax) }
}

fn child<'d, 'a>(value: Value<'d, 'a>, step: &str) -> Result<Option<Value<'d, 'a>>, InvalidPointer> {
    match value.kind() {
        Kind::Object => {
            let mut found = value.members().filter(|(name, _)| name == step).map(|(_, value)| value);
            match (found.next(), found.next()) {
                (_, Some(_)) => Err(InvalidPointer::Ambiguous),
                (first, None) => Ok(first),
            }
        }
        Kind::Array => Ok(position(step).and_then(|position| value.elements().nth(position))),
        _ => Ok(None),
    }
}

/// An array index has no sign and no leading zeros.
fn position(step: &str) -> Option<usize> {
    let plain = step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
    plain.then(|| step.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::Document;
    use super::*;

    #[test]
    fn the_examples_of_the_rfc_resolve() {
        let text = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        let document = Document::parse(text.as_bytes()).unwrap();
        for (pointer, wanted) in [
            ("", text),
            ("/foo", r#"["bar","baz"]"#),
            ("/foo/0", r#""bar""#),
            ("/", "0"),
            ("/a~1b", "1"),
            ("/c%d", "2"),
            ("/e^f", "3"),
            ("/g|h", "4"),
            ("/i\\j", "5"),
            ("/k\"l", "6"),
            ("/ ", "7"),
            ("/m~0n", "8"),
        ] {
            assert_eq!(resolve(document.root(), pointer).unwrap().map(Value::text), Some(wanted), "{pointer}");
        }
        for nothing in ["/foo/2", "/foo/-", "/foo/00", "/foo/+1", "/foo/0/x", "/bar/baz"] {
            assert_eq!(resolve(document.root(), nothing).unwrap().map(Value::text), None, "{nothing}");
        }
    }

    #[test]
    fn invalid_and_ambiguous_pointers_are_errors() {
        let document = Document::parse(br#"{"a":1,"a":2}"#).unwrap();
        for (pointer, error) in [
            ("a", InvalidPointer::Syntax),
            ("/~", InvalidPointer::Syntax),
            ("/x/y/~2", InvalidPointer::Syntax),
            ("/a", InvalidPointer::Ambiguous),
        ] {
            assert_eq!(resolve(document.root(), pointer).map(|value| value.map(Value::text)), Err(error), "{pointer}");
        }
    }
}
