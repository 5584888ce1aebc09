//! Whether a server is fit to be served from: its schema and its durability.

use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use super::failure::Failure;
use super::queries::{self, Condition};

/// The schema, embedded; `sqlx migrate run` applies the same files.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

/// How a database's schema stands to the one that this program was built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    Same,
    /// A later release has migrated it; migrations expand first, so this one can serve.
    Newer,
    /// Migrations are missing, half applied or other than ours.
    Unfit,
}

/// Whether a server takes writes, and whether a commit that it acknowledged survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Durable,
    /// The name of the PostgreSQL setting that is off.
    Lossy(&'static str),
    ReadOnly,
}

/// Compares the migrations that have run with those that are embedded, and looks at the settings that a new session on
/// this server starts with.
pub async fn fitness(connection: &mut PgConnection) -> sqlx::Result<(Schema, Durability)> {
    match queries::condition(connection).await {
        Ok(condition) => Ok((schema_of(&condition), durability_of(&condition))),
        // What is said of its durability does not matter then.
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

/// Makes a database of this name if the server has none. Only for a server that nobody else administers.
pub async fn create_if_missing(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    if !queries::database_exists(connection, name).await? {
        queries::create_database(connection, name).await?;
    }
    Ok(())
}
