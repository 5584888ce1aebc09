//! Whether a server is fit to be served from: its schema and its durability.

use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use super::queries;

/// The schema, embedded; `sqlx migrate run` applies the same files.
static MIGRATIONS: Migrator = sqlx::migrate!();

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

/// Compares the migrations that have run with those that are embedded.
pub async fn schema(connection: &mut PgConnection) -> sqlx::Result<Schema> {
    let known: Vec<_> = MIGRATIONS.iter().filter(|migration| !migration.migration_type.is_down_migration()).collect();
    let Some(applied) = queries::applied_migrations(connection).await? else {
        return Ok(Schema::Unfit);
    };
    let fits = known.iter().all(|migration| {
        applied.iter().any(|row| row.version == migration.version && row.success && row.checksum == *migration.checksum)
    });
    Ok(match (fits, applied.len() > known.len()) {
        (false, _) => Schema::Unfit,
        (true, false) => Schema::Same,
        (true, true) => Schema::Newer,
    })
}

/// Looks at the settings that a new session on this server starts with.
pub async fn durability(connection: &mut PgConnection) -> sqlx::Result<Durability> {
    let settings = queries::durability_settings(connection).await?;
    Ok(match settings {
        queries::DurabilitySettings { read_only: true, .. } => Durability::ReadOnly,
        queries::DurabilitySettings { fsync: false, .. } => Durability::Lossy("fsync"),
        queries::DurabilitySettings { synchronous_commit: false, .. } => Durability::Lossy("synchronous_commit"),
        _ => Durability::Durable,
    })
}

/// Applies the embedded migrations and says how many were new. Several at once wait for one another; a database that
/// is newer is left as it is.
///
/// # Errors
/// When the database cannot be reached, or holds other migrations under our versions.
pub async fn migrate(connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let before = queries::applied_migrations(connection).await?.unwrap_or_default().len();
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_ignore_missing(true);
    migrator.run_direct(None, connection, false).await.map_err(|error| sqlx::Error::Migrate(Box::new(error)))?;
    let after = queries::applied_migrations(connection).await?.unwrap_or_default().len();
    Ok(after - before)
}

/// Makes a database of this name if the server has none. Only for a server that nobody else administers.
pub async fn create_if_missing(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    if !queries::database_exists(connection, name).await? {
        queries::create_database(connection, name).await?;
    }
    Ok(())
}
