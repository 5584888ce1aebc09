//! Tokens and scopes.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// `hpx_` and 256 random bits in hexadecimal. The prefix lets secret scanners find leaked tokens.
pub struct Token(SecretString);

/// The SHA-256 digest of a token, which is stored and looked up. With 256 random bits a slow hash adds nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 32]);

/// One permission of a token. See ADR 0026.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Create jobs.
    Submit,
    /// Change, cancel and delete jobs that exist.
    Manage,
    /// Claim jobs and report their outcomes.
    Work,
    /// Read jobs, queues, claims and keys.
    Read,
}

/// All permissions of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

#[derive(Debug, Error)]
pub enum UnknownScope {
    #[error("unknown scope {0:?}; known are submit, manage, work and read")]
    Unknown(String),
    #[error("scope {0:?} permits nothing in this release; known are submit, manage, work and read")]
    Reserved(String),
}

/// Names reserved for later releases. Tokens from earlier releases may carry them; they permit nothing.
const RESERVED: [&str; 1] = ["admin"];

/// An operator's name for a token: 1 to 128 characters without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenName(String);

#[derive(Debug, PartialEq, Eq, Error)]
#[error("a token's name has 1 to 128 characters, none of them a control character")]
pub struct InvalidTokenName;

impl TokenName {
    const LENGTH_MAX: usize = 128;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for TokenName {
    type Err = InvalidTokenName;

    fn from_str(name: &str) -> Result<Self, InvalidTokenName> {
        let length = name.chars().count();
        let fits = (1..=Self::LENGTH_MAX).contains(&length) && !name.chars().any(char::is_control);
        if fits { Ok(Self(name.to_owned())) } else { Err(InvalidTokenName) }
    }
}

impl Token {
    const PREFIX: &'static str = "hpx_";
    const SECRET_BYTES: usize = 32;

    pub fn mint() -> Self {
        let secret: [u8; Self::SECRET_BYTES] = rand::random();
        Self(format!("{}{}", Self::PREFIX, hex::encode(secret)).into())
    }

    /// Parses a token; `None` if it is malformed, which saves a look-up.
    pub fn parse(text: &str) -> Option<Self> {
        Self::is_well_formed(text).then(|| Self(text.into()))
    }

    fn is_well_formed(text: &str) -> bool {
        let Some(secret) = text.strip_prefix(Self::PREFIX) else { return false };
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        secret.len() == 2 * Self::SECRET_BYTES && secret.bytes().all(hexadecimal)
    }

    pub fn digest(&self) -> TokenDigest {
        TokenDigest(Sha256::digest(self.0.expose_secret()).into())
    }

    /// The plain text, to be shown once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl TokenDigest {
    /// The digest of a token's text; `None` if the text is malformed, as in [`Token::parse`].
    pub fn of(text: &str) -> Option<Self> {
        Token::is_well_formed(text).then(|| Self(Sha256::digest(text).into()))
    }

    /// Reads a stored digest; `None` if it does not have 32 bytes.
    pub(super) fn stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Submit, Self::Manage, Self::Work, Self::Read];

    pub fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Manage => "manage",
            Self::Work => "work",
            Self::Read => "read",
        }
    }

    /// A description for `hapax token create --help`.
    pub fn permits(self) -> &'static str {
        match self {
            Self::Submit => "create jobs: POST /jobs, POST /jobs/batch, PUT /jobs/{id}",
            Self::Manage => {
                "change, cancel, delete and retry jobs: PATCH /jobs/{id}, POST /jobs/{id}/cancel, POST /jobs/{id}/retry, \
                 DELETE /jobs/{id}"
            }
            Self::Work => {
                "claim jobs and report outcomes: PUT /claims/{claim_id}, POST /claims/{claim_id}/heartbeat, POST \
                 /claims/{claim_id}/results, DELETE /claims/{claim_id}"
            }
            Self::Read => "read jobs, queues, claims and keys: GET",
        }
    }
}

impl Scopes {
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    pub fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope)).map(Scope::name)
    }

    /// Reads stored scopes. A scope that this release does not know permits nothing.
    pub fn stored(names: &[String]) -> Self {
        names.iter().filter_map(|name| name.parse::<Scope>().ok()).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | 1 << scope as u8))
    }
}

impl std::str::FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(name: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.name() == name).ok_or_else(|| match RESERVED.contains(&name) {
            true => UnknownScope::Reserved(name.to_owned()),
            false => UnknownScope::Unknown(name.to_owned()),
        })
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_parses_and_a_malformed_one_does_not() {
        let token = Token::mint();
        assert_eq!(Token::parse(token.expose()).map(|token| token.digest().0), Some(token.digest().0));
        assert_eq!(TokenDigest::of(token.expose()).map(|digest| digest.0), Some(token.digest().0));
        let text = token.expose();
        for bad in ["", "hpx_", &text[1..], &text[..text.len() - 1], &format!("{text}0"), &text.to_uppercase()] {
            assert!(Token::parse(bad).is_none() && TokenDigest::of(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn scopes_parse_and_print() {
        let scopes: Scopes = [Scope::Read, Scope::Submit].into_iter().collect();
        assert_eq!(scopes.to_string(), "submit,read");
        assert!(scopes.contains(Scope::Read) && !scopes.contains(Scope::Manage));
        assert_eq!(Scopes::stored(&["submit".into(), "fly".into(), "admin".into(), "read".into()]), scopes);
    }
}
