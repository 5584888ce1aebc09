//! The database URL: the only setting that may hold a secret.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// A PostgreSQL URL. Its password is never shown.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(SecretString);

impl DatabaseUrl {
    pub fn new(url: String) -> Self {
        Self(url.into())
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The URL without its secrets.
    fn redacted(&self) -> String {
        let Ok(mut url) = url::Url::parse(self.expose()) else {
            return "(not a URL)".to_owned();
        };
        if url.password().is_some() && url.set_password(Some("hidden")).is_err() {
            return "(hidden)".to_owned();
        }
        if url.query_pairs().any(|(name, _)| name == "password") {
            let pairs: Vec<_> = url.query_pairs().into_owned().filter(|(name, _)| name != "password").collect();
            url.query_pairs_mut().clear().extend_pairs(pairs).append_pair("password", "hidden");
        }
        url.into()
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.redacted())
    }
}
