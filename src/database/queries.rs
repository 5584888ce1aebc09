//! The SQL that asks a server about itself.

use sqlx::{AssertSqlSafe, PgConnection, Row};

/// A database, as a new session meets it.
pub struct Condition {
    /// The migrations that have run, each list in the order of the versions.
    pub versions: Vec<i64>,
    pub successes: Vec<bool>,
    pub checksums: Vec<Vec<u8>>,
    pub read_only: bool,
    pub fsync: bool,
    pub synchronous_commit: bool,
}

/// One statement, hence one round trip, for a probe must be quick on a slow link, too. Fails where no migration has run,
/// because there is no table of them.
pub async fn condition(connection: &mut PgConnection) -> sqlx::Result<Condition> {
    sqlx::query_as!(
        Condition,
        r#"
        /* database_condition */
        select
            coalesce(array_agg(version order by version), '{}') as "versions!",
            coalesce(array_agg(success order by version), '{}') as "successes!",
            coalesce(array_agg(checksum order by version), '{}') as "checksums!",
            current_setting('transaction_read_only') = 'on' as "read_only!",
            current_setting('fsync') <> 'off' as "fsync!",
            current_setting('synchronous_commit') <> 'off' as "synchronous_commit!"
        from hapax._sqlx_migrations
        "#,
    )
    .fetch_one(connection)
    .await
}

/// How many migrations have run.
pub async fn count_applied_migrations(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"/* count_migrations */ select count(*) as "count!" from hapax._sqlx_migrations"#)
        .fetch_one(connection)
        .await
}

/// A session that keeps another waiting for a lock. Never its statement, which may hold secrets.
#[derive(Clone, Debug)]
pub struct Blocker {
    pub pid: i32,
    /// What PostgreSQL does not show of other roles' sessions is missing.
    pub application: Option<String>,
    pub user: Option<String>,
    pub state: Option<String>,
    /// For how long it has been at its statement, or since that ended.
    pub statement_seconds: Option<f64>,
}

/// Who keeps the session `pid` waiting. A prepared transaction has the pid 0.
pub async fn blockers(connection: &mut PgConnection, pid: i32) -> sqlx::Result<Vec<Blocker>> {
    sqlx::query_as!(
        Blocker,
        r#"
        /* blockers */
        select distinct on (blocking.pid)
            blocking.pid as "pid!",
            activity.application_name as application,
            activity.usename::text as "user",
            activity.state,
            extract(epoch from clock_timestamp() - activity.query_start)::float8 as statement_seconds
        from unnest(pg_blocking_pids($1)) as blocking (pid)
        left join pg_stat_activity as activity on activity.pid = blocking.pid
        order by blocking.pid
        limit 10
        "#,
        pid,
    )
    .fetch_all(connection)
    .await
}

/// A setting that means nothing to PostgreSQL, and shows that what a session was to start with has arrived.
pub const OUR_MARK: &str = "hapax.session_is_ours";

pub async fn bears_our_mark(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"/* session_mark */ select current_setting($1, true) = 'yes' as "ours""#, OUR_MARK)
        .fetch_one(connection)
        .await
        .map(|ours| ours.unwrap_or(false))
}

/// The process of the session that this statement has met. Not prepared, so that any pooler lets it through.
pub async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::raw_sql("/* backend */ select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Whether the session knows this very statement under another name than the one sqlx gave it.
pub async fn renames_statements(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"
        /* prepared_name */
        select not exists (
            select from pg_prepared_statements
            where statement = current_query()
            and starts_with(name, 'sqlx_s_')
        ) as "renames!"
        "#,
    )
    .fetch_one(connection)
    .await
}

/// 0: no limit.
pub async fn statement_timeout_milliseconds(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"/* statement_timeout */ select setting::bigint as "limit!" from pg_settings where name = 'statement_timeout'"#)
        .fetch_one(connection)
        .await
}

/// Ends the session that this statement meets, and with it all that it has prepared.
pub async fn end_session(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("/* end_session */ select pg_terminate_backend(pg_backend_pid())").execute(connection).await?;
    Ok(())
}

pub async fn database_exists(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"/* database_exists */ select exists (select from pg_database where datname = $1) as "exists!""#,
        name
    )
    .fetch_one(connection)
    .await
}

/// `name` is made part of the statement's text.
pub async fn create_database(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let name = name.replace('"', "\"\"");
    sqlx::raw_sql(AssertSqlSafe(format!(r#"/* create_database */ create database "{name}""#)))
        .execute(connection)
        .await?;
    Ok(())
}
