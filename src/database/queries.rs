//! The SQL that asks a server about itself.

use sqlx::{AssertSqlSafe, PgConnection};

pub struct AppliedMigration {
    pub version: i64,
    pub success: bool,
    pub checksum: Vec<u8>,
}

/// The migrations that have run; `None` in a database where none ever did.
pub async fn applied_migrations(connection: &mut PgConnection) -> sqlx::Result<Option<Vec<AppliedMigration>>> {
    let migrated = sqlx::query_scalar!(r#"select to_regclass('_sqlx_migrations') is not null as "migrated!""#)
        .fetch_one(&mut *connection)
        .await?;
    if !migrated {
        return Ok(None);
    }
    sqlx::query_as!(AppliedMigration, "select version, success, checksum from _sqlx_migrations order by version")
        .fetch_all(connection)
        .await
        .map(Some)
}

/// What a new session starts with.
pub struct DurabilitySettings {
    pub read_only: bool,
    pub fsync: bool,
    pub synchronous_commit: bool,
}

pub async fn durability_settings(connection: &mut PgConnection) -> sqlx::Result<DurabilitySettings> {
    sqlx::query_as!(
        DurabilitySettings,
        r#"
        select
            current_setting('transaction_read_only') = 'on' as "read_only!",
            current_setting('fsync') <> 'off' as "fsync!",
            current_setting('synchronous_commit') <> 'off' as "synchronous_commit!"
        "#,
    )
    .fetch_one(connection)
    .await
}

pub async fn database_exists(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select exists (select from pg_database where datname = $1) as "exists!""#, name)
        .fetch_one(connection)
        .await
}

/// `name` is made part of the statement's text.
pub async fn create_database(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let name = name.replace('"', "\"\"");
    sqlx::raw_sql(AssertSqlSafe(format!(r#"create database "{name}""#))).execute(connection).await?;
    Ok(())
}
