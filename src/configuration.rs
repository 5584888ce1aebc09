//! Settings: what the operator typed, checked before anything starts.
//!
//! Defaults, then a TOML file, then the environment (`HAPAX__SECTION__NAME`, and `DATABASE_URL`), then the command
//! line. Nothing else in the program reads the environment.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use config::{Config, Environment, File, FileFormat};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use crate::telemetry::LogFormat;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Configuration {
    pub server: Server,
    pub database: Database,
    pub intake: Intake,
    pub idempotency: Idempotency,
    pub purge: Purge,
    pub access: Access,
    pub metrics: Metrics,
    pub log: Log,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Where the API listens.
    pub bind: SocketAddr,
    /// HTTP worker threads; 0 means one for each core.
    pub workers: usize,
    /// The largest body taken.
    pub body_limit_bytes: usize,
    /// By when a whole body must have arrived.
    #[serde(with = "humantime_serde")]
    pub body_deadline: Duration,
    /// By when a request whose body has arrived is answered, whatever the database does.
    #[serde(with = "humantime_serde")]
    pub request_deadline: Duration,
    /// Requests worked on at once; one more is answered 503 at once.
    pub requests_in_flight: usize,
    /// How long accepted requests may take to finish when the server is told to stop.
    #[serde(with = "humantime_serde")]
    pub shutdown_deadline: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// The PostgreSQL to serve from. `DATABASE_URL` sets it, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<DatabaseUrl>,
    /// Connections that jobs are read on.
    pub connections: usize,
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub idle_in_transaction_timeout: Duration,
    /// Serve from a PostgreSQL whose fsync or synchronous_commit is off.
    pub allow_losing_acknowledged_jobs: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intake {
    /// Connections that submissions are written on.
    pub connections: usize,
    /// How long a submission waits for another with the same key that is in flight.
    #[serde(with = "humantime_serde")]
    pub lock_wait: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Idempotency {
    /// How long a key and its stored answer live.
    #[serde(with = "humantime_serde")]
    pub time_to_live: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purge {
    /// Between two rounds, give or take a quarter.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Expired keys deleted by one statement.
    pub batch: u32,
    /// Between two statements of one round.
    #[serde(with = "humantime_serde")]
    pub pause: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// How long a verified token is remembered, and so how long a revocation may take.
    #[serde(with = "humantime_serde")]
    pub cache_life: Duration,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Where `/metrics` listens; when not set, on 127.0.0.1 at the API's port plus 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<SocketAddr>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 8080)),
            workers: 0,
            body_limit_bytes: 1024 * 1024,
            body_deadline: Duration::from_secs(10),
            request_deadline: Duration::from_secs(10),
            requests_in_flight: 1000,
            shutdown_deadline: Duration::from_secs(30),
        }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: None,
            connections: 4,
            connect_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(10),
            allow_losing_acknowledged_jobs: false,
        }
    }
}

impl Default for Intake {
    fn default() -> Self {
        Self { connections: 8, lock_wait: Duration::from_secs(2) }
    }
}

impl Default for Idempotency {
    fn default() -> Self {
        Self { time_to_live: Duration::from_secs(24 * 60 * 60) }
    }
}

impl Default for Purge {
    fn default() -> Self {
        Self { interval: Duration::from_secs(60), batch: 5000, pause: Duration::from_millis(100) }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self { cache_life: Duration::from_secs(10) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info,actix_server=warn".to_owned() }
    }
}

/// A PostgreSQL URL, which may hold a password: shown only with that blotted out.
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

/// What the command line says, which counts above all else.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub file: Option<PathBuf>,
    pub bind: Option<SocketAddr>,
    pub database_url: Option<String>,
}

impl Configuration {
    /// Reads all sources and checks the result.
    ///
    /// # Errors
    /// Names the setting that is unknown, cannot be read or makes no sense.
    pub fn load(overrides: &Overrides) -> anyhow::Result<Self> {
        Self::from_sources(overrides, &environment(Path::new(".env"))?)
    }

    fn from_sources(overrides: &Overrides, environment: &HashMap<String, String>) -> anyhow::Result<Self> {
        let mut builder = Config::builder().add_source(Config::try_from(&Self::default())?);
        let named = environment.get("HAPAX_CONFIG").map(PathBuf::from);
        if let Some(path) = overrides.file.as_ref().or(named.as_ref()) {
            let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        let source = Environment::with_prefix("HAPAX")
            .prefix_separator("__")
            .separator("__")
            .ignore_empty(true)
            .try_parsing(true)
            .source(Some(environment.clone()));
        builder = builder.add_source(source);
        let own_url = environment.get("HAPAX__DATABASE__URL").is_some_and(|url| !url.is_empty());
        if let Some(url) = environment.get("DATABASE_URL").filter(|url| !url.is_empty() && !own_url) {
            builder = builder.set_override("database.url", url.clone())?;
        }
        if let Some(bind) = overrides.bind {
            builder = builder.set_override("server.bind", bind.to_string())?;
        }
        if let Some(url) = &overrides.database_url {
            builder = builder.set_override("database.url", url.clone())?;
        }
        let configuration: Self = serde_path_to_error::deserialize(builder.build()?).map_err(|error| {
            let (path, reason) = (error.path().to_string(), error.into_inner());
            anyhow::anyhow!("setting {}: {reason}", if path == "." { "of this name" } else { &path })
        })?;
        configuration.check()?;
        Ok(configuration)
    }

    /// The effective settings as TOML, secrets hidden.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// The database's URL.
    ///
    /// # Errors
    /// When none is set.
    pub fn database_url(&self) -> anyhow::Result<&str> {
        let url = self.database.url.as_ref();
        url.map(DatabaseUrl::expose).context("setting database.url: set it, or DATABASE_URL, to a PostgreSQL URL")
    }

    /// Where metrics are served, and whether that address was asked for by name.
    pub fn metrics_bind(&self) -> (SocketAddr, bool) {
        const DISTANCE: u16 = 1000;
        let port = self.server.bind.port();
        let derived = if port == 0 { 0 } else { port.checked_add(DISTANCE).unwrap_or(port - DISTANCE) };
        let default = SocketAddr::from(([127, 0, 0, 1], derived));
        self.metrics.bind.map_or((default, false), |bind| (bind, true))
    }

    fn check(&self) -> anyhow::Result<()> {
        let (server, database) = (&self.server, &self.database);
        let year = Duration::from_secs(366 * 24 * 60 * 60);
        let millisecond = Duration::from_millis(1);
        let lock_wait = self.intake.lock_wait;
        let rules = [
            (server.workers <= 1024, "server.workers: at most 1024"),
            (
                (1024..=64 * 1024 * 1024).contains(&server.body_limit_bytes),
                "server.body_limit_bytes: from 1024 (1 KiB) to 67108864 (64 MiB)",
            ),
            (server.body_deadline >= millisecond, "server.body_deadline: more than nothing"),
            (server.request_deadline >= millisecond, "server.request_deadline: more than nothing"),
            (server.shutdown_deadline >= Duration::from_secs(1), "server.shutdown_deadline: at least 1s"),
            (server.requests_in_flight >= 1, "server.requests_in_flight: at least 1"),
            ((1..=1000).contains(&database.connections), "database.connections: from 1 to 1000"),
            (database.connect_timeout >= millisecond, "database.connect_timeout: more than nothing"),
            (database.statement_timeout >= millisecond, "database.statement_timeout: more than nothing"),
            (
                database.statement_timeout < server.request_deadline,
                "database.statement_timeout: shorter than server.request_deadline",
            ),
            (
                database.idle_in_transaction_timeout >= millisecond,
                "database.idle_in_transaction_timeout: more than nothing",
            ),
            ((2..=1000).contains(&self.intake.connections), "intake.connections: from 2 to 1000"),
            (lock_wait >= millisecond, "intake.lock_wait: more than nothing"),
            (lock_wait < database.statement_timeout, "intake.lock_wait: shorter than database.statement_timeout"),
            (
                (Duration::from_secs(1)..=year).contains(&self.idempotency.time_to_live),
                "idempotency.time_to_live: from 1s to 366days",
            ),
            (self.purge.interval >= millisecond, "purge.interval: more than nothing"),
            ((1..=100_000).contains(&self.purge.batch), "purge.batch: from 1 to 100000"),
            (self.access.cache_life <= Duration::from_secs(3600), "access.cache_life: at most 1h"),
        ];
        for (holds, rule) in rules {
            if !holds {
                bail!("setting {rule}");
            }
        }
        Ok(())
    }
}

/// The process's environment over that of a `.env` file, if there is one.
fn environment(dotenv: &Path) -> anyhow::Result<HashMap<String, String>> {
    let mut environment = HashMap::new();
    if dotenv.exists() {
        let entries =
            dotenvy::from_path_iter(dotenv).with_context(|| format!("{} cannot be read", dotenv.display()))?;
        for entry in entries {
            environment.extend([entry.with_context(|| format!("{} cannot be read", dotenv.display()))?]);
        }
    }
    environment.extend(
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    );
    Ok(environment)
}

/// A variable of the environment that is not a setting of the service: where tools are, what a terminal can do.
pub fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(environment: &[(&str, &str)]) -> anyhow::Result<Configuration> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Configuration::from_sources(&Overrides::default(), &environment)
    }

    #[test]
    fn the_environment_counts_above_the_defaults() {
        let configuration = load(&[
            ("HAPAX__SERVER__BIND", "0.0.0.0:9"),
            ("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "90m"),
            ("HAPAX__SERVER__WORKERS", ""),
            ("DATABASE_URL", "postgres://a:secret@b/c"),
        ]);
        let configuration = configuration.unwrap();
        assert_eq!(configuration.server.bind.port(), 9);
        assert_eq!(configuration.idempotency.time_to_live, Duration::from_secs(5400));
        assert_eq!(configuration.database_url().unwrap(), "postgres://a:secret@b/c");
        let shown = configuration.to_toml().unwrap();
        assert!(!shown.contains("secret") && shown.contains("postgres://a:hidden@b/c"), "{shown}");
    }

    #[test]
    fn hapax_s_own_url_counts_above_the_common_one() {
        let both = load(&[("DATABASE_URL", "postgres://a/b"), ("HAPAX__DATABASE__URL", "postgres://c/d")]);
        assert_eq!(both.unwrap().database_url().unwrap(), "postgres://c/d");
    }

    #[test]
    fn an_error_names_the_setting() {
        for (name, value, expected) in [
            ("HAPAX__SERVER__BNID", "0.0.0.0:1", "server.bnid"),
            ("HAPAX__SEVRER__BIND", "0.0.0.0:1", "sevrer"),
            ("HAPAX__SERVER__BIND", "here", "server.bind"),
            ("HAPAX__SERVER__WORKERS", "-1", "server.workers"),
            ("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "a day", "idempotency.time_to_live"),
            ("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "0s", "idempotency.time_to_live"),
            ("HAPAX__INTAKE__LOCK_WAIT", "0s", "intake.lock_wait"),
            ("HAPAX__INTAKE__LOCK_WAIT", "1h", "intake.lock_wait"),
            ("HAPAX__LOG__FORMAT", "xml", "log.format"),
            ("HAPAX__PURGE__BATCH", "0", "purge.batch"),
        ] {
            let error = load(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}={value}: {error}");
        }
    }

    #[test]
    fn the_example_shows_every_setting_with_its_default() {
        let example = include_str!("../.env.example");
        let shown: HashMap<String, String> = example
            .lines()
            .filter_map(|line| line.trim_start_matches("# ").split_once('='))
            .filter(|(name, _)| name.starts_with("HAPAX__"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let as_value = |configuration: &Configuration| serde_json::to_value(configuration).unwrap();
        let defaults = as_value(&Configuration::default());
        for (section, settings) in defaults.as_object().unwrap() {
            for name in settings.as_object().unwrap().keys() {
                let variable = format!("HAPAX__{}__{}", section.to_uppercase(), name.to_uppercase());
                assert!(shown.contains_key(&variable), "{variable} is missing");
            }
        }
        let unset = ["HAPAX__DATABASE__URL", "HAPAX__METRICS__BIND"];
        assert!(unset.iter().all(|name| shown.contains_key(*name)));
        let pairs: Vec<_> = shown.iter().filter(|(name, _)| !unset.contains(&name.as_str())).collect();
        let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(as_value(&load(&pairs).unwrap()), defaults);
    }
}
