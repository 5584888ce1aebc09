//! Checks of the database: its schema and its durability.

use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use super::failure::Failure;
use super::queries::{self, Condition};

/// The embedded migrations. `sqlx migrate run` applies the same files.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

/// The database's schema, compared with the embedded migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    Same,
    /// Migrated by a later release. Migrations expand first, so this release can still serve.
    Newer,
    /// Migrations are missing, half applied or different.
    Unfit,
}

/// Whether a server accepts writes, and whether an acknowledged commit survives a power failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Durable,
    /// The PostgreSQL setting that is off.
    Lossy(&'static str),
    ReadOnly,
}

/// Compares the applied migrations with the embedded ones, and checks the settings of a new session.
pub async fn fitness(connection: &mut PgConnection) -> sqlx::Result<(Schema, Durability)> {
    match queries::condition(connection).await {
        Ok(condition) => Ok((schema_of(&condition), durability_of(&condition))),
        // With an unfit schema, the durability does not matter.
        Err(error) if Failure::of(&error) == Failure::Unfit => Ok((Schema::Unfit, Durability::Durable)),
        Err(error) => Err(error),
    }
}

fn schema_of(condition: &Condition) -> Schema {
    let Condition { versions, successes, checksums, .. } = condition;
    let applied: Vec<_> = versions.iter().zip(successes).zip(checksums).collect();
    let known: Vec<_> = MIGRATIONS.iter().filter(|migration| !migration.migration_type.is_down_migration()).collect();
    let fits = known.iter().all(|migration| {
        applied.iter().any(|((version, success), checksum)| {
            **version == migration.version && **success && checksum[..] == *migration.checksum
        })
    });
    match (fits, applied.len() > known.len()) {
        (false, _) => Schema::Unfit,
        (true, false) => Schema::Same,
        (true, true) => Schema::Newer,
    }
}

fn durability_of(condition: &Condition) -> Durability {
    match condition {
        Condition { read_only: true, .. } => Durability::ReadOnly,
        Condition { fsync: false, .. } => Durability::Lossy("fsync"),
        Condition { synchronous_commit: false, .. } => Durability::Lossy("synchronous_commit"),
        _ => Durability::Durable,
    }
}

/// Creates a database of this name if it does not exist. Only for a server that Hapax administers itself.
pub async fn create_if_missing(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    if !queries::database_exists(connection, name).await? {
        queries::create_database(connection, name).await?;
    }
    Ok(())
}
