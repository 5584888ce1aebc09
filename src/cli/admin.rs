//! `hapax tenant` and `hapax token`: manage tenants and access tokens.

use std::fmt;
use std::time::Duration;

use anyhow::bail;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use humantime_serde::re::humantime;
use uuid::Uuid;

use super::{block_on, connect, print};
use crate::access::queries::{IssuedToken, NewToken, TenantChanges};
use crate::access::{
    KEY_TIME_TO_LIVE, Rate, Scope, Scopes, TENANT_RATE, TenantName, TenantSettings, Token, TokenName, queries,
};
use crate::configuration::Configuration;

#[derive(Subcommand)]
pub enum TenantCommand {
    /// Create a tenant.
    Create {
        /// 1 to 63 characters of a-z, 0-9, '.', '_' and '-'. The first is a letter or a digit.
        name: TenantName,
        #[command(flatten)]
        options: TenantOptions,
    },
    /// List all tenants.
    List,
    /// Change a tenant's settings. Servers apply the change within access.cache_life.
    #[command(mut_group("TenantOptions", |options| options.required(true)))]
    Set {
        name: TenantName,
        #[command(flatten)]
        options: TenantOptions,
    },
}

/// Settings that replace the configured ones for one tenant.
#[derive(Args)]
pub struct TenantOptions {
    /// How long the tenant's new idempotency keys live: from 1s to 366d, for example 30d, or "default" for the setting
    /// idempotency.time_to_live. Existing keys keep their expiry.
    #[arg(long, value_name = "TIME", value_parser = KeyTtl::parse)]
    key_ttl: Option<KeyTtl>,
    /// The requests of each token of the tenant: how many per second, and how many at once, for example 50:100. Or
    /// "unlimited", or "default" for the settings quota.requests_per_second and quota.requests_burst. Each replica
    /// counts for itself.
    #[arg(long, value_name = "PER_SECOND:BURST", value_parser = OwnQuota::parse)]
    requests_quota: Option<OwnQuota>,
    /// The tenant's new jobs, in the same form. Replays do not count.
    #[arg(long, value_name = "PER_SECOND:BURST", value_parser = OwnQuota::parse)]
    creations_quota: Option<OwnQuota>,
    /// The requests with each idempotency key of the tenant, in the same form.
    #[arg(long, value_name = "PER_SECOND:BURST", value_parser = OwnQuota::parse)]
    replays_quota: Option<OwnQuota>,
}

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Create a token and print it. It is never shown again.
    Create {
        #[arg(long, value_name = "NAME")]
        tenant: TenantName,
        /// Create the tenant if it does not exist.
        #[arg(long)]
        create_tenant: bool,
        #[arg(long, value_name = "SCOPES", value_delimiter = ',', required = true, help = scopes_help())]
        scope: Vec<Scope>,
        /// A name for `hapax token list`, for example what the token is used for.
        #[arg(long, value_name = "TEXT")]
        name: Option<TokenName>,
        /// How long the token is valid, for example 90d. Without this option, it is valid until it is revoked.
        #[arg(long, value_name = "TIME", value_parser = life)]
        expires_in: Option<Duration>,
    },
    /// List tokens, without the tokens themselves.
    List {
        #[arg(long, value_name = "NAME")]
        tenant: Option<TenantName>,
    },
    /// Revoke a token. Servers apply the change within access.cache_life.
    Revoke {
        /// The token's id, as `hapax token list` shows it.
        id: Uuid,
    },
}

pub fn tenant(command: TenantCommand, configuration: &Configuration) -> anyhow::Result<()> {
    block_on(async {
        let mut connection = connect(configuration).await?;
        match command {
            TenantCommand::Create { name, options } => {
                if !queries::create_tenant(&mut connection, &name, &options.settings()).await? {
                    bail!("there is a tenant {} already", name.as_str());
                }
                print(&format!("created tenant {}", name.as_str()))?;
            }
            TenantCommand::List => {
                for tenant in queries::list_tenants(&mut connection).await? {
                    let created = tenant.created_at.format(TIME);
                    let settings = TenantOptions::all_of(&tenant.settings).texts().join("  ");
                    print(&format!("{}  {created}  {}  {settings}", tenant.id, tenant.name))?;
                }
            }
            TenantCommand::Set { name, options } => {
                if !queries::change_tenant(&mut connection, &name, &options.changes()).await? {
                    bail!("there is no tenant {0}; create it with `hapax tenant create {0}`", name.as_str());
                }
                print(&format!(
                    "tenant {}: {}; servers apply this within access.cache_life",
                    name.as_str(),
                    options.texts().join(", ")
                ))?;
            }
        }
        Ok(())
    })
}

pub fn token(command: TokenCommand, configuration: &Configuration) -> anyhow::Result<()> {
    block_on(async {
        let mut connection = connect(configuration).await?;
        match command {
            TokenCommand::Create { tenant, create_tenant, scope, name, expires_in } => {
                if create_tenant {
                    queries::create_tenant(&mut connection, &tenant, &TenantSettings::default()).await?;
                }
                let (token, scopes): (_, Scopes) = (Token::mint(), scope.into_iter().collect());
                let new = NewToken { tenant: &tenant, scopes, name: name.as_ref(), life: expires_in };
                let id = queries::create_token(&mut connection, &token.digest(), new).await?;
                let Some(id) = id else {
                    bail!(
                        "there is no tenant {0}; create it with `hapax tenant create {0}` or --create-tenant",
                        tenant.as_str()
                    );
                };
                // Standard output has the token and nothing else, so that a script can store it.
                if let Err(unread) = print(token.expose()) {
                    queries::revoke_token(&mut connection, id).await?;
                    return Err(unread.context("the token could not be printed and is revoked"));
                }
                eprintln!("created token {id} of {}, scopes {scopes}; it is not shown again", tenant.as_str());
            }
            TokenCommand::List { tenant } => {
                for token in queries::list_tokens(&mut connection, tenant.as_ref()).await? {
                    print(&line(&token))?;
                }
            }
            TokenCommand::Revoke { id } => {
                if !queries::revoke_token(&mut connection, id).await? {
                    bail!("there is no token {id}");
                }
                print(&format!("revoked token {id}; servers apply this within access.cache_life"))?;
            }
        }
        Ok(())
    })
}

impl TenantOptions {
    fn all_of(settings: &TenantSettings) -> Self {
        Self {
            key_ttl: Some(KeyTtl(settings.key_time_to_live)),
            requests_quota: Some(OwnQuota(settings.requests)),
            creations_quota: Some(OwnQuota(settings.creations)),
            replays_quota: Some(OwnQuota(settings.replays)),
        }
    }

    /// The settings of a new tenant.
    fn settings(&self) -> TenantSettings {
        TenantSettings {
            key_time_to_live: self.key_ttl.and_then(|time| time.0),
            requests: self.requests_quota.and_then(|quota| quota.0),
            creations: self.creations_quota.and_then(|quota| quota.0),
            replays: self.replays_quota.and_then(|quota| quota.0),
        }
    }

    fn changes(&self) -> TenantChanges {
        TenantChanges {
            key_time_to_live: self.key_ttl.map(|time| time.0),
            requests: self.requests_quota.map(|quota| quota.0),
            creations: self.creations_quota.map(|quota| quota.0),
            replays: self.replays_quota.map(|quota| quota.0),
        }
    }

    /// Each option that is given, as its name and its value.
    fn texts(&self) -> Vec<String> {
        let quota = |name: &str, quota: Option<OwnQuota>| quota.map(|quota| format!("{name}-quota {quota}"));
        let texts = [
            self.key_ttl.map(|time| format!("key-ttl {time}")),
            quota("requests", self.requests_quota),
            quota("creations", self.creations_quota),
            quota("replays", self.replays_quota),
        ];
        texts.into_iter().flatten().collect()
    }
}

/// A token as `hapax token list` shows it: the fields that every token has, then the optional ones.
fn line(token: &IssuedToken) -> String {
    let IssuedToken { id, tenant_name, scopes, .. } = token;
    let at = |what: &str, at: Option<DateTime<Utc>>| at.map(|at| format!("  {what} {}", at.format(TIME)));
    let more = [
        token.name.as_ref().map(|name| format!("  name {name:?}")),
        at(if token.expired { "expired" } else { "expires" }, token.expires_at),
        at("last used", token.last_used_at),
        at("revoked", token.revoked_at),
    ];
    let more: String = more.into_iter().flatten().collect();
    format!("{id}  {}  {tenant_name}  {}{more}", token.created_at.format(TIME), scopes.join(","))
}

/// Parses how long a token is valid.
fn life(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);
    let life = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (Duration::from_secs(1)..=LONGEST).contains(&life) {
        true => Ok(life),
        false => Err("expected a time from 1s to 100 years, for example 90d".to_owned()),
    }
}

/// How long a tenant's idempotency keys live, as an operator writes it. `None` is `default`.
#[derive(Clone, Copy)]
pub struct KeyTtl(Option<Duration>);

impl KeyTtl {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "default" {
            return Ok(Self(None));
        }
        let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
        if !KEY_TIME_TO_LIVE.contains(&time) || time.subsec_nanos() > 0 {
            return Err("whole seconds from 1s to 366d are expected, such as 30d, or default".to_owned());
        }
        Ok(Self(Some(time)))
    }
}

impl fmt::Display for KeyTtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: u64 = 24 * 60 * 60;
        match self.0 {
            Some(time) if time.as_secs() % DAY == 0 => write!(f, "{}d", time.as_secs() / DAY),
            Some(time) => write!(f, "{}", humantime::format_duration(time)),
            None => f.write_str("default"),
        }
    }
}

/// A tenant's own quota, as an operator writes it. `None` is `default`.
#[derive(Clone, Copy)]
pub struct OwnQuota(Option<Rate>);

impl OwnQuota {
    fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number| TENANT_RATE.contains(number));
        let rate = |(per_second, burst)| Some(Rate { per_second: number(per_second)?, burst: number(burst)? });
        match text {
            "default" => Ok(Self(None)),
            "unlimited" => Ok(Self(Some(Rate::UNLIMITED))),
            _ => text.split_once(':').and_then(rate).map(|rate| Self(Some(rate))).ok_or_else(|| {
                "two whole numbers from 1 to 1000000 are expected, PER_SECOND:BURST, such as 50:100; or unlimited; or \
                 default"
                    .to_owned()
            }),
        }
    }
}

impl fmt::Display for OwnQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Rate::UNLIMITED) => f.write_str("unlimited"),
            Some(Rate { per_second, burst }) => write!(f, "{per_second}:{burst}"),
            None => f.write_str("default"),
        }
    }
}

fn scopes_help() -> String {
    let scopes = Scope::ALL.map(|scope| format!("\n  {:<8}{}", scope.name(), scope.permits()));
    format!("What the token permits. Separate scopes with commas. No scope includes another:{}", scopes.concat())
}

const TIME: &str = "%Y-%m-%dT%H:%M:%SZ";
