//! `hapax migrate`

use std::time::Duration;

use super::{block_on, print};
use crate::configuration::Configuration;
use crate::database::{self, LockWait, Schema};
use crate::server;

pub fn run(configuration: &Configuration) -> anyhow::Result<()> {
    block_on(async {
        let tell = |wait: &LockWait| eprintln!("hapax: {wait}");
        match migrate(configuration, tell).await? {
            (0, Schema::Newer) => print("nothing to do: the schema is newer than this release")?,
            (0, _) => print("nothing to do: the schema is up to date")?,
            (1, _) => print("applied 1 migration")?,
            (applied, _) => print(&format!("applied {applied} migrations"))?,
        }
        Ok(())
    })
}

/// Applies the missing migrations and returns their number.
pub async fn migrate(configuration: &Configuration, tell: impl Fn(&LockWait)) -> anyhow::Result<(usize, Schema)> {
    let mut configuration = configuration.clone();
    // A migration may run longer than a request's statement, but must not wait long for a lock.
    configuration.database.statement_timeout = Duration::ZERO;
    configuration.intake.lock_wait = database::MIGRATION_LOCK_TIMEOUT;
    let settings = server::database_settings(&configuration)?;
    // The migration holds a lock across statements. A pooler could leave that lock behind on one of its sessions.
    let mut connection = server::connect_directly(&settings).await?;
    let applied = database::migrate(&mut connection, &settings, tell).await?;
    let (schema, _) = database::fitness(&mut connection).await?;
    Ok((applied, schema))
}
