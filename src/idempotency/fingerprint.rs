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

    pub fn into_bytes(self) -> [u8; 32] {
        self.0
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What holds for every pair of texts. Unit tests check it on generated texts, and a fuzz target on mutated ones.
#[cfg(any(test, fuzzing))]
pub mod properties {
    use sha2::{Digest, Sha256};

    use super::Fingerprint;
    use crate::json::Document;
    use crate::json::properties::{Choices, Model, hold_for_pair};

    /// Two texts have one fingerprint if they are the same value, in every spelling, and only then. `differences` names
    /// the places.
    ///
    /// # Panics
    /// If that does not hold.
    pub fn hold_for_texts(first: &[u8], second: &[u8], choices: &[u8]) {
        let mut choices = Choices::new(choices);
        let models = [first, second].map(Model::of);
        for (text, model) in [first, second].into_iter().zip(&models) {
            let Some(model) = model else { continue };
            assert_eq!(of(text).as_bytes(), &Sha256::digest(format!("/jobs\n{}", model.canonical()))[..]);
            let respelled = model.respelled(&mut choices);
            assert_eq!(of(respelled.as_bytes()), of(text), "{respelled}");
        }
        if let [Some(one), Some(other)] = &models {
            assert_eq!(of(first) == of(second), one == other);
            hold_for_pair(&document(first), &document(second));
        }
    }

    fn of(text: &[u8]) -> Fingerprint {
        Fingerprint::of("/jobs", document(text).root().canonical())
    }

    fn document(text: &[u8]) -> Document<'_> {
        Document::parse(text).expect("serde_json accepts it, within the limits")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::properties::hold_for_texts;
    use super::*;
    use crate::json::Document;
    use crate::json::properties::Choices;
    use crate::json::properties::tests::{any_model, two_texts};

    #[test]
    fn the_path_is_part_of_it() {
        assert_ne!(Fingerprint::of("/jobs", "{}"), Fingerprint::of("/jobs/1/retry", "{}"));
    }

    /// A fixed value, because stored fingerprints outlive a release.
    #[test]
    fn a_fingerprint_never_changes_between_releases() {
        let document = Document::parse(br#"{ "payload" : {"n":1.0,"s":"\u00e9\/"}, "type":"demo" }"#).unwrap();
        let fingerprint = Fingerprint::of("/jobs", document.root().canonical());
        let canonical = "/jobs\n{\"payload\":{\"n\":1.0,\"s\":\"é/\"},\"type\":\"demo\"}";
        assert_eq!(fingerprint.as_bytes(), &Sha256::digest(canonical)[..]);
    }

    proptest! {
        #[test]
        fn equal_values_and_no_others_have_one_fingerprint(
            first in any_model(), second in any_model(), choices in prop::collection::vec(any::<u8>(), 0..32)
        ) {
            let [first, second] = [first, second].map(|model| model.respelled(&mut Choices::new(&choices)));
            hold_for_texts(first.as_bytes(), second.as_bytes(), &choices);
        }

        #[test]
        fn almost_equal_texts_are_told_apart((first, second) in two_texts()) {
            hold_for_texts(first.as_bytes(), second.as_bytes(), first.as_bytes());
        }
    }

    /// The fuzz target starts from these pairs. They contain the published vectors.
    #[test]
    fn the_properties_hold_for_the_seeds_of_the_fuzz_target() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/fingerprint");
        let seeds = std::fs::read_dir(folder).unwrap().map(|seed| std::fs::read(seed.unwrap().path()).unwrap());
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = seeds
            .map(|seed| {
                let separator = seed.iter().position(|byte| *byte == 0xff).unwrap();
                (seed[..separator].to_vec(), seed[separator + 1..].to_vec())
            })
            .collect();
        pairs.iter().for_each(|(first, second)| hold_for_texts(first, second, first));
        let published: serde_json::Value =
            serde_json::from_str(include_str!("../../api-design/fingerprints.json")).unwrap();
        for vector in published["vectors"].as_array().unwrap() {
            let body = vector["body"].as_str().unwrap().as_bytes();
            assert!(pairs.iter().any(|(first, _)| first == body), "no seed for: {}", vector["rule"]);
        }
    }
}
