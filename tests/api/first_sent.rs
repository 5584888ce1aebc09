//! `Repeatability-First-Sent`: a copy that comes after its key has expired does nothing.

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
async fn a_request_that_was_first_sent_longer_ago_than_keys_live_is_not_carried_out() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let late = submit(&server, "k", 1, 24 * HOUR).await;
    late.is_problem(412, "first-sent-too-old");
    assert_eq!((late.json()["retryable"].as_bool(), late.headers.get("retry-after")), (Some(false), None));
    ledger.is_whole_with(0).await;
    // The key is not used up.
    assert_eq!(submit(&server, "k", 1, 23 * HOUR).await.status, 201);
    ledger.is_whole_with(1).await;
}

#[tokio::test]
async fn a_late_copy_gets_the_outcome_that_its_key_still_stands_for_and_nothing_once_it_has_expired() {
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
async fn a_late_copy_adopts_no_job_of_the_same_content() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let unique = json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    server.submit("a", &unique).await;
    let late = server.send(dated(server.post_jobs("b", &unique), 24 * HOUR)).await;
    late.is_problem(412, "first-sent-too-old");
    assert_eq!(ledger.keys().await, 1);
}

#[tokio::test]
async fn a_late_change_is_not_made_and_one_without_a_key_needs_no_guard() {
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
async fn a_late_batch_is_answered_item_by_item() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("known", job(1)).await;
    let lines = ["known", "new"].map(|key| json!({ "idempotency_key": key, "job": job(1) }).to_string()).join("\n");
    let batch = server.request("POST", "/jobs/batch").header("content-type", "application/x-ndjson").body(lines);
    let items = server.send(dated(batch, 24 * HOUR)).await.items();
    assert_eq!(items[0].status, 200);
    items[1].is_problem(412, "first-sent-too-old");
    ledger.is_whole_with(1).await;
}

#[tokio::test]
async fn keys_that_live_no_longer_than_a_request_may_take_are_taken_with_the_time_of_the_first_copy() {
    let ledger = Ledger::new().await;
    let lives = [("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "10m"), ("HAPAX__SERVER__REQUEST_DEADLINE", "10m")];
    let server = ledger.serve_with(&lives).await;
    assert_eq!(submit(&server, "k", 1, Duration::ZERO).await.status, 201);
    assert_eq!(submit(&server, "k", 1, Duration::ZERO).await.status, 200);
    // A minute for clocks that differ leaves two seconds. A request that would wait for another is not carried out after.
    let held = ledger.hold_key("held").await;
    let late = submit(&server, "held", 2, Duration::from_secs(10 * 60 - 62)).await;
    assert!([409, 412, 503].contains(&late.status), "{late:?}");
    // Its last statement may wait for the lock for some milliseconds more.
    ledger.until_idle().await;
    held.roll_back().await;
    ledger.is_whole_with(1).await;
}
