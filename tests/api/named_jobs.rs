//! `PUT /jobs/{id}`: jobs whose ids the client chooses.

use serde_json::json;
use uuid::Uuid;

use crate::harness::{Fault, Ledger, Proxy, job};

#[tokio::test]
async fn the_first_put_is_201_and_a_repeated_one_is_200() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let id = Uuid::new_v4().to_string();
    let first = one.put(&id, job(1)).await;
    assert_eq!((first.status, first.header("location")), (201, format!("/jobs/{id}").as_str()));
    assert_eq!(first.job_id(), id);
    // The answer comes from what was submitted, even if the job has changed.
    assert_eq!(one.patch(&id, "*", r#"{"priority":1}"#).await.status, 200);
    for again in [two.put(&id, job(1)).await, two.put(id.to_uppercase(), job(1)).await] {
        assert_eq!((again.status, &again.body), (200, &first.body));
        assert_eq!(again.header("location"), first.header("location"));
    }
    assert_eq!((ledger.jobs().await, ledger.keys().await), (1, 0));
}

#[tokio::test]
async fn any_uuid_except_nil_and_max_is_a_valid_id() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for id in [Uuid::from_u128(1), Uuid::from_u128(u128::MAX - 1), Uuid::new_v4(), Uuid::now_v7()] {
        assert_eq!(server.put(id, job(1)).await.status, 201);
        assert_eq!(server.get(&format!("/jobs/{id}")).await.json()["payload"], json!({ "n": 1 }));
    }
    for bad in ["42", "0e2a5f8e6c1b4f0e9d3c7b5a19283746", "not-a-uuid-but-of-thirty-six-characters"] {
        server.put(bad, job(1)).await.is_problem(400, "invalid-job-id");
    }
    // The value of an unset variable, and a sentinel.
    for none in [Uuid::nil(), Uuid::max()].map(|id| id.to_string()) {
        server.put(&none, job(1)).await.is_problem(400, "invalid-job-id");
        server.get(&format!("/jobs/{none}")).await.is_problem(404, "job-not-found");
        server.delete(&none).await.is_problem(404, "job-not-found");
    }
}

/// Also without an idempotency key: the lost attempt may hold the lock.
#[tokio::test]
async fn a_lock_wait_after_a_lost_attempt_leaves_the_outcome_unknown_on_every_route() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &[("HAPAX__INTAKE__LOCK_WAIT", "100ms")]).await;
    let id = Uuid::new_v4().to_string();
    let (key, name) = (ledger.hold_key("the-payload").await, ledger.hold_new_job(&id).await);
    let body = r#"{"type":"t","payload":"the-payload"}"#;
    proxy.fail_next("the-payload", Fault::CutBefore);
    server.submit("the-payload", body).await.is_problem(503, "outcome-unknown");
    assert!(proxy.is_done());
    proxy.fail_next("the-payload", Fault::CutBefore);
    server.put(&id, body).await.is_problem(503, "outcome-unknown");
    assert!(proxy.is_done());
    // Without a lost attempt, nothing is unknown.
    server.submit("the-payload", body).await.is_problem(409, "request-in-flight");
    server.put(&id, body).await.is_problem(409, "request-in-flight");
    key.roll_back().await;
    name.roll_back().await;
    assert_eq!((server.submit("the-payload", body).await.status, server.put(&id, body).await.status), (201, 201));
}

#[tokio::test]
async fn different_content_is_refused_with_the_differences() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = Uuid::new_v4();
    let first = server.put(id, r#"{"type":"t","payload":{"n":1.0},"run_at":"2030-01-01T00:00:00Z"}"#).await;
    for (other, pointers) in [
        (r#"{"type":"t","payload":{"n":1},"run_at":"2030-01-01T00:00:00Z"}"#, json!(["/payload/n"])),
        (r#"{"type":"t","payload":{"n":1.0}}"#, json!(["/run_at"])),
        (r#"{"type":"u","queue":"q","payload":{"n":1.0},"run_at":"2030-01-01T00:00:00Z"}"#, json!(["/type", "/queue"])),
    ] {
        let refused = server.put(id, other).await;
        refused.is_problem(409, "job-exists-with-other-content");
        assert_eq!((&refused.json()["pointers"], &refused.json()["job_id"]), (&pointers, &first.json()["id"]));
        assert!(refused.headers.get("retry-after").is_none());
    }
    // The same time, written differently.
    let same = server.put(id, r#"{ "run_at":"2030-01-01T01:00:00+01:00", "payload":{"n":1.0}, "type":"t" }"#).await;
    assert_eq!((same.status, same.body), (200, first.body));
}

#[tokio::test]
async fn of_many_concurrent_puts_one_creates_the_job() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let id = Uuid::new_v4();
    let put = |n: usize| {
        let client = (*[&one, &two][n % 2]).clone();
        tokio::spawn(async move { client.put(id, job(n as u64 % 3)).await })
    };
    let mut statuses = Vec::new();
    for asked in (0..60).map(put).collect::<Vec<_>>() {
        statuses.push(asked.await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![200; 19], vec![201; 1], vec![409; 40]].concat());
    assert_eq!((ledger.jobs().await, ledger.number("select count(*) from job_queue").await), (1, 1));
}

#[tokio::test]
async fn a_lost_acknowledgement_is_invisible_to_the_client() {
    for fault in [Fault::CutBefore, Fault::CutAfter] {
        let ledger = Ledger::new().await;
        let proxy = Proxy::in_front_of(&ledger).await;
        let server = ledger.serve_through(&proxy, &[]).await;
        proxy.fail_next("the-payload", fault);
        let id = Uuid::new_v4();
        let answer = server.put(id, r#"{"type":"t","payload":"the-payload"}"#).await;
        assert!(proxy.is_done() && [200, 201].contains(&answer.status), "{answer:?}");
        assert_eq!(answer.job_id(), id.to_string());
        assert_eq!((ledger.jobs().await, ledger.number("select count(*) from job_queue").await), (1, 1));
    }
}

#[tokio::test]
async fn an_id_belongs_to_its_tenant() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let another = server.as_caller(&ledger.token_for("another", &hapax::access::Scope::ALL).await);
    let id = Uuid::new_v4();
    assert_eq!((server.put(id, job(1)).await.status, another.put(id, job(2)).await.status), (201, 201));
    assert_eq!(another.delete(&id.to_string()).await.status, 204);
    assert_eq!(server.get(&format!("/jobs/{id}")).await.json()["payload"], json!({ "n": 1 }));
}

#[tokio::test]
async fn a_deleted_id_cannot_be_used_again() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = Uuid::new_v4();
    // Deleting a missing job leaves no trace.
    assert_eq!(server.delete(&id.to_string()).await.status, 204);
    assert_eq!(server.put(id, job(1)).await.status, 201);
    assert_eq!(server.delete(&id.to_string()).await.status, 204);
    server.put(id, job(1)).await.is_problem(410, "job-deleted");
    server.put(id, job(2)).await.is_problem(410, "job-deleted");
}

#[tokio::test]
async fn an_existing_job_is_returned_even_without_creation_quota() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__CREATIONS_PER_SECOND", "1"), ("HAPAX__QUOTA__CREATIONS_BURST", "2")];
    let server = ledger.serve_with(&settings).await;
    let id = Uuid::new_v4();
    assert_eq!(server.put(id, job(1)).await.status, 201);
    // A request that created nothing is refunded.
    for _ in 0..5 {
        assert_eq!(server.put(id, job(1)).await.status, 200);
    }
    let mut refused = false;
    for _ in 0..100 {
        refused |= server.put(Uuid::new_v4(), job(1)).await.status == 429;
        assert_eq!(server.put(id, job(1)).await.status, 200);
    }
    assert!(refused);
    server.put(id, job(2)).await.is_problem(409, "job-exists-with-other-content");
}
