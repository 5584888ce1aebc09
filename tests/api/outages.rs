//! The database away, silent, full, or without room: refused at once, nothing lost, back by itself.

use std::time::Duration;

use crate::harness::{Ledger, Load, NO_QUOTAS, OwnPostgres, Persistence, Proxy, QUICK, Server, Treatment, job, until};

/// And who waits for a connection is told sooner.
const IMPATIENT: [(&str, &str); 6] =
    [QUICK[0], QUICK[1], QUICK[2], QUICK[3], QUICK[4], ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "200ms")];

#[tokio::test]
async fn a_postgresql_stopped_immediately_and_started_again_loses_nothing_and_doubles_nothing() {
    let postgres = OwnPostgres::start().await;
    let ledger = postgres.ledger().await;
    let settings =
        [("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "false"), ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "200ms")];
    let server = ledger.serve_with(&[&settings[..], &NO_QUOTAS].concat()).await;
    let load = Load::start(&server, 16, Persistence::Retries);
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
    assert_eq!(tally.jobs.len(), done, "no job was answered for twice");
    assert!(tally.answers.keys().all(|status| [200, 201, 503].contains(status)), "{:?}", tally.answers);
    // Each client went on until its job was done: as many jobs as requests, and every key names its own.
    ledger.is_whole_with(done.try_into().unwrap()).await;
    server.until_status("/readyz", 200).await;
}

#[tokio::test]
async fn an_outage_that_has_lasted_is_not_waited_for_and_its_end_is_seen() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&IMPATIENT[..], &NO_QUOTAS].concat()).await;
    assert_eq!(server.submit("warm-up", job(0)).await.status, 201);
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    // The first to come wait, and learn that it is away; then nearly all are refused without a look.
    let shed = r#"hapax_shed_requests_total{reason="outage"}"#;
    for _ in 0..400 {
        let answer = server.submit("key-1", job(1)).await;
        assert_eq!(answer.status, 503);
        answer.wants_a_retry();
    }
    let shed = server.metric(shed).await;
    assert!(shed > 200.0, "{shed} of 400 were refused without a look");
    // Those who looked say why.
    server.until_logged("does not exist").await;
    ledger.rename_back_from(&away).await;
    assert_eq!(server.submit_until_done("key-1", job(1)).await.status, 201);
    assert_eq!(server.submit("key-2", job(2)).await.status, 201);
    ledger.is_whole_with(3).await;
}

#[tokio::test]
async fn a_database_that_swallows_everything_keeps_nobody_beyond_the_deadline() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::before(&ledger).await;
    let server = ledger.serve_through(&proxy, &IMPATIENT).await;
    let location = server.submit("warm-up", job(0)).await.header("location").to_owned();
    proxy.swallow_everything();
    let requests: Vec<_> = (0..40).map(|n| server.submit_meanwhile(&format!("key-{n}"), job(n))).collect();
    assert_eq!(server.get("/healthz").await.status, 200);
    server.get(&location).await.wants_a_retry();
    for request in requests {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 503);
        let code = answer.problem();
        assert!(["database-unavailable", "overloaded", "outcome-unknown"].contains(&code.as_str()), "{code}");
        answer.wants_a_retry();
    }
    proxy.pass_everything();
    for n in 0..40 {
        let answer = server.submit_until_done(&format!("key-{n}"), job(n)).await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
    }
    ledger.is_whole_with(41).await;
}

#[tokio::test]
async fn a_postgresql_without_room_for_more_connections_is_used_with_those_that_are_open() {
    let ledger = Ledger::new().await;
    let url = ledger.url_of_ordinary_user().await;
    let server = Server::start(&url, &ledger.token, &[]).await;
    assert_eq!(server.submit("warm-up", job(0)).await.status, 201);
    // One is the verifier's, one a writer's; there would be another writer, and other pools.
    ledger.limit_connections(2).await;
    let requests: Vec<_> = (0..60).map(|n| server.submit_meanwhile(&format!("key-{n}"), job(n))).collect();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 201);
    }
    assert!(server.metric(r#"hapax_database_retries_total{reason="connect"}"#).await > 0.0);
    ledger.limit_connections(-1).await;
    ledger.is_whole_with(61).await;
}

#[tokio::test]
async fn a_database_that_is_slow_refuses_in_time_and_serves_whom_it_can() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&IMPATIENT).await;
    assert_eq!(server.submit("warm-up", job(0)).await.status, 201);
    // Every statement takes its time, as on a disk that has no more to give.
    let blocked = ledger.lock_table("jobs", "share").await;
    let requests: Vec<_> = (0..10).map(|n| server.submit_meanwhile(&format!("key-{n}"), job(n))).collect();
    for request in requests {
        let answer = request.await.unwrap();
        assert!([409, 503].contains(&answer.status), "{answer:?}");
    }
    blocked.roll_back().await;
    for n in 0..10 {
        assert_eq!(server.submit_until_done(&format!("key-{n}"), job(n)).await.status, 201);
    }
    ledger.is_whole_with(11).await;
}

#[tokio::test]
async fn a_swallowed_statement_is_not_taken_for_an_outage() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::before(&ledger).await;
    let server = ledger.serve_through(&proxy, &IMPATIENT).await;
    assert_eq!(server.submit("warm-up", job(0)).await.status, 201);
    proxy.treat_next("the-key", Treatment::Swallow);
    let swallowed = server.submit_meanwhile("the-key", job(1));
    for n in 0..20 {
        assert_eq!(server.submit_until_done(&format!("key-{n}"), job(n)).await.status, 201);
    }
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="outage"}"#).await, 0.0);
    assert_eq!(swallowed.await.unwrap().status, 201);
    ledger.is_whole_with(22).await;
}

#[tokio::test]
async fn a_full_disk_is_refused_at_once_and_its_end_is_noticed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    assert_eq!(server.submit("warm-up", job(0)).await.status, 201);
    let full = "create function full_disk() returns trigger language plpgsql as \
                $$ begin raise exception using errcode = '53100', message = 'No space left on device'; end $$; \
                create trigger full_disk before insert on jobs execute function full_disk()";
    ledger.execute(full).await;
    let refused = server.submit("key-1", job(1)).await;
    refused.is_problem(503, "database-unavailable");
    refused.wants_a_retry();
    ledger.execute("drop function full_disk cascade").await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    ledger.is_whole_with(2).await;
}

#[tokio::test]
async fn a_database_whose_network_swallows_the_first_connection_is_away_and_not_busy() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::before(&ledger).await;
    let settings = [&IMPATIENT[..], &[("HAPAX__DATABASE__CONNECT_TIMEOUT", "300ms")]].concat();
    let server = ledger.serve_through(&proxy, &settings).await;
    // Nobody has been here yet: there is no connection to be lost.
    proxy.swallow_everything();
    let shed = r#"hapax_shed_requests_total{reason="outage"}"#;
    server.submit("key-1", job(1)).await.is_problem(503, "database-unavailable");
    until("it is taken for away", async || {
        let requests: Vec<_> = (0..10).map(|n| server.submit_meanwhile(&format!("key-{n}"), job(n))).collect();
        for request in requests {
            assert_eq!(request.await.unwrap().status, 503);
        }
        (server.metric(shed).await >= 1.0).then_some(())
    })
    .await;
    proxy.pass_everything();
    assert_eq!(server.submit_until_done("key-1", job(1)).await.status, 201);
}

#[tokio::test]
async fn a_lock_on_a_whole_table_is_waited_for_as_long_as_one_on_a_key() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__LOCK_WAIT", "300ms")]).await;
    assert_eq!(server.submit("warm-up", job(0)).await.status, 201);
    let locked = ledger.lock_table("idempotency_keys", "access exclusive").await;
    server.submit("key-1", job(1)).await.is_problem(409, "request-in-flight");
    locked.roll_back().await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
}

#[tokio::test]
async fn a_read_that_meets_a_lock_on_a_whole_table_is_unavailable_and_not_in_flight() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__LOCK_WAIT", "300ms")]).await;
    let id = server.submit("key-1", job(1)).await.job_id();
    let locked = ledger.lock_table("jobs", "access exclusive").await;
    for path in [format!("/jobs/{id}"), "/jobs".to_owned()] {
        let refused = server.get(&path).await;
        refused.is_problem(503, "database-unavailable");
        refused.wants_a_retry();
    }
    locked.roll_back().await;
    assert_eq!(server.get("/jobs").await.status, 200);
}

#[tokio::test]
async fn a_replica_that_gets_no_connection_to_serve_with_is_not_ready() {
    let ledger = Ledger::new().await;
    let url = ledger.url_of_ordinary_user().await;
    // One for the probes; the next is asked for by the first pool that is looked at.
    ledger.limit_connections(1).await;
    let server = Server::start(&url, &ledger.token, &IMPATIENT).await;
    until("it is not ready for want of one", async || {
        let readiness = server.get("/readyz").await.json();
        readiness["detail"].as_str().is_some_and(|detail| detail.contains("writers")).then_some(())
    })
    .await;
    ledger.limit_connections(-1).await;
    server.until_status("/readyz", 200).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
}

#[tokio::test]
async fn a_server_that_starts_before_its_database_waits_for_it() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::before(&ledger).await;
    proxy.treat_next("application_name", Treatment::CutBefore);
    let server = ledger.serve_through(&proxy, &[]).await;
    assert!(proxy.is_done());
    assert!(server.log_text().contains("waiting for the database"));
    server.until_status("/readyz", 200).await;
}

#[tokio::test]
async fn a_replica_that_is_busy_is_ready_all_the_same() {
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
        // One after the other, or they might ride together.
        waiting.push(server.submit_meanwhile(&format!("key-{n}"), job(n)));
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
async fn a_slow_link_leaves_a_replica_ready_and_its_connections_open() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::before(&ledger).await;
    let server = ledger.serve_through(&proxy, &[("HAPAX__PURGE__INTERVAL", "1h")]).await;
    // Every pool gets its connection.
    server.until_status("/readyz", 200).await;
    server.metrics_text().await;
    let sessions = ledger.sessions().await;
    proxy.delay_answers(Duration::from_millis(450));
    for _ in 0..6 {
        assert_eq!(server.get("/readyz").await.status, 200, "{}", server.log_text());
        server.metrics_text().await;
    }
    ledger.until_idle().await;
    assert_eq!(ledger.sessions().await, sessions, "none was closed, and none opened");
}

#[tokio::test]
async fn a_scrape_whose_statement_hangs_leaves_a_replica_ready() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__PURGE__INTERVAL", "1h")]).await;
    server.until_status("/readyz", 200).await;
    let locked = ledger.lock_table("idempotency_keys", "access exclusive").await;
    let scraped = server.metrics_text().await;
    assert!(scraped.contains("hapax_purge_lag_seconds NaN"), "{scraped}");
    ledger.until_waiting(1).await;
    // A probe without a connection answers with the last result at first, and 503 once its own look has failed.
    for _ in 0..6 {
        assert_eq!(server.get("/readyz").await.status, 200, "{}", server.log_text());
    }
    locked.roll_back().await;
}

#[tokio::test]
async fn a_schema_that_is_not_where_the_session_looks_is_said_to_be_and_its_return_is_noticed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[QUICK[3]]).await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    ledger.set("search_path", "nowhere").await;
    for refused in [server.submit("key-2", job(2)).await, server.get(&location).await, server.get("/jobs").await] {
        refused.is_problem(503, "database-unavailable");
        refused.wants_a_retry();
        assert!(refused.json()["detail"].as_str().unwrap().contains("search_path"), "{refused:?}");
    }
    server.until_status("/readyz", 503).await;
    // Sessions that are open keep the wrong one, but are not used again.
    ledger.execute(&format!("alter database {} set search_path = public", ledger.name)).await;
    assert_eq!(server.submit("key-2", job(2)).await.status, 201);
    assert_eq!(server.get(&location).await.status, 200);
}

#[tokio::test]
async fn a_disk_that_fails_is_unavailable_and_a_relayed_death_is_sent_again() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    assert_eq!(server.submit("warm-up", job(0)).await.status, 201);
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
    refused.wants_a_retry();
    // Citus says so of a worker's backend that was told to go. A sequence counts attempts that were rolled back, too.
    ledger.execute(&raising("57P01", "nextval('deaths') > 1")).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    assert_eq!(server.metric(r#"hapax_database_retries_total{reason="lost"}"#).await, 1.0);
    ledger.is_whole_with(2).await;
}
