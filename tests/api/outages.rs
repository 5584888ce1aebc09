//! Database outages: unreachable, silent, full, or out of connections. Requests fail fast, nothing is lost, and service
//! resumes without a restart.

use std::time::Duration;

use crate::harness::{
    Fault, Ledger, Load, NO_QUOTAS, OnFailure, OwnPostgres, Proxy, SHORT_DEADLINES, Server, job, until,
};

/// With a short acquire timeout.
const SHORT_ACQUIRE_TIMEOUT: [(&str, &str); 6] = [
    SHORT_DEADLINES[0],
    SHORT_DEADLINES[1],
    SHORT_DEADLINES[2],
    SHORT_DEADLINES[3],
    SHORT_DEADLINES[4],
    ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "200ms"),
];

#[tokio::test]
async fn a_postgresql_crash_loses_and_duplicates_no_job() {
    let postgres = OwnPostgres::start().await;
    let ledger = postgres.ledger().await;
    let settings =
        [("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "false"), ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "200ms")];
    let server = ledger.serve_with(&[&settings[..], &NO_QUOTAS].concat()).await;
    let load = Load::start(&server, 16, OnFailure::Retry);
    load.until_more(201, 100).await;
    postgres.stop_immediately().await;
    load.until_more(503, 50).await;
    assert_eq!(server.get("/healthz").await.status, 200);
    server.get("/readyz").await.is_problem(503, "not-ready");
    postgres.start_again().await;
    load.until_more(201, 100).await;
    let mut tally = load.stop().await;
    let done = tally.jobs.len();
    tally.jobs.sort_unstable();
    tally.jobs.dedup();
    assert_eq!(tally.jobs.len(), done, "no job was answered twice");
    assert!(tally.answers.keys().all(|status| [200, 201, 503].contains(status)), "{:?}", tally.answers);
    // Each client retried until its job was accepted: as many jobs as requests, each with its own key.
    ledger.assert_consistent(done.try_into().unwrap()).await;
    server.until_status("/readyz", 200).await;
}

#[tokio::test]
async fn a_long_outage_fails_fast_and_its_end_is_noticed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&SHORT_ACQUIRE_TIMEOUT[..], &NO_QUOTAS].concat()).await;
    server.submit_with_retries("warm-up", job(0)).await;
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    // The first requests wait and fail. Then nearly all are refused immediately.
    let shed = r#"hapax_shed_requests_total{reason="outage"}"#;
    for _ in 0..400 {
        let answer = server.submit("key-1", job(1)).await;
        assert_eq!(answer.status, 503);
        answer.assert_retry_after();
    }
    let shed = server.metric(shed).await;
    assert!(shed > 200.0, "{shed} of 400 were refused without a look");
    // Requests that tried report the reason.
    server.until_logged("does not exist").await;
    ledger.rename_back_from(&away).await;
    server.submit_with_retries("key-1", job(1)).await;
    server.submit_with_retries("key-2", job(2)).await;
    ledger.assert_consistent(3).await;
}

#[tokio::test]
async fn a_black_holed_database_delays_no_request_beyond_the_deadline() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &SHORT_ACQUIRE_TIMEOUT).await;
    let location = server.submit_with_retries("warm-up", job(0)).await.header("location").to_owned();
    proxy.start_black_hole();
    let requests: Vec<_> = (0..40).map(|n| server.submit_in_background(&format!("key-{n}"), job(n))).collect();
    assert_eq!(server.get("/healthz").await.status, 200);
    server.get(&location).await.assert_retry_after();
    for request in requests {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 503);
        let code = answer.problem();
        assert!(["database-unavailable", "overloaded", "outcome-unknown"].contains(&code.as_str()), "{code}");
        answer.assert_retry_after();
    }
    proxy.end_black_hole();
    for n in 0..40 {
        server.submit_with_retries(&format!("key-{n}"), job(n)).await;
    }
    ledger.assert_consistent(41).await;
}

#[tokio::test]
async fn at_the_connection_limit_open_connections_are_used() {
    let ledger = Ledger::new().await;
    let url = ledger.url_of_ordinary_user().await;
    let server = Server::start(&url, &ledger.token, &[]).await;
    server.submit_with_retries("warm-up", job(0)).await;
    // One connection is the verifier's, one a writer's. Further writers and pools get none.
    ledger.limit_connections(2).await;
    let requests: Vec<_> = (0..60).map(|n| server.submit_in_background(&format!("key-{n}"), job(n))).collect();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 201);
    }
    assert!(server.metric(r#"hapax_database_retries_total{reason="connect"}"#).await > 0.0);
    ledger.limit_connections(-1).await;
    ledger.assert_consistent(61).await;
}

#[tokio::test]
async fn a_blocked_database_gets_409_or_503_and_retries_succeed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&SHORT_ACQUIRE_TIMEOUT).await;
    server.submit_with_retries("warm-up", job(0)).await;
    // Every statement is slow, as on an overloaded disk.
    let blocked = ledger.block_inserts().await;
    let requests: Vec<_> = (0..10).map(|n| server.submit_in_background(&format!("key-{n}"), job(n))).collect();
    for request in requests {
        let answer = request.await.unwrap();
        assert!([409, 503].contains(&answer.status), "{answer:?}");
    }
    blocked.roll_back().await;
    for n in 0..10 {
        server.submit_with_retries(&format!("key-{n}"), job(n)).await;
    }
    ledger.assert_consistent(11).await;
}

#[tokio::test]
async fn a_single_silent_statement_does_not_open_the_circuit_breaker() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &SHORT_ACQUIRE_TIMEOUT).await;
    server.submit_with_retries("warm-up", job(0)).await;
    proxy.fail_next("the-key", Fault::BlackHole);
    let swallowed = server.submit_in_background("the-key", job(1));
    for n in 0..20 {
        server.submit_with_retries(&format!("key-{n}"), job(n)).await;
    }
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="outage"}"#).await, 0.0);
    assert_eq!(swallowed.await.unwrap().status, 201);
    ledger.assert_consistent(22).await;
}

#[tokio::test]
async fn a_full_disk_gets_503_immediately_and_its_end_is_noticed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit_with_retries("warm-up", job(0)).await;
    let full = "create function full_disk() returns trigger language plpgsql as \
                $$ begin raise exception using errcode = '53100', message = 'No space left on device'; end $$; \
                create trigger full_disk before insert on jobs execute function full_disk()";
    ledger.execute(full).await;
    let refused = server.submit("key-1", job(1)).await;
    refused.is_problem(503, "database-unavailable");
    refused.assert_retry_after();
    ledger.execute("drop function full_disk cascade").await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn a_black_holed_first_connection_counts_as_an_outage() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let settings = [&SHORT_ACQUIRE_TIMEOUT[..], &[("HAPAX__DATABASE__CONNECT_TIMEOUT", "300ms")]].concat();
    let server = ledger.serve_through(&proxy, &settings).await;
    // No connection has been opened yet, so none can be lost.
    proxy.start_black_hole();
    let shed = r#"hapax_shed_requests_total{reason="outage"}"#;
    server.submit("key-1", job(1)).await.is_problem(503, "database-unavailable");
    until("the outage is noticed", async || {
        let requests: Vec<_> = (0..10).map(|n| server.submit_in_background(&format!("key-{n}"), job(n))).collect();
        for request in requests {
            assert_eq!(request.await.unwrap().status, 503);
        }
        (server.metric(shed).await >= 1.0).then_some(())
    })
    .await;
    proxy.end_black_hole();
    server.submit_with_retries("key-1", job(1)).await;
}

#[tokio::test]
async fn a_table_lock_is_waited_for_as_long_as_a_key() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__LOCK_WAIT", "300ms")]).await;
    server.submit_with_retries("warm-up", job(0)).await;
    let locked = ledger.lock_table("idempotency_keys", "access exclusive").await;
    server.submit("key-1", job(1)).await.is_problem(409, "request-in-flight");
    locked.roll_back().await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
}

#[tokio::test]
async fn a_read_blocked_by_a_table_lock_gets_503() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__LOCK_WAIT", "300ms")]).await;
    let id = server.submit("key-1", job(1)).await.job_id();
    let locked = ledger.lock_table("jobs", "access exclusive").await;
    for path in [format!("/jobs/{id}"), "/jobs".to_owned()] {
        let refused = server.get(&path).await;
        refused.is_problem(503, "database-unavailable");
        refused.assert_retry_after();
    }
    locked.roll_back().await;
    assert_eq!(server.get("/jobs").await.status, 200);
}

#[tokio::test]
async fn a_replica_without_a_connection_for_a_pool_is_not_ready() {
    let ledger = Ledger::new().await;
    let url = ledger.url_of_ordinary_user().await;
    // One connection for the probes. The first pool that is checked asks for the next.
    ledger.limit_connections(1).await;
    let settings = [&SHORT_ACQUIRE_TIMEOUT[..], &[("HAPAX__CLAIMS__NOTIFY_REPLICAS", "false")]].concat();
    let server = Server::start(&url, &ledger.token, &settings).await;
    until("the replica lacks a connection and is not ready", async || {
        let readiness = server.get("/readyz").await.json();
        readiness["detail"].as_str().is_some_and(|detail| detail.contains("writers")).then_some(())
    })
    .await;
    ledger.limit_connections(-1).await;
    server.until_status("/readyz", 200).await;
    server.submit_with_retries("key-1", job(1)).await;
}

#[tokio::test]
async fn a_server_started_before_its_database_waits_for_it() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    proxy.fail_next("application_name", Fault::CutBefore);
    let server = ledger.serve_through(&proxy, &[]).await;
    assert!(proxy.is_done());
    assert!(server.log_text().contains("waiting for the database"));
    server.until_status("/readyz", 200).await;
}

#[tokio::test]
async fn a_busy_replica_is_ready() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__WRITERS", "2")]).await;
    ledger
        .execute(
            "create function wait() returns trigger language plpgsql as $$ begin \
             perform set_config('lock_timeout', '0', true), pg_advisory_xact_lock_shared(1); return null; end $$; \
             create trigger wait after insert on jobs execute function wait()",
        )
        .await;
    let mut holder = ledger.connect().await;
    sqlx::raw_sql("select pg_advisory_lock(1)").execute(&mut holder).await.unwrap();
    let mut waiting = Vec::new();
    for n in 0..2 {
        // One after the other, so that they do not share a statement.
        waiting.push(server.submit_in_background(&format!("key-{n}"), job(n)));
        ledger.until_waiting(n as i64 + 1).await;
    }
    assert_eq!(server.metric(r#"hapax_database_connections{pool="writers",state="busy"}"#).await, 2.0);
    server.until_status("/readyz", 200).await;
    sqlx::raw_sql("select pg_advisory_unlock(1)").execute(&mut holder).await.unwrap();
    for request in waiting {
        assert_eq!(request.await.unwrap().status, 201);
    }
}

#[tokio::test]
async fn a_slow_network_leaves_a_replica_ready_and_its_connections_open() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger
        .serve_through(&proxy, &[("HAPAX__PURGE__INTERVAL", "1h"), ("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h")])
        .await;
    // Every pool opens its connection.
    server.until_status("/readyz", 200).await;
    server.metrics_text().await;
    server.until_metric_is("hapax_notifications_connected", 1.0).await;
    let sessions = ledger.sessions().await;
    proxy.delay_answers(Duration::from_millis(450));
    for _ in 0..6 {
        assert_eq!(server.get("/readyz").await.status, 200, "{}", server.log_text());
        server.metrics_text().await;
    }
    ledger.until_idle().await;
    assert_eq!(ledger.sessions().await, sessions, "no connection was closed or opened");
}

#[tokio::test]
async fn a_hanging_scrape_leaves_a_replica_ready() {
    let ledger = Ledger::new().await;
    let server =
        ledger.serve_with(&[("HAPAX__PURGE__INTERVAL", "1h"), ("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h")]).await;
    server.until_status("/readyz", 200).await;
    let locked = ledger.lock_table("idempotency_keys", "access exclusive").await;
    let scraped = server.metrics_text().await;
    assert!(scraped.contains("hapax_purge_lag_seconds NaN"), "{scraped}");
    ledger.until_waiting(1).await;
    // A probe without a connection first returns the previous result, and 503 once its own check has failed.
    for _ in 0..6 {
        assert_eq!(server.get("/readyz").await.status, 200, "{}", server.log_text());
    }
    locked.roll_back().await;
}

#[tokio::test]
async fn a_missing_schema_is_reported_and_its_return_noticed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[SHORT_DEADLINES[3]]).await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    ledger.execute("alter schema hapax rename to elsewhere").await;
    for refused in [server.submit("key-2", job(2)).await, server.get(&location).await, server.get("/jobs").await] {
        refused.is_problem(503, "database-unavailable");
        refused.assert_retry_after();
        assert!(refused.json()["detail"].as_str().unwrap().contains("schema"), "{refused:?}");
    }
    server.until_status("/readyz", 503).await;
    ledger.execute("alter schema elsewhere rename to hapax").await;
    assert_eq!(server.submit("key-2", job(2)).await.status, 201);
    assert_eq!(server.get(&location).await.status, 200);
}

#[tokio::test]
async fn the_search_path_of_a_session_does_not_matter() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    ledger.set("search_path", "nowhere").await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    assert_eq!(server.get(&location).await.status, 200);
    assert_eq!(server.get("/jobs").await.json()["jobs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_failed_disk_gets_503_and_a_relayed_termination_is_retried() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit_with_retries("warm-up", job(0)).await;
    ledger.execute("create sequence deaths").await;
    let raising = |code: &str, unless: &str| {
        format!(
            "create or replace function fail() returns trigger language plpgsql as $$ begin \
             if {unless} then return null; end if; \
             raise exception using errcode = '{code}', message = 'as relayed'; end $$"
        )
    };
    ledger.execute(&raising("58030", "false")).await;
    ledger
        .execute("create trigger fail before insert on idempotency_keys for each statement execute function fail()")
        .await;
    let refused = server.submit("key-1", job(1)).await;
    refused.is_problem(503, "database-unavailable");
    refused.assert_retry_after();
    // Citus reports a terminated backend of a worker this way. The sequence also counts attempts that were rolled back.
    ledger.execute(&raising("57P01", "nextval('hapax.deaths') > 1")).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    assert_eq!(server.metric(r#"hapax_database_retries_total{reason="lost"}"#).await, 1.0);
    ledger.assert_consistent(2).await;
}
