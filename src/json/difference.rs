//! The places where two texts differ, as JSON Pointers (RFC 6901), without the values.

use super::{Kind, Value, member_pointer};

/// More differences than a person reads.
pub const DIFFERENCES_MAX: usize = 20;

/// A longer pointer is cut back to its parent, because a member's name may be as long as the body.
const POINTER_LENGTH_MAX: usize = 256;

/// Appends the pointers, below `pointer`, where `first` and `second` differ, until `found` has [`DIFFERENCES_MAX`].
pub fn differences(first: Value<'_, '_>, second: Value<'_, '_>, pointer: &str, found: &mut Vec<String>) {
    if found.len() >= DIFFERENCES_MAX {
        return;
    }
    match (first.kind(), second.kind()) {
        (Kind::Object, Kind::Object) => object_differences(first, second, pointer, found),
        (Kind::Array, Kind::Array) => array_differences(first, second, pointer, found),
        _ if same(first, second) => {}
        _ => note(pointer, found),
    }
}

fn object_differences(first: Value<'_, '_>, second: Value<'_, '_>, pointer: &str, found: &mut Vec<String>) {
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) = (first.members().collect(), second.members().collect());
    ours.sort_by(|(a, _), (b, _)| a.cmp(b));
    theirs.sort_by(|(a, _), (b, _)| a.cmp(b));
    let repeats = |members: &[(_, _)]| members.windows(2).any(|pair| pair[0].0 == pair[1].0);
    if repeats(&ours) || repeats(&theirs) {
        // A pointer cannot distinguish two members of one name.
        if !same(first, second) {
            note(pointer, found);
        }
        return;
    }
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    while found.len() < DIFFERENCES_MAX {
        let order = match (ours.peek(), theirs.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        match order {
            std::cmp::Ordering::Equal => {
                if let (Some((name, a)), Some((_, b))) = (ours.next(), theirs.next()) {
                    descend(a, b, pointer, &name, found);
                }
            }
            std::cmp::Ordering::Less => note_child(pointer, ours.next().map(|(name, _)| name), found),
            std::cmp::Ordering::Greater => note_child(pointer, theirs.next().map(|(name, _)| name), found),
        }
    }
}

fn array_differences(first: Value<'_, '_>, second: Value<'_, '_>, pointer: &str, found: &mut Vec<String>) {
    let (mut ours, mut theirs) = (first.elements(), second.elements());
    let mut position = 0_usize;
    while found.len() < DIFFERENCES_MAX {
        match (ours.next(), theirs.next()) {
            (None, None) => return,
            (Some(a), Some(b)) => descend(a, b, pointer, &position.to_string(), found),
            _ => note_child(pointer, Some(position.to_string().into()), found),
        }
        position += 1;
    }
}

fn descend(a: Value<'_, '_>, b: Value<'_, '_>, pointer: &str, name: &str, found: &mut Vec<String>) {
    let child = member_pointer(pointer, name);
    if child.len() <= POINTER_LENGTH_MAX {
        differences(a, b, &child, found);
    } else if !same(a, b) {
        note(pointer, found);
    }
}

fn note_child(pointer: &str, name: Option<std::borrow::Cow<'_, str>>, found: &mut Vec<String>) {
    let Some(name) = name else { return };
    let child = member_pointer(pointer, &name);
    note(if child.len() <= POINTER_LENGTH_MAX { &child } else { pointer }, found);
}

fn note(pointer: &str, found: &mut Vec<String>) {
    // Several members whose pointers are too long have one parent.
    if found.len() < DIFFERENCES_MAX && !found.iter().any(|known| known == pointer) {
        found.push(pointer.to_owned());
    }
}

fn same(first: Value<'_, '_>, second: Value<'_, '_>) -> bool {
    if first.text() == second.text() {
        return true;
    }
    first.canonical() == second.canonical()
}

#[cfg(test)]
mod tests {
    use super::super::Document;
    use super::*;

    fn between(first: &str, second: &str) -> Vec<String> {
        let first = Document::parse(first.as_bytes()).unwrap();
        let second = Document::parse(second.as_bytes()).unwrap();
        let mut found = Vec::new();
        differences(first.root(), second.root(), "", &mut found);
        found
    }

    #[test]
    fn the_differing_places_are_named() {
        assert_eq!(
            between(r#"{"a":1,"b":{"c":[1,2]}}"#, r#"{"b":{"c":[1,3,4]},"d":0}"#),
            ["/a", "/b/c/1", "/b/c/2", "/d"]
        );
        assert_eq!(between(r#"{"a/b":1,"c~d":1}"#, r#"{"a/b":2,"c~d":2}"#), ["/a~1b", "/c~0d"]);
        assert_eq!(between("1", "1.0"), [""]);
        assert_eq!(between(r#"{"a":"\u0041"}"#, r#"{ "a" : "A" }"#), [""; 0]);
    }

    #[test]
    fn their_number_and_length_are_bounded() {
        let many = |value: &str| format!("[{}]", vec![value; 100].join(","));
        assert_eq!(between(&many("1"), &many("2")).len(), DIFFERENCES_MAX);
        let long = "x".repeat(10_000);
        assert_eq!(between(&format!(r#"{{"a":{{"{long}":1}}}}"#), r#"{"a":{}}"#), ["/a"]);
        let members = |value: u8| format!(r#"{{"a{long}":{value},"b":{value},"c{long}":{value}}}"#);
        assert_eq!(between(&members(1), &members(2)), ["", "/b"]);
    }

    #[test]
    fn members_of_one_name_point_at_their_object() {
        assert_eq!(between(r#"{"o":{"a":1,"a":2}}"#, r#"{"o":{"a":2,"a":1}}"#), ["/o"]);
    }
}
