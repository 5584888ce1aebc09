//! `hapax audit`.

use std::collections::BTreeSet;

use hapax::audit::{self, CHECKS};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::harness::{Ledger, run_hapax};

/// Functions for the statements of these tests, on top of those that the service calls. The content of a unique job is its
/// payload.
const HELPERS: &str = "
    create function acme() returns uuid language sql as $$ select id from tenants where name = 'acme' $$;

    create function submit_unique(p_key text, p_payload json) returns timestamptz language sql as $$
        select submit(
            acme(), 'POST /jobs', p_key, sha256('a'), 'r', now(), 3600, 'body', gen_random_uuid(), 't', null, null, null, 2,
            array['/n'], p_payload::text, sha256(p_payload::text::bytea)
        )
    $$;

    create function claim_jobs(p_claim_id uuid, p_max_jobs integer) returns bigint language sql as $$
        select count(*)
        from claim(acme(), array['default'], array[p_claim_id], array[sha256('a')], array['w'], array[p_max_jobs], array[60])
    $$;

    -- Reports this about up to so many leases, of which the order is random.
    create function report(p_outcome text, p_retry boolean, p_count integer) returns bigint language sql as $$
        select count(settled)
        from (
            select array_agg(claim_id) as claim_ids, array_agg(job_id) as job_ids, count(*)::integer as number
            from (select claim_id, job_id from job_leases order by random() limit p_count) as lease
        ) as held
        cross join lateral settle(
            acme(), claim_ids, job_ids, array_fill(p_outcome, array[number]),
            array_fill(case when p_outcome = 'succeeded' then '1'::json end, array[number]),
            array_fill(case when p_outcome <> 'succeeded' then '2'::json end, array[number]),
            array_fill(p_retry, array[number]), array_fill(0::double precision, array[number]), 0, 0
        ) as settled
        where number > 0
    $$;

    -- Lets all claims expire and reclaims their jobs.
    create function lose_leases() returns bigint language sql as $$
        update claims set expires_at = clock_timestamp() - interval '1 second', check_at = clock_timestamp()
        where exists (select from job_leases where job_leases.claim_id = claims.id);
        select looked_at from reclaim(1000)
    $$;

    create view fresh as
        select * from job_queue where version = 1 and job_id not in (select job_id from job_uniques);

    create function retry_job(p_key text, p_job_id uuid) returns timestamptz language sql as $$
        select retry(
            acme(), 'POST /jobs/{job_id}/retry', p_key, sha256('a'), 'r', now(), 3600, 'body', p_job_id, version, now(),
            case when unique_by is not null then sha256(payload::text::bytea) end
        )
        from job_outcomes
        join jobs on id = job_id
        where job_id = p_job_id
    $$;
";

/// Jobs in every state, with attempts of every kind, unique content, live and released claims, and keys.
const EVERYTHING: [&str; 19] = [
    "select count(*) from generate_series(1, 12) as n, submit_job('acme', 'a' || n, 't', '{}', p_max_attempts => 2)",
    "select claim_jobs(gen_random_uuid(), 12)",
    "select report('succeeded', true, 2)",
    "select report('failed', false, 1)",
    "select report('failed', true, 1)",
    "select report('released', true, 1)",
    "select report('cancelled', true, 1)",
    "select count(cancel(acme(), job_id)) from (select job_id from job_leases limit 2) as running",
    "select report('failed', true, 1)",
    "select lose_leases()",
    "select claim_jobs(gen_random_uuid(), 4)",
    "select lose_leases()",
    "select count(retry_job('r' || job_id, job_id)) from (select job_id from job_outcomes where state = 'failed' and reported = 'lost' limit 1) as lost",
    "select count(submit_unique('u' || n, to_json(n))) from generate_series(1, 3) as n",
    "select count(*) from generate_series(1, 4) as n, submit_job('acme', 'b' || n, 't', '{}')",
    "select count(hapax.delete(acme(), job_id)) from (select job_id from job_outcomes where state = 'succeeded' limit 1) as done",
    "select count(cancel(acme(), id)) from (select id from jobs where unique_by is not null limit 1) as one",
    "select claim_jobs(gen_random_uuid(), 3)",
    "select report('released', true, 1)",
];

async fn busy_ledger() -> Ledger {
    let ledger = Ledger::new().await;
    ledger.execute(HELPERS).await;
    for sql in EVERYTHING {
        assert!(ledger.number(sql).await > 0, "{sql}");
    }
    ledger.execute("select release(acme(), gen_random_uuid())").await;
    ledger
}

/// The names of the checks that find violations.
async fn violated(connection: &mut PgConnection) -> BTreeSet<&'static str> {
    let mut names = BTreeSet::new();
    for check in &CHECKS {
        let found = audit::violations(connection, check).await.unwrap();
        assert_eq!(found.count.min(20), i64::try_from(found.shown.len()).unwrap());
        assert!(found.shown.iter().all(|violation| violation.starts_with("tenant ")), "{found:?}");
        if found.count > 0 {
            names.insert(check.name);
        }
    }
    names
}

/// Statements that damage the data, each with the check that must find it.
const DAMAGE: [(&str, &str); 39] = [
    ("one_place", "delete from job_queue where job_id = (select job_id from fresh limit 1)"),
    (
        "one_place",
        "insert into job_outcomes (tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, version, \
         finished_at) select tenant_id, job_id, 'cancelled', queue, priority, run_at, max_attempts, attempt, version + 1, \
         now() from fresh limit 1",
    ),
    (
        "one_place",
        "insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at) \
         values (acme(), gen_random_uuid(), 'default', 2, now(), 25, now())",
    ),
    (
        "one_place",
        "update jobs set payload = null, deleted_at = now() \
         where id = (select job_id from fresh limit 1)",
    ),
    ("job_copies", "update job_queue set queue = 'other' where version = 1"),
    ("job_copies", "update job_outcomes set queue = 'other'"),
    ("job_copies", "update job_leases set created_at = created_at - interval '1 s'"),
    ("attempt_count", "update job_queue set attempt = 1 where version = 1"),
    ("attempt_count", "update job_leases set attempt = version"),
    ("attempt_count", "update job_queue set attempt = max_attempts, version = 2 * max_attempts + 1 where version = 1"),
    ("lease_claim", "delete from claims where id in (select claim_id from job_leases)"),
    ("lease_claim", "update claims set queues = '{other}' where queues is not null"),
    ("lease_claim", "update job_leases set claim_id = gen_random_uuid()"),
    ("released_claim", "update claims set released_at = now() where id in (select claim_id from job_leases)"),
    (
        "claim_check_time",
        "update claims set check_at = now() + interval '1 hour' where id in (select claim_id from job_leases)",
    ),
    ("tokens", "update job_attempts set token = token + 1000 where job_id in (select job_id from job_queue)"),
    (
        "tokens",
        "insert into job_attempts (tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at) \
         select tenant_id, job_id, token, claim_id, attempt, 'failed', now(), now() from job_leases",
    ),
    (
        "tokens",
        "insert into job_attempts (tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at) \
         select tenant_id, job_id, token, claim_id, attempt, 'lost', now(), now() from job_outcomes \
         where reported <> 'lost'",
    ),
    (
        "tokens",
        "insert into job_attempts (tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at) \
         select tenant_id, job_id, version, gen_random_uuid(), 1, 'failed', now(), now() from job_outcomes \
         where claim_id is null",
    ),
    ("tokens", "update job_outcomes set token = version where reported = 'failed'"),
    ("outcomes", "update job_outcomes set state = 'succeeded', error = null where reported = 'failed'"),
    ("outcomes", "update job_outcomes set state = 'failed' where reported = 'succeeded'"),
    ("outcomes", "update job_outcomes set state = 'cancelled', result = null where reported = 'succeeded'"),
    ("outcomes", "update job_outcomes set state = 'failed' where claim_id is null"),
    ("outcomes", "update job_outcomes set result = '1' where state = 'cancelled'"),
    ("outcomes", "update job_outcomes set error = '1' where reported = 'lost'"),
    ("outcomes", "update job_outcomes set error = '1' where reported = 'succeeded'"),
    ("outcomes", "update job_outcomes set max_attempts = 3 where state = 'failed' and reported = 'lost'"),
    ("outcomes", "delete from job_attempts where job_id in (select job_id from job_outcomes where reported = 'lost')"),
    (
        "attempt_limit",
        "insert into job_attempts (tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at) \
         select tenant_id, job_id, -n, gen_random_uuid(), 1, 'failed', now(), now() \
         from job_queue cross join generate_series(0, 50) as n where version = 1",
    ),
    (
        "attempts_without_job",
        "insert into job_attempts (tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at) \
         values (acme(), gen_random_uuid(), 2, gen_random_uuid(), 1, 'failed', now(), now())",
    ),
    (
        "attempts_without_job",
        "insert into job_attempts (tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at) \
         select tenant_id, id, 2, gen_random_uuid(), 1, 'failed', now(), now() from jobs where deleted_at is not null",
    ),
    (
        "stale_unique",
        "insert into job_uniques (tenant_id, digest, job_id) select tenant_id, sha256('b'), job_id from job_outcomes limit 1",
    ),
    (
        "stale_unique",
        "insert into job_uniques (tenant_id, digest, job_id) values (acme(), sha256('b'), gen_random_uuid())",
    ),
    (
        "stale_unique",
        "insert into job_uniques (tenant_id, digest, job_id) select tenant_id, sha256('b'), job_id from fresh limit 1",
    ),
    ("missing_unique", "delete from job_uniques"),
    ("key_job", "update idempotency_keys set job_id = gen_random_uuid() where key = 'a1'"),
    ("key_version", "update idempotency_keys set job_version = 1000 where key = 'b1'"),
    (
        "created_once",
        "update idempotency_keys set job_id = (select job_id from idempotency_keys where key = 'b1') where key = 'b2'",
    ),
];

#[tokio::test]
async fn each_broken_invariant_is_named_and_no_other() {
    let ledger = busy_ledger().await;
    let mut connection = ledger.connect().await;
    assert_eq!(violated(&mut connection).await, BTreeSet::new());
    let of_no_tenant = "insert into claims (tenant_id, id, created_at, expires_at, released_at, check_at) \
                        values (gen_random_uuid(), gen_random_uuid(), now(), now(), now(), now())";
    for (name, damage) in DAMAGE.into_iter().chain([("tenants", of_no_tenant)]) {
        let run = async |connection: &mut PgConnection, sql: &str| {
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap().rows_affected()
        };
        run(&mut connection, "begin").await;
        assert!(run(&mut connection, damage).await > 0, "{damage}");
        assert_eq!(violated(&mut connection).await, BTreeSet::from([name]), "{damage}");
        run(&mut connection, "rollback").await;
    }
    let damaged: BTreeSet<_> = DAMAGE.iter().map(|(name, _)| *name).chain(["tenants"]).collect();
    assert_eq!(damaged, CHECKS.iter().map(|check| check.name).collect(), "every check is seen to find something");
}

async fn audit(ledger: &Ledger, arguments: &[&str]) -> (Option<i32>, String) {
    let arguments = [&["audit"], arguments].concat();
    let output = run_hapax(&arguments, &[("DATABASE_URL", &ledger.url)]).await;
    assert!(output.stderr.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn an_audit_prints_a_line_for_each_check_and_the_ids_of_violating_rows() {
    let ledger = busy_ledger().await;
    let (status, printed) = audit(&ledger, &[]).await;
    assert_eq!(status, Some(0), "{printed}");
    assert!(printed.ends_with("16 checks, no violations\n"), "{printed}");
    for check in &CHECKS {
        assert!(printed.contains(&format!("ok: {} (", check.name)), "{printed}");
    }
    // Rows of one job and of many.
    let job = ledger
        .text("delete from job_uniques where ctid = (select ctid from job_uniques limit 1) returning job_id::text")
        .await;
    let many = "insert into job_attempts (tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at) \
                select acme(), gen_random_uuid(), 2, gen_random_uuid(), 1, 'failed', now(), now() \
                from generate_series(1, 25)";
    assert_eq!(ledger.execute(many).await, 25);
    let (status, printed) = audit(&ledger, &[]).await;
    assert_eq!(status, Some(1), "{printed}");
    assert!(printed.contains(&format!("job {job} holds no content\n")), "{printed}");
    assert!(
        printed.contains("VIOLATED: attempts_without_job (") && printed.contains("\n    and 5 more\n"),
        "{printed}"
    );
    assert!(printed.ends_with("16 checks, 26 violations, of which --repair removes 25\n"), "{printed}");
}

#[tokio::test]
async fn a_repair_deletes_only_what_is_safe_to_delete_and_prints_it() {
    let ledger = busy_ledger().await;
    let attempts = ledger.number("select count(*) from job_attempts").await;
    let uniques = ledger.number("select count(*) from job_uniques").await;
    for (name, damage) in DAMAGE {
        if ["stale_unique", "attempt_limit", "attempts_without_job"].contains(&name) {
            ledger.execute(&damage.replace("sha256('b')", "sha256(gen_random_uuid()::text::bytea)")).await;
        }
    }
    let waiting = ledger.number("select count(*) from job_queue where version = 1").await;
    let (status, printed) = audit(&ledger, &["--repair"]).await;
    assert_eq!(status, Some(0), "{printed}");
    // One attempt too many of each waiting job, two without a job, and three that hold content without a right to.
    let repaired = printed.matches("repaired: deleted the row of tenant ").count();
    assert_eq!(i64::try_from(repaired).unwrap(), waiting + 2 + 3, "{printed}");
    assert_eq!(ledger.number("select count(*) from job_uniques").await, uniques);
    assert_eq!(ledger.number("select count(*) from job_attempts").await, attempts + 50 * waiting);

    let jobs = ledger.number("select count(*) from job_queue").await;
    ledger.execute(DAMAGE[1].1).await;
    let (status, printed) = audit(&ledger, &["--repair"]).await;
    assert_eq!(status, Some(1), "{printed}");
    assert!(!printed.contains("repaired") && printed.contains("is in job_queue and job_outcomes\n"), "{printed}");
    assert_eq!(ledger.number("select count(*) from job_queue").await, jobs);
}

/// Statements that race. Each is a transaction, as the service's are.
const RACING: [&str; 14] = [
    "select submit_job('acme', gen_random_uuid()::text, 't', '{}', p_max_attempts => 3) from generate_series(1, 3)",
    "select submit_unique(gen_random_uuid()::text, to_json(floor(random() * 8)))",
    "select claim_jobs(gen_random_uuid(), 4)",
    "select claim_jobs(gen_random_uuid(), 2)",
    "select report('succeeded', true, 1)",
    "select report('failed', true, 2)",
    "select report('released', true, 1)",
    "select heartbeat(acme(), array(select id from claims order by random() limit 2))",
    "select release(acme(), claim_id) from (select claim_id from job_leases order by random() limit 1) as one",
    "select lose_leases()",
    "select cancel(acme(), job_id) from (select job_id from job_states order by random() limit 1) as one",
    "select hapax.delete(acme(), job_id) from (select job_id from job_states order by random() limit 1) as one",
    "select retry_job(gen_random_uuid()::text, job_id) from (select job_id from job_outcomes order by random() limit 1) as one",
    "select patch(acme(), job_id, version, 1::smallint, now(), 5) \
     from (select job_id, version from job_queue order by random() limit 1) as one",
];

/// An invariant must hold in every committed snapshot, not only when nothing is in progress.
#[tokio::test]
async fn audits_beside_racing_calls_find_nothing() {
    let ledger = busy_ledger().await;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..6 {
        let mut connection = ledger.connect().await;
        callers.spawn(async move {
            for round in 0..15 * RACING.len() {
                let sql = RACING[(caller * 5 + round * 3) % RACING.len()];
                match sqlx::raw_sql(sql).execute(&mut connection).await {
                    Ok(_) => {}
                    Err(sqlx::Error::Database(error)) => {
                        // A job with the same content is active; a deadlock or a moving job, which the service retries.
                        let code = error.code().unwrap_or_default();
                        assert!(["23505", "40P01", "40001"].contains(&&*code), "{sql}: {error}");
                    }
                    Err(error) => panic!("{sql}: {error}"),
                }
            }
        });
    }
    let mut auditor = ledger.connect().await;
    let mut audits = 0;
    while !callers.is_empty() {
        for check in &CHECKS {
            let found = audit::violations(&mut auditor, check).await.unwrap();
            assert_eq!(found.count, 0, "{}: {:?}", check.name, found.shown);
        }
        audits += 1;
        while let Some(ended) = callers.try_join_next() {
            ended.unwrap();
        }
    }
    assert!(audits > 1, "{audits}");
    let states = "select count(distinct (state, reported)) from job_outcomes";
    assert!(ledger.number(states).await >= 3, "jobs end in several ways");
}

#[tokio::test]
async fn an_audit_neither_waits_for_row_locks_nor_writes() {
    let ledger = busy_ledger().await;
    let _held = ledger
        .hold("select from jobs for update; select from job_leases for update; select from claims for update")
        .await;
    assert_eq!(audit(&ledger, &[]).await.0, Some(0));
    let mut connection = PgConnection::connect(&ledger.url).await.unwrap();
    audit::forbid_writes(&mut connection).await.unwrap();
    let refused = sqlx::raw_sql("delete from hapax.job_uniques").execute(&mut connection).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("25006"), "{refused}");
}

#[tokio::test]
async fn an_audit_reads_whole_tables_in_a_session_of_its_own() {
    let ledger = Ledger::new().await;
    let mut connection = ledger.connect().await;
    audit::prepare_session(&mut connection, std::time::Duration::from_secs(90)).await.unwrap();
    for (setting, value) in [("statement_timeout", "90s"), ("enable_seqscan", "on")] {
        let row = sqlx::raw_sql(AssertSqlSafe(format!("show {setting}"))).fetch_one(&mut connection).await.unwrap();
        assert_eq!(row.get::<String, _>(0), value);
    }
    let output = run_hapax(&["audit", "--check-timeout", "soon"], &[("DATABASE_URL", &ledger.url)]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--check-timeout <TIME>"), "{output:?}");
}
