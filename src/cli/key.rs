//! `hapax key show`: shows an idempotency key, as `GET /idempotency-keys/{key}` does.

use anyhow::bail;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;

use super::{block_on, connect, print};
use crate::access::{self, TenantName};
use crate::configuration::Configuration;
use crate::http::{SUBMIT, key_summary, keyed_routes};
use crate::idempotency::{Key, ScopedKey, queries};

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Show an idempotency key: its first request, status, job and expiry, without the stored answer.
    Show {
        #[arg(long, value_name = "NAME")]
        tenant: TenantName,
        /// The method and path that the key was sent to.
        #[arg(long, value_parser = PossibleValuesParser::new(keyed_routes().map(|route| route.0)),
            default_value = SUBMIT.0)]
        route: String,
        /// The key as it was sent, without quotes. Put it after `--` if it begins with a hyphen.
        key: Key,
    },
}

pub fn run(command: KeyCommand, configuration: &Configuration) -> anyhow::Result<()> {
    let KeyCommand::Show { tenant, route, key } = command;
    let route = keyed_routes().find(|known| known.0 == route).expect("clap lets no other through");
    block_on(async {
        let mut connection = connect(configuration).await?;
        let Some(id) = access::queries::find_tenant(&mut connection, &tenant).await? else {
            bail!("there is no tenant {}", tenant.as_str());
        };
        let key = ScopedKey { tenant: id, route, key };
        match queries::find(&mut connection, &key).await?.filter(|stored| stored.is_kept) {
            Some(stored) => print(&serde_json::to_string_pretty(&key_summary(route, &stored.outcome))?),
            None => bail!(
                "{} has no such key on {}: no request was committed under it, or it has expired",
                tenant.as_str(),
                route.0
            ),
        }
    })
}
