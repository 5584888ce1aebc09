//! The replay cache, and concurrent copies of a request.

use hapax::access::Scope;

use crate::harness::{Ledger, REPLAY_CACHE_ON, SHORT_DEADLINES, job};

const REMEMBERED: &str = r#"hapax_replay_cache_lookups_total{result="remembered"}"#;

#[tokio::test]
async fn a_cached_replay_does_not_touch_the_database() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&REPLAY_CACHE_ON).await;
    let first = server.submit("key-1", job(1)).await;
    let held = ledger.hold("lock table idempotency_keys, jobs in access exclusive mode").await;
    for _ in 0..3 {
        let again = server.submit("key-1", job(1)).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (200, "true"));
        for field in ["location", "idempotency-expires", "content-type"] {
            assert_eq!(again.header(field), first.header(field));
        }
        assert_eq!(again.body, first.body);
    }
    held.roll_back().await;
    assert_eq!(server.metric(REMEMBERED).await, 3.0);
    assert!(server.metric("hapax_replay_cache_bytes").await > 400.0);
}

#[tokio::test]
async fn another_replicas_outcome_is_cached_once_read() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve_with(&REPLAY_CACHE_ON).await);
    let first = one.submit("key-1", job(1)).await;
    for _ in 0..2 {
        let again = two.submit("key-1", job(1)).await;
        assert_eq!((again.status, &again.body), (200, &first.body));
    }
    assert_eq!(two.metric(REMEMBERED).await, 1.0);
}

#[tokio::test]
async fn a_cached_outcome_answers_only_the_same_request() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&REPLAY_CACHE_ON).await;
    let first = server.submit("key-1", job(1)).await;
    let other = server.submit("key-1", job(2)).await;
    other.is_problem(422, "idempotency-key-reused");
    assert_eq!(other.json()["job_id"], first.json()["id"]);
    assert_eq!(other.json()["pointers"], serde_json::json!(["/payload/n"]));
    assert_eq!(server.submit("key-1", job(1)).await.body, first.body);
}

#[tokio::test]
async fn a_cached_outcome_is_not_shown_to_another_tenant() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&REPLAY_CACHE_ON).await;
    let first = server.submit("key-1", job(1)).await;
    let reader = server.as_caller(&ledger.token_for("acme", &[Scope::Read]).await);
    reader.submit("key-1", job(1)).await.is_problem(403, "missing-scope");
    let other = server.as_caller(&ledger.token_for("umbrella", &[Scope::Submit]).await);
    let others = other.submit("key-1", job(1)).await;
    assert_eq!(others.status, 201);
    assert_ne!(others.body, first.body);
}

#[tokio::test]
async fn no_outcome_is_cached_beyond_its_expiry() {
    let ledger = Ledger::new().await;
    let settings = [&REPLAY_CACHE_ON[..], &[("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "1s")]].concat();
    let server = ledger.serve_with(&settings).await;
    let first = server.submit("key-1", job(1)).await;
    server.cancel(&first.job_id()).await;
    let alive = "select count(*) from idempotency_keys \
                 where key_kept_until(tenant_id, job_id, expires_at, time_to_live_seconds) > clock_timestamp()";
    loop {
        let alive = ledger.number(alive).await == 1;
        let again = server.submit("key-1", job(1)).await;
        match again.status {
            201 => break assert_ne!(again.body, first.body),
            200 => assert!(alive, "replayed after the key had expired"),
            status => panic!("{status}"),
        }
    }
    assert_eq!(ledger.jobs().await, 2);
}

#[tokio::test]
async fn of_concurrent_copies_one_asks_the_database() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&REPLAY_CACHE_ON).await;
    let held = ledger.hold_key("key-1").await;
    let copies: Vec<_> = (0..20).map(|_| server.submit_in_background("key-1", job(1))).collect();
    server.until_metric("hapax_http_requests_in_flight", 20.0).await;
    ledger.until_waiting(1).await;
    held.roll_back().await;
    let mut statuses = Vec::new();
    for copy in copies {
        statuses.push(copy.await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![200; 19], vec![201]].concat());
    assert_eq!(server.metric(REMEMBERED).await, 19.0);
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn copies_wait_as_long_for_a_local_request_as_for_another_replicas() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&SHORT_DEADLINES[..], &REPLAY_CACHE_ON].concat()).await;
    let held = ledger.hold_key("key-1").await;
    let copies: Vec<_> = (0..5).map(|_| server.submit_in_background("key-1", job(1))).collect();
    for copy in copies {
        let answer = copy.await.unwrap();
        answer.is_problem(409, "request-in-flight");
        answer.assert_retry_after();
    }
    held.roll_back().await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
}
