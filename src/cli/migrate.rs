//! `hapax migrate`

use super::{block_on, print};
use crate::configuration::Configuration;
use crate::database::{self, Schema};
use crate::server;

pub fn run(configuration: &Configuration) -> anyhow::Result<()> {
    block_on(async {
        // A migration may rightly take, and wait, longer than any statement of a request.
        let mut configuration = configuration.clone();
        configuration.database.statement_timeout = std::time::Duration::ZERO;
        configuration.intake.lock_wait = std::time::Duration::ZERO;
        // It holds a lock from statement to statement, which a pooler could leave behind on a session of its own.
        let mut connection = server::connect_directly(&server::database_settings(&configuration)?).await?;
        let applied = database::migrate(&mut connection).await?;
        match (applied, database::schema(&mut connection).await?) {
            (0, Schema::Newer) => print("nothing to do: the schema is newer than this release")?,
            (0, _) => print("nothing to do: the schema is up to date")?,
            (1, _) => print("applied 1 migration")?,
            (applied, _) => print(&format!("applied {applied} migrations"))?,
        }
        Ok(())
    })
}
