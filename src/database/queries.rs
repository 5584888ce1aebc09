//! SQL about the server, its sessions and the schema.

use sqlx::{AssertSqlSafe, PgConnection, Row};

/// The state of a database, and settings of a new session.
pub struct Condition {
    /// The applied migrations. All three lists are in the order of versions.
    pub versions: Vec<i64>,
    pub successes: Vec<bool>,
    pub checksums: Vec<Vec<u8>>,
    pub read_only: bool,
    pub fsync: bool,
    pub synchronous_commit: bool,
}

/// One statement and so one round trip, because a probe must be fast on a slow network, too. Fails if the table of
/// applied migrations does not exist.
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

/// The number of applied migrations.
pub async fn count_applied_migrations(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"/* count_migrations */ select count(*) as "count!" from hapax._sqlx_migrations"#)
        .fetch_one(connection)
        .await
}

/// A session that blocks another one. Without the text of its statement, which may contain secrets.
#[derive(Clone, Debug)]
pub struct Blocker {
    pub pid: i32,
    /// `None`, like the fields below, if PostgreSQL does not show it for sessions of other roles.
    pub application: Option<String>,
    pub user: Option<String>,
    pub state: Option<String>,
    /// The time since its current or last statement began.
    pub statement_seconds: Option<f64>,
}

/// The sessions that block the session `pid`. A prepared transaction has the pid 0.
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

/// A setting without effect in PostgreSQL. It shows that the settings which Hapax sends have reached the session.
pub const SESSION_MARK: &str = "hapax.session_is_ours";

pub async fn has_session_mark(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"/* session_mark */ select current_setting($1, true) = 'yes' as "ours""#, SESSION_MARK)
        .fetch_one(connection)
        .await
        .map(|is_set| is_set.unwrap_or(false))
}

/// The process id of the server session that runs this statement. The statement is not prepared, so it works behind any
/// pooler.
pub async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::raw_sql("/* backend */ select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Whether a pooler renames prepared statements: whether the session lacks this statement under a name that sqlx gives.
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

/// The session's `statement_timeout`. 0 means no limit.
pub async fn statement_timeout_milliseconds(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"/* statement_timeout */ select setting::bigint as "limit!" from pg_settings where name = 'statement_timeout'"#)
        .fetch_one(connection)
        .await
}

/// Ends the server session that runs this statement, with all its prepared statements.
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

/// `name` becomes part of the statement's text, quoted.
pub async fn create_database(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let name = name.replace('"', "\"\"");
    sqlx::raw_sql(AssertSqlSafe(format!(r#"/* create_database */ create database "{name}""#)))
        .execute(connection)
        .await?;
    Ok(())
}
