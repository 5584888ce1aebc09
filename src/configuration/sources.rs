//! The sources of settings and their precedence.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use config::{Config, Environment, File, FileFormat};

use super::Configuration;

/// What a subcommand contributes: its own defaults (lowest precedence) and its options (highest precedence).
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub defaults: Configuration,
    pub file: Option<PathBuf>,
    pub bind: Option<SocketAddr>,
    pub database_url: Option<String>,
}

impl Configuration {
    /// Reads all sources and checks the result.
    ///
    /// # Errors
    /// Names the setting that is unknown, unreadable or invalid.
    pub fn load(overrides: &Overrides) -> anyhow::Result<Self> {
        Self::from_sources(overrides, &environment(Path::new(".env"))?)
    }

    fn from_sources(overrides: &Overrides, environment: &HashMap<String, String>) -> anyhow::Result<Self> {
        // A variable with one underscore too few must not be ignored silently.
        let slipped =
            |name: &&String| name.starts_with("HAPAX_") && !name.starts_with("HAPAX__") && name.contains("__");
        if let Some(name) = environment.keys().find(slipped) {
            bail!("setting {name}: write it as HAPAX__{}", &name["HAPAX_".len()..]);
        }
        let mut builder = Config::builder().add_source(Config::try_from(&overrides.defaults)?);
        let named = environment.get("HAPAX_CONFIG").filter(|name| !name.is_empty()).map(PathBuf::from);
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
            match expectation(&path) {
                Some(expectation) => anyhow::anyhow!("setting {path}: {expectation}: {reason}"),
                None => anyhow::anyhow!("setting {}: {reason}", if path == "." { "section" } else { &path }),
            }
        })?;
        configuration.check()?;
        Ok(configuration)
    }
}

/// The expected form of a setting, where the type's own error does not name it.
fn expectation(path: &str) -> Option<&'static str> {
    let defaults = serde_json::to_value(Configuration::default()).ok()?;
    let is_duration = || {
        let default = path.split('.').try_fold(&defaults, |value, name| value.get(name));
        default
            .and_then(serde_json::Value::as_str)
            .is_some_and(|text| humantime_serde::re::humantime::parse_duration(text).is_ok())
    };
    match path {
        "log.format" => Some("pretty or json is expected"),
        "database.pooler" => Some("none, session or transaction is expected"),
        _ if path.ends_with(".bind") => Some(ADDRESS_EXPECTED),
        _ if is_duration() => Some("a duration with its unit is expected, such as 5s"),
        _ => None,
    }
}

const ADDRESS_EXPECTED: &str = "an address with its port is expected, such as 127.0.0.1:8080";

/// Parses an address from the command line.
///
/// # Errors
/// Says what is expected.
pub fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| ADDRESS_EXPECTED)
}

/// The process environment. It takes precedence over a `.env` file, if one exists.
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

/// An environment variable that is not a setting, such as the path of a tool or a property of the terminal.
pub fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn load(environment: &[(&str, &str)]) -> anyhow::Result<Configuration> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Configuration::from_sources(&Overrides::default(), &environment)
    }

    #[test]
    fn the_environment_overrides_the_defaults() {
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
    fn hapax_database_url_overrides_database_url() {
        let both = load(&[("DATABASE_URL", "postgres://a/b"), ("HAPAX__DATABASE__URL", "postgres://c/d")]);
        assert_eq!(both.unwrap().database_url().unwrap(), "postgres://c/d");
    }

    #[test]
    fn an_error_names_the_setting() {
        for (name, value, expected) in [
            ("HAPAX__SERVER__BNID", "0.0.0.0:1", "server.bnid"),
            ("HAPAX_SERVER__BIND", "0.0.0.0:1", "write it as HAPAX__SERVER__BIND"),
            ("HAPAX__SEVRER__BIND", "0.0.0.0:1", "sevrer"),
            ("HAPAX__SERVER__BIND", "here", "server.bind: an address with its port is expected"),
            ("HAPAX__METRICS__BIND", "8080", "metrics.bind: an address with its port is expected"),
            ("HAPAX__SERVER__WORKERS", "-1", "server.workers"),
            (
                "HAPAX__SERVER__PUBLIC_URL",
                "api.example.com",
                "server.public_url: \"api.example.com\"; expected an http",
            ),
            ("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "a day", "idempotency.time_to_live"),
            ("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "0s", "idempotency.time_to_live"),
            ("HAPAX__INTAKE__LOCK_WAIT", "0s", "intake.lock_wait"),
            ("HAPAX__INTAKE__LOCK_WAIT", "1h", "intake.lock_wait"),
            ("HAPAX__LOG__FORMAT", "xml", "log.format"),
            ("HAPAX__DATABASE__POOLER", "statement", "database.pooler"),
            ("HAPAX__PURGE__BATCH", "0", "purge.batch"),
        ] {
            let error = load(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}={value}: {error}");
        }
    }

    #[test]
    fn an_invalid_duration_error_asks_for_a_unit() {
        let defaults = serde_json::to_value(Configuration::default()).unwrap();
        let mut durations = 0;
        for (section, settings) in defaults.as_object().unwrap() {
            for (name, default) in settings.as_object().unwrap() {
                let is_duration =
                    |text: &str| text.ends_with(['s', 'm', 'h', 'y']) && text.starts_with(char::is_numeric);
                if default.as_str().is_some_and(is_duration) {
                    let variable = format!("HAPAX__{}__{}", section.to_uppercase(), name.to_uppercase());
                    let error = load(&[(&variable, "5")]).unwrap_err().to_string();
                    assert!(
                        error.contains(&format!("{section}.{name}: a duration")) && error.contains("such as 5s"),
                        "{error}"
                    );
                    durations += 1;
                }
            }
        }
        assert!(durations >= 13, "{durations}");
    }

    #[test]
    fn the_example_shows_every_setting_with_its_default() {
        let example = include_str!("../../.env.example");
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
        let unset = ["HAPAX__DATABASE__URL", "HAPAX__METRICS__BIND", "HAPAX__SERVER__PUBLIC_URL"];
        assert!(unset.iter().all(|name| shown.contains_key(*name)));
        let pairs: Vec<_> = shown.iter().filter(|(name, _)| !unset.contains(&name.as_str())).collect();
        let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(as_value(&load(&pairs).unwrap()), defaults);
    }
}
