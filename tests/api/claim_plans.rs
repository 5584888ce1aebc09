//! What the functions of claims read: rows and pages, never time. The cost of a call depends on its jobs, not on the queue.

use sqlx::{AssertSqlSafe, Row};

use crate::harness::Ledger;

const MODES: [&str; 2] = ["force_custom_plan", "force_generic_plan"];

/// What a statement read within a transaction that was rolled back.
#[derive(Debug)]
struct Read {
    /// Rows of all tables.
    rows: i64,
    /// Pages, in the cache or not.
    pages: i64,
    /// Rows that the statement returned.
    returned: f64,
}

/// A session with plans of its own.
struct Session {
    connection: sqlx::PgConnection,
}

impl Session {
    async fn new(ledger: &Ledger, mode: &str) -> Self {
        let mut connection = ledger.connect().await;
        // As in the sessions of the service.
        let mode = format!("set enable_seqscan = off; set plan_cache_mode = {mode}");
        sqlx::raw_sql(AssertSqlSafe(mode)).execute(&mut connection).await.unwrap();
        Self { connection }
    }

    /// Executes a statement in a transaction that is rolled back.
    async fn read(&mut self, sql: &str) -> Read {
        let explain = format!("explain (analyze, buffers, timing off, format json) {sql}");
        sqlx::raw_sql("begin").execute(&mut self.connection).await.unwrap();
        let before = self.rows_read().await;
        let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut self.connection).await.unwrap();
        let plan = plan.get::<sqlx::types::Json<serde_json::Value>, _>(0).0[0]["Plan"].clone();
        let rows = self.rows_read().await - before;
        sqlx::raw_sql("rollback").execute(&mut self.connection).await.unwrap();
        let number = |name: &str| plan[name].as_f64().unwrap();
        let pages = number("Shared Hit Blocks") + number("Shared Read Blocks");
        Read { rows, pages: pages as i64, returned: number("Actual Rows") }
    }

    /// The rows of all tables that the session has read lately. It forgets none within a transaction.
    async fn rows_read(&mut self) -> i64 {
        let sql = "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint from pg_stat_xact_user_tables";
        sqlx::raw_sql(sql).fetch_one(&mut self.connection).await.unwrap().get(0)
    }
}

/// What a statement reads in a new session, after a first execution that reads the catalogue.
async fn read(ledger: &Ledger, mode: &str, sql: &str) -> Read {
    let mut session = Session::new(ledger, mode).await;
    session.read(sql).await;
    session.read(sql).await
}

/// A claim by tenant `acme`.
fn claim(queues: &str, max_jobs: u32) -> String {
    format!(
        "select c.* from tenants, hapax.claim(tenants.id, array[{queues}], array[gen_random_uuid()], \
         array[sha256('x')], array[null::text], array[{max_jobs}], array[60]) as c"
    )
}

/// What the same claims read from a short queue. In the long one they may read twice as many pages, because its index is
/// higher.
async fn assert_alike(ledger: &Ledger, short: &[(String, Read)], mode: &str) {
    for (sql, expected) in short {
        let long = read(ledger, mode, sql).await;
        assert_eq!(long.returned, expected.returned, "{sql}");
        assert!(long.rows <= expected.rows, "{mode}: {long:?} instead of {expected:?} for {sql}");
        assert!(long.pages <= 2 * expected.pages, "{mode}: {long:?} instead of {expected:?} for {sql}");
    }
}

#[tokio::test]
async fn a_claim_reads_its_jobs_only_however_long_the_queue_and_however_many_urgent_jobs_are_in_the_future() {
    let calls = [("'default'", 1), ("'default'", 10), ("'default'", 50), ("'default', 'other'", 10)];
    for mode in MODES {
        let ledger = Ledger::new().await;
        ledger.fill_queue("default", 2_000).await;
        ledger.fill_queue("other", 2_000).await;
        ledger.execute("vacuum (analyze) job_queue").await;
        let mut short = Vec::new();
        for (queues, max_jobs) in calls {
            let sql = claim(queues, max_jobs);
            let first = read(&ledger, mode, &sql).await;
            assert_eq!(first.returned, f64::from(max_jobs));
            // The job itself, its payload, its tenant; and each priority may be looked at.
            assert!(first.rows <= i64::from(max_jobs) * 6 + 10, "{mode}: {first:?} for {sql}");
            short.push((sql, first));
        }
        // With the statistics of the short queue.
        ledger.execute("alter table job_queue set (autovacuum_enabled = false)").await;
        ledger.fill_queue_with("default", 1, "'9999-01-01'", 10_000).await;
        ledger.fill_queue_with("default", 4, "now()", 10_000).await;
        ledger.fill_queue("other", 5_000).await;
        ledger.fill_queue("another", 5_000).await;
        assert_alike(&ledger, &short, mode).await;
        ledger.execute("vacuum (analyze) job_queue").await;
        assert_alike(&ledger, &short, mode).await;
    }
}

#[tokio::test]
async fn a_session_that_has_claimed_from_an_empty_queue_reads_its_jobs_only_when_the_queue_is_long() {
    let ledger = Ledger::new().await;
    // As after a vacuum of a queue that is empty most of the time.
    ledger.execute("vacuum (analyze)").await;
    ledger.execute("alter table job_queue set (autovacuum_enabled = false)").await;
    ledger.execute("alter table jobs set (autovacuum_enabled = false)").await;
    let sql = claim("'default'", 10);
    for mode in ["auto", MODES[1]] {
        let mut session = Session::new(&ledger, mode).await;
        for _ in 0..8 {
            assert_eq!(session.read(&sql).await.returned, 0.0);
        }
        ledger.fill_queue("default", 10_000).await;
        let read = session.read(&sql).await;
        assert!(read.returned == 10.0 && read.rows <= 70, "{mode}: {read:?}");
        ledger.execute("truncate job_queue, jobs").await;
        ledger.execute("vacuum (analyze) job_queue, jobs").await;
    }
}

#[tokio::test]
async fn a_claim_that_finds_nothing_reads_no_row_of_the_queue() {
    let ledger = Ledger::new().await;
    for priority in 1..=4 {
        ledger.fill_queue_with("default", priority, "'9999-01-01'", 5_000).await;
    }
    ledger.execute("vacuum (analyze) job_queue").await;
    for mode in MODES {
        for queues in ["'default'", "'empty'", "'default', 'empty', 'none'"] {
            let nothing = read(&ledger, mode, &claim(queues, 100)).await;
            // The tenant.
            assert!(nothing.returned == 0.0 && nothing.rows <= 2, "{mode}, {queues}: {nothing:?}");
        }
    }
}

/// The tables that [`fill_with_leases`] fills.
const FILLED: [&str; 6] = ["claims", "job_leases", "job_outcomes", "job_attempts", "job_uniques", "jobs"];

/// Two thousand claims with ten jobs each, expired, and as many jobs that are over. The jobs of the claims are unique by
/// their content, and every second one is at its last attempt.
async fn fill_with_leases(ledger: &Ledger) {
    let sql = "create temporary table numbered as \
        select tenants.id as tenant_id, n, md5('job' || n)::uuid as job_id, md5('claim' || n / 10)::uuid as claim_id \
        from tenants, generate_series(0, 19999) as n; \
        insert into jobs (tenant_id, id, type, payload, created_at) \
        select tenant_id, job_id, 't', '1'::json, now() from numbered union all \
        select tenant_id, md5('over' || n)::uuid, 't', '1'::json, now() from numbered; \
        insert into claims (tenant_id, id, fingerprint, queues, lease_seconds, created_at, expires_at, check_at) \
        select tenant_id, claim_id, sha256('x'), '{default}', 60, now(), now(), now() from numbered where n % 10 = 0; \
        insert into job_leases (tenant_id, job_id, claim_id, token, queue, priority, run_at, max_attempts, attempt, \
        version, created_at, releases, started_at) \
        select tenant_id, job_id, claim_id, 2, 'default', 2, now(), case when n % 2 = 0 then 1 else 25 end, 1, 2, now(), 0, \
        now() from numbered; \
        insert into job_uniques (tenant_id, digest, job_id) \
        select tenant_id, sha256(('content' || n)::bytea), job_id from numbered; \
        insert into job_outcomes (tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, version, \
        finished_at, claim_id, token, started_at, reported) \
        select tenant_id, md5('over' || n)::uuid, 'failed', 'default', 2, now(), 25, 2, 5, now(), claim_id, 4, now(), \
        'failed' from numbered; \
        insert into job_attempts (tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at) \
        select tenant_id, md5('over' || n)::uuid, 2, gen_random_uuid(), 1, 'lost', now(), now() from numbered";
    ledger.execute(sql).await;
}

/// A call of `settle` for the ten jobs of the first claim, with this prefix of their names.
fn settle(outcome: &str, prefix: &str) -> String {
    format!(
        "select s.* from tenants, hapax.settle(tenants.id, array_fill(md5('claim0')::uuid, array[10]), \
         array(select md5('{prefix}' || n)::uuid from generate_series(0, 9) as n), array_fill('{outcome}'::text, array[10]), \
         array_fill(null::json, array[10]), array_fill(null::json, array[10]), array_fill(true, array[10]), \
         array_fill(null::double precision, array[10]), 1, 1) as s"
    )
}

/// Includes what planning reads of the catalog, about a thousand pages. A scan of a table also shows in the rows.
const PAGES_MAX: i64 = 2_000;

#[tokio::test]
async fn the_calls_of_a_worker_read_their_own_rows_only() {
    assert_calls_read_their_own_rows(&Ledger::new().await).await;
}

/// A vacuum leaves the indexes as large as they were. To the planner, the smaller of two is the cheaper one then.
#[tokio::test]
async fn the_calls_of_a_worker_read_their_own_rows_only_after_many_jobs_have_passed() {
    let ledger = Ledger::new().await;
    fill_with_leases(&ledger).await;
    for table in FILLED {
        ledger.execute(&format!("delete from {table}")).await;
    }
    assert_calls_read_their_own_rows(&ledger).await;
}

async fn assert_calls_read_their_own_rows(ledger: &Ledger) {
    // The plans must also be right with statistics from the time when the tables were empty, and job_uniques almost: the
    // first row of an index makes a session plan again, so it would hide a plan that was made for one row.
    ledger.execute("insert into job_uniques select id, sha256('another'), gen_random_uuid() from tenants").await;
    ledger.execute("vacuum (analyze)").await;
    for table in FILLED {
        ledger.execute(&format!("alter table {table} set (autovacuum_enabled = false)")).await;
    }
    let of_tenant = |call: &str| format!("select r.* from tenants, {call} as r");
    let repeated = "hapax.claim(tenants.id, array['default'], array[md5('claim0')::uuid], array[sha256('x')], \
                    array[null::text], array[10], array[60])";
    // Ten jobs; a row is read in each table where the function looks for it, and again when it is changed.
    let calls = [
        ("claim, repeated", of_tenant(repeated), 50),
        ("heartbeat", of_tenant("hapax.heartbeat(tenants.id, array[md5('claim0')::uuid])"), 50),
        ("settle succeeded", settle("succeeded", "job"), 50),
        ("settle failed", settle("failed", "job"), 50),
        ("settle again", settle("succeeded", "over"), 50),
        ("release", of_tenant("hapax.release(tenants.id, md5('claim0')::uuid)"), 50),
        ("reclaim", "select * from hapax.reclaim(1)".to_owned(), 50),
        ("cancel", of_tenant("hapax.cancel(tenants.id, md5('job0')::uuid)"), 10),
        ("delete", of_tenant("hapax.delete(tenants.id, md5('over0')::uuid)"), 10),
        ("delete, running", of_tenant("hapax.delete(tenants.id, md5('job0')::uuid)"), 10),
        ("trim", of_tenant("hapax.trim_attempts(tenants.id, array[md5('over0')::uuid])"), 10),
    ];
    let mut sessions = Vec::new();
    for mode in ["auto", "force_generic_plan"] {
        for (name, sql, most) in &calls {
            let mut session = Session::new(ledger, mode).await;
            for _ in 0..8 {
                session.read(sql).await;
            }
            sessions.push((session, name, sql, *most, mode));
        }
    }
    fill_with_leases(ledger).await;
    for (session, name, sql, most, mode) in &mut sessions {
        let read = session.read(sql).await;
        assert!(read.rows <= *most && read.pages <= PAGES_MAX, "{name} in a warm session, {mode}: {read:?}");
    }
    for statistics in ["stale", "fresh"] {
        if statistics == "fresh" {
            ledger.execute("vacuum (analyze)").await;
        }
        for mode in MODES {
            for (name, sql, most) in &calls {
                let read = read(ledger, mode, sql).await;
                assert!(read.rows <= *most && read.pages <= PAGES_MAX, "{name}, {statistics}, {mode}: {read:?}");
            }
        }
    }
}
