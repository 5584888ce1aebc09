//! Overload: more requests than one replica can serve, and more connections than it can hold.

use std::process::Command;

use hapax::access::{Scope, Token};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::harness::{Answer, Client, Ledger, Server, hapax, hapax_through, job};

/// A server with this limit on open files.
fn serve_with_descriptors(limit: u32, ledger: &Ledger) -> Command {
    let mut command = hapax_through("sh");
    let program = hapax().get_program().to_owned();
    command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" serve --bind 127.0.0.1:0")]).arg(program);
    command.env("DATABASE_URL", &ledger.url).env("HAPAX__METRICS__BIND", "127.0.0.1:0");
    command.env("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "true");
    command
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_probes_still_answer() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__CONNECTIONS", "4")]).await;
    let operations: Client = server.operations();
    operations.until_status("/readyz", 200).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(server.raw().await);
    }
    server.until_metric("hapax_http_connections", 4.0).await;
    let waiting = server.submit_in_background("k", job(1));
    assert_eq!(operations.get("/healthz").await.status, 200);
    operations.until_status("/readyz", 200).await;
    assert_eq!(server.metric("hapax_http_connections_limit").await, 4.0);
    assert!(!waiting.is_finished());
    drop(idle);
    assert_eq!(waiting.await.unwrap().status, 201);
}

#[tokio::test]
async fn few_file_descriptors_limit_the_connections() {
    let ledger = Ledger::new().await;
    let server = Server::spawn(serve_with_descriptors(200, &ledger), &ledger.token).await;
    let limit = server.metric("hapax_http_connections_limit").await;
    assert!((1.0..200.0).contains(&limit), "{limit}");
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(server.raw().await);
    }
    server.until_metric("hapax_http_connections", limit).await;
    assert_eq!(server.operations().get("/healthz").await.status, 200);
    drop(idle);
    assert_eq!(server.submit("k", job(1)).await.status, 201);
}

#[tokio::test]
async fn a_too_low_descriptor_limit_prevents_the_start() {
    let ledger = Ledger::new().await;
    let mut command = serve_with_descriptors(100, &ledger);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("server.connections"), "{said}");
}

#[tokio::test]
async fn a_tenant_with_slow_requests_leaves_room_for_others() {
    let ledger = Ledger::new().await;
    let share = [("HAPAX__SERVER__REQUESTS_IN_FLIGHT", "4"), ("HAPAX__SERVER__REQUESTS_IN_FLIGHT_PER_TENANT", "2")];
    let server = ledger.serve_with(&share).await;
    let mut slow = Vec::new();
    for n in 0..2 {
        let mut connection = server.raw().await;
        let key = format!("idempotency-key: slow-{n}");
        let head: [&[u8]; 3] = [key.as_bytes(), b"content-type: application/json", b"content-length: 1000"];
        connection.write_head("POST /jobs", &head).await;
        slow.push(connection);
    }
    server.until_metric("hapax_http_requests_in_flight", 2.0).await;
    server.submit("one-more", job(1)).await.is_problem(503, "overloaded");
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="tenant_in_flight"}"#).await, 1.0);
    let other = server.as_caller(&ledger.token_for("another-tenant", &Scope::ALL).await);
    assert_eq!(other.submit("key", job(1)).await.status, 201);
}

/// Statements wait for a lock as long as the test holds it. Requests wait less long for a connection.
const LONG_LOCK_WAIT: [(&str, &str); 4] = [
    ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "5s"),
    ("HAPAX__INTAKE__LOCK_WAIT", "60s"),
    ("HAPAX__DATABASE__STATEMENT_TIMEOUT", "90s"),
    ("HAPAX__SERVER__REQUEST_DEADLINE", "120s"),
];

fn get_in_background(client: &Client, path: &'static str) -> JoinHandle<Answer> {
    let client = client.clone();
    tokio::spawn(async move { client.get(path).await })
}

#[tokio::test]
async fn unverified_requests_do_not_count_as_in_flight() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__SERVER__REQUESTS_IN_FLIGHT", "2"), ("HAPAX__ACCESS__CACHE_LIFE", "1h")];
    let server = ledger.serve_with(&settings).await;
    server.submit_with_retries("warm-up", job(0)).await;
    let locked = ledger.lock_table("access_tokens", "access exclusive").await;
    let strangers: Vec<_> =
        (0..20).map(|_| get_in_background(&server.as_caller(Token::mint().expose()), "/jobs")).collect();
    ledger.until_waiting(1).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    locked.roll_back().await;
    for stranger in strangers {
        assert!([401, 503].contains(&stranger.await.unwrap().status));
    }
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="in_flight"}"#).await, 0.0);
}

#[tokio::test]
async fn a_slow_look_up_of_an_unseen_token_gets_503_and_logs_no_error() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let locked = ledger.lock_table("access_tokens", "access exclusive").await;
    for n in 1..=2 {
        let refused = server.as_caller(Token::mint().expose()).get("/jobs").await;
        refused.is_problem(503, "overloaded");
        refused.assert_retry_after();
        assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="unknown_tokens"}"#).await, f64::from(n));
        assert_eq!(server.warnings_of_requests(&refused).await, [0; 0]);
    }
    server.until_logged("access tokens could not be looked up").await;
    locked.roll_back().await;
}

#[tokio::test]
async fn hanging_look_ups_of_unseen_tokens_leave_connections_for_known_ones() {
    let ledger = Ledger::new().await;
    let url = ledger.url_of_ordinary_user().await;
    let settings = [("HAPAX__ACCESS__CACHE_LIFE", "0s"), ("HAPAX__ACCESS__OUTAGE_LIFE", "0s")];
    let server = Server::start(&url, &ledger.token, &settings).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    let unseen = ledger.tokens_for("acme", 2).await;
    ledger
        .execute(
            "create function wait() returns boolean language plpgsql as \
             $$ begin perform pg_advisory_xact_lock_shared(1); return true; end $$; \
             update access_tokens set name = 'slow' where scopes = '{submit,read}'; \
             create policy slow on access_tokens using (name is distinct from 'slow' or wait()); \
             alter table access_tokens enable row level security",
        )
        .await;
    let held = ledger.hold("select pg_advisory_xact_lock(1)").await;
    for token in unseen {
        server.as_caller(&token).get("/jobs").await.is_problem(503, "overloaded");
        ledger.until_waiting(1).await;
    }
    assert_eq!(server.submit("key-1", job(1)).await.status, 200);
    held.roll_back().await;
}

#[tokio::test]
async fn a_tenant_with_hanging_reads_leaves_connections_to_others() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&LONG_LOCK_WAIT[..], &[("HAPAX__DATABASE__CONNECTIONS", "2")]].concat()).await;
    let other = server.as_caller(&ledger.token_for("another-tenant", &Scope::ALL).await);
    let locked = ledger.lock_table("job_queue", "access exclusive").await;
    let first = get_in_background(&server, "/queues");
    ledger.until_waiting(1).await;
    server.get("/queues").await.is_problem(503, "overloaded");
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="tenant_waited"}"#).await, 1.0);
    other.get("/idempotency-keys/k").await.is_problem(404, "key-not-found");
    locked.roll_back().await;
    assert_eq!(first.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_tenant_with_hanging_unique_jobs_leaves_connections_to_others() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&LONG_LOCK_WAIT[..], &[("HAPAX__INTAKE__CONNECTIONS", "2")]].concat()).await;
    let other = server.as_caller(&ledger.token_for("another-tenant", &Scope::ALL).await);
    let unique = |n: u64| json!({ "type": "t", "payload": n, "unique": { "by": ["/payload"] } });
    let locked = ledger.lock_table("job_uniques", "access exclusive").await;
    let first = server.submit_in_background("key-1", unique(1));
    ledger.until_waiting(1).await;
    server.submit("key-2", unique(2)).await.is_problem(503, "overloaded");
    assert_eq!(other.put(uuid::Uuid::now_v7(), job(1)).await.status, 201);
    locked.roll_back().await;
    assert_eq!(first.await.unwrap().status, 201);
}

#[tokio::test]
async fn a_cancelled_statement_is_not_reported_as_an_outage() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&LONG_LOCK_WAIT).await;
    let locked = ledger.lock_table("jobs", "access exclusive").await;
    for _ in 0..3 {
        let read = get_in_background(&server, "/jobs");
        ledger.until_waiting(1).await;
        assert_eq!(ledger.cancel_waiting().await, 1);
        let cancelled = read.await.unwrap();
        cancelled.is_problem(503, "statement-timeout");
        let seconds: u64 = cancelled.header("retry-after").parse().unwrap();
        assert!((5..=10).contains(&seconds) && cancelled.json()["retryable"] == true, "{cancelled:?}");
    }
    locked.roll_back().await;
    assert_eq!(server.get("/jobs").await.status, 200);
    assert!(!server.log_text().contains("the database is not available"));
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="outage"}"#).await, 0.0);
}
