//! The statements of the checks. They are no checked queries: their texts are data, and what the tests demand of checked
//! queries (one tenant, an index) is the opposite of what a check does. The tests run each of them.

use std::time::Duration;

use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::Check;

/// Violations of a check in one snapshot.
#[derive(Debug, FromRow)]
pub struct Violations {
    pub count: i64,
    /// The first of them.
    pub shown: Vec<String>,
}

const SHOWN: i64 = 20;

/// How many rows of each kind there are, in one snapshot.
#[derive(Debug, FromRow)]
pub struct Counts {
    pub waiting: i64,
    pub running: i64,
    pub finished: i64,
    pub deleted: i64,
    pub keys: i64,
    pub claims: i64,
    pub attempts: i64,
}

/// Sets the session up for statements that read whole tables. Other sessions of Hapax have a short statement timeout and
/// avoid sequential scans. One process and a bounded memory for each statement, so that the service beside it keeps the
/// rest of the machine.
pub async fn prepare_session(connection: &mut PgConnection, timeout: Duration) -> sqlx::Result<()> {
    let sql = "
        /* audit_session */
        select
            set_config('statement_timeout', $1, false),
            set_config('enable_seqscan', 'on', false),
            set_config('max_parallel_workers_per_gather', '0', false),
            set_config('work_mem', '64MB', false),
            set_config('jit', 'off', false)
    ";
    sqlx::query(sql).bind(timeout.as_millis().to_string()).execute(connection).await?;
    Ok(())
}

/// Lets the session only read from now on.
pub async fn forbid_writes(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("/* audit_read_only */ select set_config('default_transaction_read_only', 'on', false)")
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn count_rows(connection: &mut PgConnection) -> sqlx::Result<Counts> {
    let sql = "
        /* audit_count */
        select
            (select count(*) from hapax.job_queue) as waiting,
            (select count(*) from hapax.job_leases) as running,
            (select count(*) from hapax.job_outcomes) as finished,
            (select count(*) from hapax.jobs where deleted_at is not null) as deleted,
            (select count(*) from hapax.idempotency_keys) as keys,
            (select count(*) from hapax.claims) as claims,
            (select count(*) from hapax.job_attempts) as attempts
    ";
    sqlx::query_as(sql).fetch_one(connection).await
}

/// Runs a check.
pub async fn violations(connection: &mut PgConnection, check: &Check) -> sqlx::Result<Violations> {
    let sql = format!(
        "
        /* audit_{} */
        with violation (description) as materialized ({})
        select
            (select count(*) from violation) as count,
            array(select description from violation order by description limit {SHOWN}) as shown
        ",
        check.name, check.violations,
    );
    sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_one(connection).await
}

/// Deletes up to `limit` rows that violate a check, and returns their descriptions. Deletes nothing if the check has no
/// safe repair.
///
/// Deleting by ctid is safe: a row that was changed meanwhile has another one and is left alone.
pub async fn delete_violations(connection: &mut PgConnection, check: &Check, limit: i64) -> sqlx::Result<Vec<String>> {
    let Some(table) = check.deletes_from else { return Ok(Vec::new()) };
    let sql = format!(
        "
        /* repair_{} */
        with violation (description, row_id) as materialized ({} limit {limit})
        delete from {table} as damaged
        using violation
        where damaged.ctid = violation.row_id
        returning violation.description
        ",
        check.name, check.violations,
    );
    sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false).fetch_all(connection).await
}
