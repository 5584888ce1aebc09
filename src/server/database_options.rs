//! Parses a PostgreSQL URL, more strictly than sqlx does.

use std::fmt;
use std::fs::File;
use std::net::IpAddr;

use anyhow::{Context, anyhow, bail};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::configuration::variable;

/// The parameters that sqlx knows. It only logs a line for an unknown one, so with `?sslmod=require` it could connect
/// without TLS.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// The parameters that name a file, with all their spellings, and libpq's environment variable for each.
const FILES: [(&[&str], &str); 3] = [
    (&["sslrootcert", "ssl-root-cert", "ssl-ca"], "PGSSLROOTCERT"),
    (&["sslcert", "ssl-cert"], "PGSSLCERT"),
    (&["sslkey", "ssl-key"], "PGSSLKEY"),
];

/// Parses a URL. An error shows only names of parameters and files from it, no secrets.
pub fn parse(url: &str) -> anyhow::Result<PgConnectOptions> {
    let parsed: Url = url.parse().map_err(|error| anyhow!("setting database.url: not a PostgreSQL URL: {error}"))?;
    if !["postgres", "postgresql"].contains(&parsed.scheme()) {
        bail!("setting database.url: it must begin with postgres://");
    }
    let known = |name: &str| PARAMETERS.contains(&name) || (name.starts_with("options[") && name.ends_with(']'));
    if let Some((name, _)) = parsed.query_pairs().find(|(name, _)| !known(name)) {
        let names = PARAMETERS.join(", ");
        bail!("setting database.url: the parameter {name} is unknown; known are {names} and options[NAME]");
    }
    let options: PgConnectOptions =
        url.parse().map_err(|error| anyhow!("setting database.url: not a PostgreSQL URL: {error}"))?;
    let root = check_files(&parsed)?;
    if matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull) && !root {
        bail!(
            "setting database.url: sslmode=verify-ca and verify-full need sslrootcert=FILE, the certificate of the \
             authority that signed the server's certificate"
        );
    }
    Ok(options)
}

/// Checks that the files can be read. Returns whether there is a root certificate.
fn check_files(url: &Url) -> anyhow::Result<bool> {
    let mut root = false;
    for (place, (names, variable_name)) in FILES.into_iter().enumerate() {
        let in_url = url.query_pairs().filter(|(name, _)| names.contains(&&**name)).last();
        let in_environment =
            || variable(variable_name).map(|path| (variable_name.into(), path.to_string_lossy().into_owned().into()));
        let Some((name, path)) = in_url.or_else(in_environment) else { continue };
        // sqlx also accepts the certificate itself in place of a file name.
        if !path.starts_with("-----BEGIN") {
            let opened = File::open(&*path);
            opened.with_context(|| format!("setting database.url: {name} names {path}, which cannot be read"))?;
        }
        root |= place == 0;
    }
    Ok(root)
}

/// The server and database that the options name. Shown without user and password.
pub struct Target<'a>(pub &'a PgConnectOptions);

impl Target<'_> {
    pub fn host(&self) -> String {
        let socket = self.0.get_socket().map(|folder| folder.display().to_string());
        socket.unwrap_or_else(|| self.0.get_host().to_owned())
    }

    pub fn database(&self) -> &str {
        // PostgreSQL's default.
        self.0.get_database().unwrap_or(self.0.get_username())
    }

    /// Whether an attacker in the network could impersonate the server: it is on another machine, and its certificate
    /// is not verified.
    pub fn is_open_to_impostors(&self) -> bool {
        let host = self.host();
        let bare = host.trim_matches(['[', ']']);
        let local =
            host.starts_with('/') || host == "localhost" || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        !local && !matches!(self.0.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull)
    }
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {}, port {}, database {}", self.host(), self.0.get_port(), self.database())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        format!("{:#}", parse(url).unwrap_err())
    }

    #[test]
    fn a_parameter_that_is_unknown_is_refused_by_its_name() {
        let words = refusal("postgres://u:s3cret@h/d?sslmod=require&application_name=a");
        assert!(words.contains("parameter sslmod is unknown"), "{words}");
        assert!(
            words.contains("known are application_name, ") && words.contains(", user and options[NAME]"),
            "{words}"
        );
        assert!(!words.contains("s3cret"), "{words}");
        for url in
            ["postgres://h/d?options[lock_timeout]=1s", "postgres://h/d?sslmode=require&statement-cache-capacity=9"]
        {
            assert!(parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_named() {
        for name in ["sslrootcert", "ssl-root-cert", "sslcert", "sslkey"] {
            let words = refusal(&format!("postgres://h/d?sslmode=verify-full&{name}=/nowhere/ca.pem"));
            assert!(words.contains(&format!("{name} names /nowhere/ca.pem, which cannot be read")), "{words}");
        }
        assert!(refusal("postgres://h/d?sslmode=verify-full").contains("need sslrootcert=FILE"));
    }

    #[test]
    fn only_a_verified_or_a_local_server_is_safe_from_impostors() {
        let open = |url: &str| Target(&parse(url).unwrap()).is_open_to_impostors();
        for url in ["postgres://db.example/d", "postgres://10.0.0.1/d?sslmode=require", "postgres://[2001:db8::1]/d"] {
            assert!(open(url), "{url}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let verified = format!("postgres://db.example/d?sslmode=verify-full&sslrootcert={}", file.path().display());
        for url in ["postgres://localhost/d", "postgres://127.0.0.1/d", "postgres://[::1]/d", "postgres:///d?host=/run"]
            .into_iter()
            .chain([&*verified])
        {
            assert!(!open(url), "{url}");
        }
    }

    #[test]
    fn a_target_is_shown_without_user_and_password() {
        let shown = Target(&parse("postgres://u:s3cret@db.example:5433/jobs").unwrap()).to_string();
        assert_eq!(shown, "host db.example, port 5433, database jobs");
    }
}
