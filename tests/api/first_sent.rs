//! `Repeatability-First-Sent`: a copy that arrives after its key has expired is not executed.

use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::harness::{Answer, Client, Ledger, job};

const HOUR: Duration = Duration::from_secs(60 * 60);

fn dated(request: reqwest::RequestBuilder, ago: Duration) -> reqwest::RequestBuilder {
    request.header("repeatability-first-sent", httpdate::fmt_http_date(SystemTime::now() - ago))
}

async fn submit(client: &Client, key: &str, n: u64, ago: Duration) -> Answer {
    client.send(dated(client.post_jobs(key, job(n)), ago)).await
}

#[tokio::test]
async fn a_request_first_sent_before_the_key_lifetime_is_not_executed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let late = submit(&server, "k", 1, 24 * HOUR).await;
    late.is_problem(412, "first-sent-too-old");
    assert_eq!((late.json()["retryable"].as_bool(), late.headers.get("retry-after")), (Some(false), None));
    ledger.assert_consistent(0).await;
    // The key stays unused.
    assert_eq!(submit(&server, "k", 1, 23 * HOUR).await.status, 201);
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn a_late_copy_gets_the_stored_answer_until_its_key_expires() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = submit(&server, "k", 1, 23 * HOUR).await;
    let late = submit(&server, "k", 1, 30 * HOUR).await;
    assert_eq!((late.status, late.header("idempotent-replayed"), &late.body), (200, "true", &first.body));
    let other = submit(&server, "k", 2, 30 * HOUR).await;
    other.is_problem(422, "idempotency-key-reused");
    assert_eq!(other.json()["pointers"], json!(["/payload/n"]));
    ledger.expire("k").await;
    submit(&server, "k", 1, 30 * HOUR).await.is_problem(412, "first-sent-too-old");
    assert_eq!(ledger.jobs().await, 1);
}

#[tokio::test]
async fn a_late_copy_does_not_adopt_a_job_with_the_same_content() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let unique = json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    server.submit("a", &unique).await;
    let late = server.send(dated(server.post_jobs("b", &unique), 24 * HOUR)).await;
    late.is_problem(412, "first-sent-too-old");
    assert_eq!(ledger.keys().await, 1);
}

#[tokio::test]
async fn a_late_change_is_executed_only_without_a_key() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    let change = |priority: u8| dated(server.patch_job(&id, "*", json!({ "priority": priority })), 24 * HOUR);
    server.send(change(1).header("idempotency-key", "c")).await.is_problem(412, "first-sent-too-old");
    assert_eq!(ledger.number("select version::bigint from job_queue").await, 1);
    let first = server.patch_job(&id, "*", json!({ "priority": 1 })).header("idempotency-key", "c");
    let first = server.send(first).await;
    let late = server.send(change(1).header("idempotency-key", "c")).await;
    assert_eq!((late.status, late.header("idempotent-replayed"), &late.body), (200, "true", &first.body));
    assert_eq!(server.send(change(3)).await.status, 200);
}

#[tokio::test]
async fn a_late_batch_is_refused_item_by_item() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("known", job(1)).await;
    let lines = ["known", "new"].map(|key| json!({ "idempotency_key": key, "job": job(1) }).to_string()).join("\n");
    let batch = server.request("POST", "/jobs/batch").header("content-type", "application/x-ndjson").body(lines);
    let items = server.send(dated(batch, 24 * HOUR)).await.items();
    assert_eq!(items[0].status, 200);
    items[1].is_problem(412, "first-sent-too-old");
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn keys_with_a_lifetime_of_the_request_deadline_work() {
    let ledger = Ledger::new().await;
    let lives = [("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "10m"), ("HAPAX__SERVER__REQUEST_DEADLINE", "10m")];
    let server = ledger.serve_with(&lives).await;
    assert_eq!(submit(&server, "k", 1, Duration::ZERO).await.status, 201);
    assert_eq!(submit(&server, "k", 1, Duration::ZERO).await.status, 200);
    // One minute of clock tolerance leaves two seconds. A request that waits for another longer than that is not
    // executed.
    let held = ledger.hold_key("held").await;
    let late = submit(&server, "held", 2, Duration::from_secs(10 * 60 - 62)).await;
    assert!([409, 412, 503].contains(&late.status), "{late:?}");
    // Its last statement may wait a few more milliseconds for the lock.
    ledger.until_idle().await;
    held.roll_back().await;
    ledger.assert_consistent(1).await;
}
