//! `hapax tenant` and `hapax token`: who may call.

use anyhow::bail;
use clap::Subcommand;
use uuid::Uuid;

use super::{block_on, connect, print};
use crate::access::{Scope, Scopes, TenantName, Token, queries};
use crate::configuration::Configuration;

#[derive(Subcommand)]
pub enum TenantCommand {
    /// Make a tenant.
    Create {
        /// 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or a digit first.
        name: TenantName,
    },
    /// List all tenants.
    List,
}

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it, once.
    Create {
        #[arg(long, value_name = "NAME")]
        tenant: TenantName,
        /// Make the tenant if there is none.
        #[arg(long)]
        create_tenant: bool,
        #[arg(long, value_name = "SCOPES", value_delimiter = ',', required = true, help = scopes_help())]
        scope: Vec<Scope>,
    },
    /// List tokens: everything but the tokens themselves.
    List {
        #[arg(long, value_name = "NAME")]
        tenant: Option<TenantName>,
    },
    /// End a token's validity. Servers honour it within access.cache_life.
    Revoke {
        /// As shown by `hapax token list`.
        id: Uuid,
    },
}

pub fn tenant(command: TenantCommand, configuration: &Configuration) -> anyhow::Result<()> {
    block_on(async {
        let mut connection = connect(configuration).await?;
        match command {
            TenantCommand::Create { name } => {
                if !queries::create_tenant(&mut connection, &name).await? {
                    bail!("there is a tenant {} already", name.as_str());
                }
                print(&format!("created tenant {}", name.as_str()))?;
            }
            TenantCommand::List => {
                for tenant in queries::list_tenants(&mut connection).await? {
                    print(&format!("{}  {}  {}", tenant.id, tenant.created_at.format(TIME), tenant.name))?;
                }
            }
        }
        Ok(())
    })
}

pub fn token(command: TokenCommand, configuration: &Configuration) -> anyhow::Result<()> {
    block_on(async {
        let mut connection = connect(configuration).await?;
        match command {
            TokenCommand::Create { tenant, create_tenant, scope } => {
                if create_tenant {
                    queries::create_tenant(&mut connection, &tenant).await?;
                }
                let (token, scopes): (_, Scopes) = (Token::mint(), scope.into_iter().collect());
                let id = queries::create_token(&mut connection, &tenant, &token.digest(), scopes).await?;
                let Some(id) = id else {
                    bail!(
                        "there is no tenant {0}; make it with `hapax tenant create {0}` or --create-tenant",
                        tenant.as_str()
                    );
                };
                // The token alone on standard output, so that a script can keep it.
                if let Err(unread) = print(token.expose()) {
                    queries::revoke_token(&mut connection, id).await?;
                    return Err(unread.context("the token could not be shown, and has been revoked"));
                }
                eprintln!("token {id} of {}, scopes {scopes}; the token itself is shown this once", tenant.as_str());
            }
            TokenCommand::List { tenant } => {
                for token in queries::list_tokens(&mut connection, tenant.as_ref()).await? {
                    let revoked = token.revoked_at.map(|at| format!("  revoked {}", at.format(TIME)));
                    let (created, revoked) = (token.created_at.format(TIME), revoked.unwrap_or_default());
                    let scopes = token.scopes.join(",");
                    print(&format!("{}  {created}  {}  {scopes}{revoked}", token.id, token.tenant_name))?;
                }
            }
            TokenCommand::Revoke { id } => {
                if !queries::revoke_token(&mut connection, id).await? {
                    bail!("there is no token {id}");
                }
                print(&format!("revoked token {id}; servers honour it within access.cache_life"))?;
            }
        }
        Ok(())
    })
}

fn scopes_help() -> String {
    let scopes = Scope::ALL.map(|scope| format!("\n  {:<8}{}", scope.name(), scope.permits()));
    format!("What the token permits; several separated by commas. No scope includes another:{}", scopes.concat())
}

const TIME: &str = "%Y-%m-%dT%H:%M:%SZ";
