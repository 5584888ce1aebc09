//! The public URL of the service.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

/// An `http` or `https` URL without user, query, fragment and trailing slash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PublicUrl(String);

const EXPECTED: &str = "an http or https URL without user, query and fragment, such as https://api.example.com/hapax";

impl PublicUrl {
    fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()))?;
        let is_bare = url.query().is_none() && url.fragment().is_none();
        let is_anonymous = url.username().is_empty() && url.password().is_none();
        (is_bare && is_anonymous).then(|| Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PublicUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?}; expected {EXPECTED}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_url_has_no_trailing_slash_and_can_be_extended_by_a_path() {
        for (text, read) in [
            ("https://api.example.com", "https://api.example.com"),
            ("https://api.example.com/", "https://api.example.com"),
            ("HTTP://API.example.com:8080/a/b//", "http://api.example.com:8080/a/b"),
            ("https://api.example.com/a<\"b>", "https://api.example.com/a%3C%22b%3E"),
        ] {
            assert_eq!(PublicUrl::parse(text).map(|url| url.0).as_deref(), Some(read), "{text}");
        }
        for bad in [
            "",
            "api.example.com",
            "/hapax",
            "ftp://a",
            "https://",
            "https://u@a",
            "https://:p@a",
            "https://a/?",
            "https://a/#",
        ] {
            assert_eq!(PublicUrl::parse(bad), None, "{bad}");
        }
    }
}
