//! Failures between a request and its answer.

use std::str::FromStr;
use std::time::Duration;

use hapax::database::{DatabaseError, Pool, Pooler, Settings, SharedPool};
use hapax::ids::TenantId;
use hapax::metrics::Metrics;
use hapax::overload::Shed;
use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::Instant;

use crate::harness::{Fault, Ledger, Proxy, SHORT_DEADLINES, Server, job};

#[tokio::test]
async fn a_connection_cut_after_the_commit_is_invisible_to_the_client() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &[]).await;
    proxy.fail_next("the-key", Fault::CutAfter);
    let answer = server.submit("the-key", job(1)).await;
    assert!(proxy.is_done());
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (201, "false"));
    assert_eq!(server.metric(r#"hapax_database_retries_total{reason="lost"}"#).await, 1.0);
    ledger.assert_consistent(1).await;
    let again = server.submit("the-key", job(1)).await;
    assert_eq!((again.status, &again.body), (200, &answer.body));
    assert_eq!(again.header("idempotency-expires"), answer.header("idempotency-expires"));
}

#[tokio::test]
async fn a_connection_cut_before_the_statement_is_invisible_to_the_client() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &[]).await;
    proxy.fail_next("the-key", Fault::CutBefore);
    assert_eq!(server.submit("the-key", job(1)).await.status, 201);
    assert!(proxy.is_done());
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn the_deletion_of_an_expired_key_cut_after_its_commit_is_invisible_to_the_client() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &[]).await;
    server.submit("the-key", job(1)).await;
    ledger.expire("the-key").await;
    // The third statement with the key deletes the expired row. The first is an attempt to insert the key, the second
    // reads the existing row.
    proxy.fail_after(2, "the-key", Fault::CutAfter);
    assert_eq!(server.submit("the-key", job(2)).await.status, 201);
    assert!(proxy.is_done());
    assert_eq!(server.submit("the-key", job(2)).await.status, 200);
    assert_eq!((ledger.jobs().await, ledger.keys().await), (2, 1));
}

#[tokio::test]
async fn a_silent_connection_is_abandoned_and_invisible_to_the_client() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let settings = [&SHORT_DEADLINES[1..], &[("HAPAX__SERVER__REQUEST_DEADLINE", "10m")]].concat();
    let server = ledger.serve_through(&proxy, &settings).await;
    server.submit_with_retries("warm-up", job(0)).await;
    proxy.fail_next("the-key", Fault::BlackHole);
    let answer = server.submit("the-key", job(1)).await;
    assert!(proxy.is_done());
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (201, "false"));
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn an_unknown_outcome_is_reported_and_a_retry_with_the_same_key_resolves_it() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &SHORT_DEADLINES).await;
    server.submit_with_retries("warm-up", job(0)).await;
    proxy.fail_next("the-key", Fault::BlackHole);
    proxy.then_fail_after(0, "the-key", Fault::BlackHole);
    let answer = server.submit("the-key", job(1)).await;
    answer.is_problem(503, "outcome-unknown");
    answer.assert_retry_after();
    assert_eq!(server.metric(r#"hapax_idempotency_outcomes_total{route="POST /jobs",outcome="unknown"}"#).await, 1.0);
    let retried = server.submit("the-key", job(1)).await;
    assert_eq!((retried.status, retried.header("idempotent-replayed")), (200, "true"));
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn dead_idle_connections_are_replaced() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    assert_eq!(server.get(&location).await.status, 200);
    assert!(ledger.end_sessions().await >= 2);
    assert_eq!(server.get(&location).await.status, 200);
    assert_eq!(server.submit("key-2", job(2)).await.status, 201);
    assert_eq!(server.submit("key-1", job(1)).await.status, 200);
}

#[tokio::test]
async fn a_migration_under_a_running_server_is_invisible_to_clients() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    assert_eq!(server.get(&location).await.status, 200);
    ledger.execute("alter table jobs alter column type type varchar(128)").await;
    assert_eq!(server.get(&location).await.status, 200);
    assert_eq!(server.submit("key-2", job(2)).await.status, 201);
    assert!(server.metric(r#"hapax_database_retries_total{reason="stale"}"#).await >= 1.0);
}

/// A server whose statement for `the-key` waits in the database, and the transaction that blocks it.
async fn frozen_during_a_statement(
    ledger: &Ledger,
) -> (Server, tokio::task::JoinHandle<Option<u16>>, crate::harness::OpenTransaction) {
    let server = ledger.serve().await;
    server.submit_with_retries("warm-up", job(0)).await;
    let held = ledger.hold_key("the-key").await;
    let request = server.post_jobs("the-key", job(1));
    let asked = tokio::spawn(async move { Some(request.send().await.ok()?.status().as_u16()) });
    ledger.until_waiting_long().await;
    (server, asked, held)
}

#[tokio::test]
async fn a_replica_frozen_between_sending_and_answering_holds_no_key() {
    let ledger = Ledger::new().await;
    let (frozen, asked, held) = frozen_during_a_statement(&ledger).await;
    frozen.signal(Signal::STOP);
    held.roll_back().await;
    // The frozen replica's statement commits without it, so another replica gets the stored answer. If the key were
    // still held, the answer would be 409.
    let other = ledger.serve().await;
    let answer = other.submit("the-key", job(1)).await;
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (200, "true"));
    frozen.signal(Signal::CONT);
    assert_eq!(asked.await.unwrap(), Some(201));
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn a_replica_killed_between_sending_and_answering_holds_no_key() {
    let ledger = Ledger::new().await;
    let (killed, asked, held) = frozen_during_a_statement(&ledger).await;
    killed.signal(Signal::KILL);
    assert!(!killed.ended().await);
    assert_eq!(asked.await.unwrap(), None);
    held.roll_back().await;
    let other = ledger.serve().await;
    // Either order is possible: the database noticed the death before or after the write. There is one job, and an
    // answer.
    let answer = other.submit("the-key", job(1)).await;
    assert!([200, 201].contains(&answer.status), "{answer:?}");
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn a_missing_database_is_reported_and_no_answer_claims_success() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&SHORT_DEADLINES).await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    for answer in [server.submit("key-2", job(2)).await, server.get(&location).await] {
        assert_eq!(answer.status, 503, "{answer:?}");
        answer.assert_retry_after();
        assert!(["database-unavailable", "outcome-unknown"].contains(&answer.problem().as_str()));
    }
    assert_eq!(server.get("/healthz").await.status, 200);
    server.get("/readyz").await.is_problem(503, "not-ready");
    ledger.rename_back_from(&away).await;
    assert_eq!(server.submit_with_retries("key-2", job(2)).await.status, 201);
    server.until_status(&location, 200).await;
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn a_lost_attempt_stays_unknown_when_the_next_one_fails() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    // Two reads without an answer take three seconds, so a third is not sent.
    let settings = [&SHORT_DEADLINES[1..], &[("HAPAX__SERVER__REQUEST_DEADLINE", "2900ms")]].concat();
    let server = ledger.serve_through(&proxy, &settings).await;
    server.submit_with_retries("warm-up", job(0)).await;
    // The first attempt commits and is cut off. The second finds the key taken. The read of the existing row is never
    // answered.
    proxy.fail_next("the-key", Fault::CutAfter);
    proxy.then_fail_after(1, "the-key", Fault::BlackHole);
    proxy.then_fail_after(0, "the-key", Fault::BlackHole);
    server.submit("the-key", job(1)).await.is_problem(503, "outcome-unknown");
    assert!(proxy.is_done());
    assert_eq!(server.submit("the-key", job(1)).await.status, 200);
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn reconnecting_after_an_outage_stays_within_the_connection_limit() {
    let ledger = Ledger::new().await;
    let settings = [
        ("HAPAX__INTAKE__WRITERS", "3"),
        ("HAPAX__ACCESS__CACHE_LIFE", "1h"),
        ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "1h"),
    ];
    let server = ledger.serve_with(&settings).await;
    server.submit_with_retries("warm-up", job(0)).await;
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    let requests: Vec<_> = (0..40).map(|n| server.submit_in_background(&format!("key-{n}"), job(n))).collect();
    // The writers have lost their connections and retry to connect.
    server.until_metric(r#"hapax_database_retries_total{reason="connect"}"#, 80.0).await;
    ledger.rename_back_from(&away).await;
    for request in requests {
        assert_eq!(request.await.unwrap().status, 201);
    }
    let open = server.metric(r#"hapax_database_connections{pool="writers",state="idle"}"#).await;
    assert!(open <= 3.0, "{open}");
    ledger.assert_consistent(41).await;
}

async fn count_jobs(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from hapax.jobs").fetch_one(connection).await
}

async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await
}

const MINUTE: Duration = Duration::from_secs(60);

/// Settings of a test's own pool, with long timeouts.
fn long_timeouts(ledger: &Ledger) -> Settings {
    Settings {
        options: PgConnectOptions::from_str(&ledger.url).unwrap(),
        pooler: Pooler::None,
        connect_timeout: MINUTE,
        acquire_timeout: MINUTE,
        statement_timeout: MINUTE,
        lock_timeout: MINUTE,
        idle_in_transaction_timeout: MINUTE,
    }
}

#[tokio::test]
async fn an_abandoned_statement_finishes_and_its_connection_is_reused() {
    let ledger = Ledger::new().await;
    let pool = Pool::new(
        "test",
        Settings { lock_timeout: Duration::from_secs(1), ..long_timeouts(&ledger) },
        1,
        Metrics::new(),
    );
    let later = || Instant::now() + MINUTE;
    let first = pool.read("test", later(), backend).await.unwrap();
    // First it is cut off while it is prepared, then while it is executed; the last time it fails after the request has
    // gone.
    for roll_back in [true, true, false] {
        let held = ledger.lock_table("jobs", "access exclusive").await;
        let cut_off = pool.complete("test", Instant::now() + Duration::from_millis(100), count_jobs).await;
        assert!(matches!(cut_off, Err(DatabaseError::Unknown)), "{cut_off:?}");
        let dropped = tokio::time::timeout(Duration::from_millis(100), pool.read("test", later(), count_jobs)).await;
        assert!(dropped.is_err());
        if roll_back {
            held.roll_back().await;
            assert_eq!(pool.read("test", later(), count_jobs).await.unwrap(), 0);
            assert_eq!(pool.read("test", later(), backend).await.unwrap(), first);
        } else {
            assert_eq!(pool.read("test", later(), backend).await.unwrap(), first);
            held.roll_back().await;
        }
    }
}

#[tokio::test]
async fn an_abandoned_statement_counts_for_its_tenant_until_it_ends() {
    let ledger = Ledger::new().await;
    let pool = SharedPool::new(Pool::new("test", long_timeouts(&ledger), 2, Metrics::new()));
    let [tenant, other] = [1, 2].map(|number| TenantId(uuid::Uuid::from_u128(number)));
    let later = || Instant::now() + MINUTE;
    let held = ledger.lock_table("jobs", "access exclusive").await;
    tokio::select! {
        counted = pool.read("test", tenant, later(), count_jobs) => panic!("the table is locked: {counted:?}"),
        () = ledger.until_waiting(1) => {}
    }
    let refused = pool.read("test", tenant, Instant::now() + Duration::from_millis(100), backend).await;
    assert!(matches!(refused, Err(DatabaseError::Shed(Shed::TenantWaited))), "{refused:?}");
    assert!(pool.read("test", other, later(), backend).await.is_ok());
    held.roll_back().await;
    assert!(pool.read("test", tenant, later(), backend).await.is_ok());
}

#[tokio::test]
async fn an_opening_connection_counts_for_its_tenant_after_the_request_has_gone() {
    let ledger = Ledger::new().await;
    // The listener accepts no connection, so no session starts.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(silent.local_addr().unwrap().port());
    let pool = SharedPool::new(Pool::new("test", Settings { options, ..long_timeouts(&ledger) }, 2, Metrics::new()));
    let read = async || {
        let deadline = Instant::now() + Duration::from_millis(100);
        pool.read("test", TenantId(uuid::Uuid::from_u128(1)), deadline, backend).await
    };
    let given_up = read().await;
    assert!(matches!(given_up, Err(DatabaseError::Unavailable(_))), "{given_up:?}");
    let refused = read().await;
    assert!(matches!(refused, Err(DatabaseError::Shed(Shed::TenantWaited))), "{refused:?}");
}

/// Advances the clock. The server's answers need a running one.
async fn advance(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::task::yield_now().await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_connection_that_is_idle_for_a_minute_is_closed() {
    let ledger = Ledger::new().await;
    let pool = Pool::new("test", long_timeouts(&ledger), 2, Metrics::new());
    let read = || pool.read("test", Instant::now() + MINUTE, backend);
    let (first, second) = tokio::join!(read(), read());
    let [first, second] = [first, second].map(Result::unwrap);
    advance(Duration::from_secs(50)).await;
    assert_eq!(pool.count().idle, 2);
    let used = read().await.unwrap();
    advance(Duration::from_secs(11)).await;
    assert_eq!(pool.count().idle, 1, "the other one has been idle for a minute");
    let unused = first + second - used;
    ledger.until(&format!("select count(*) from pg_stat_activity where pid = {unused}"), |open| open == 0).await;
    assert_eq!(read().await.unwrap(), used);
    for _ in 0..2 {
        advance(Duration::from_secs(61)).await;
        assert_eq!(pool.count().idle, 0);
        assert_ne!(read().await.unwrap(), used, "a new connection, which the second minute closes, too");
    }
}
