//! Quotas: their limits, and that one tenant's quota does not affect others.

use crate::harness::{Answer, Ledger, NO_QUOTAS, job};

/// The remaining units of a policy in `RateLimit`.
pub fn remaining(answer: &Answer, policy: &str) -> u64 {
    let item = answer.header("ratelimit").split(", ").find_map(|item| item.strip_prefix(&format!("\"{policy}\";r=")));
    let item = item.unwrap_or_else(|| panic!("no {policy} in {answer:?}"));
    item.split(';').next().unwrap().parse().unwrap()
}

#[track_caller]
pub fn is_refused(answer: &Answer, policy: &str) {
    answer.is_problem(429, "quota-exceeded");
    assert_eq!(answer.json()["violated-policies"], serde_json::json!([policy]));
    assert_eq!(answer.json()["retryable"], true);
    assert_eq!(remaining(answer, policy), 0);
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
}

/// Rates at which nothing refills while a test runs.
const FEW_CREATIONS: [(&str, &str); 2] =
    [("HAPAX__QUOTA__CREATIONS_PER_SECOND", "1"), ("HAPAX__QUOTA__CREATIONS_BURST", "1000")];

#[tokio::test]
async fn a_hot_key_gets_429_and_other_keys_do_not() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__REPLAYS_PER_SECOND", "1"), ("HAPAX__QUOTA__REPLAYS_BURST", "5")];
    let server = ledger.serve_with(&settings).await;
    let mut statuses = Vec::new();
    for _ in 0..50 {
        let answer = server.submit("hot", job(1)).await;
        if answer.status == 429 {
            is_refused(&answer, "replays");
        }
        statuses.push(answer.status);
    }
    assert_eq!(statuses[..5], [201, 200, 200, 200, 200]);
    assert!(statuses.iter().filter(|status| **status == 429).count() > 25, "{statuses:?}");
    for n in 0..10 {
        assert_eq!(server.submit(&format!("cool-{n}"), job(n)).await.status, 201);
    }
    let other = server.as_caller(&ledger.token_for("another-tenant", &hapax::access::Scope::ALL).await);
    assert_eq!(other.submit("hot", job(1)).await.status, 201);
    assert!(server.metric(r#"hapax_quota_refusals_total{policy="replays"}"#).await > 25.0);
    ledger.assert_consistent(12).await;
}

#[tokio::test]
async fn the_default_admits_two_hundred_concurrent_copies() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let copies: Vec<_> = (0..200).map(|_| server.submit_in_background("the-key", job(1))).collect();
    for copy in copies {
        assert!([200, 201].contains(&copy.await.unwrap().status));
    }
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn replays_work_without_creation_quota() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__CREATIONS_PER_SECOND", "1"), ("HAPAX__QUOTA__CREATIONS_BURST", "2")];
    let server = ledger.serve_with(&settings).await;
    let made = server.submit("key-1", job(1)).await;
    assert_eq!(made.status, 201);
    let mut refused = None;
    for n in 2..30 {
        let answer = server.submit(&format!("key-{n}"), job(n)).await;
        if answer.status == 429 {
            is_refused(&answer, "creations");
            refused = Some(n);
            break;
        }
    }
    let refused = refused.expect("creations are used up");
    for _ in 0..20 {
        let replay = server.submit("key-1", job(1)).await;
        assert_eq!((replay.status, &replay.body), (200, &made.body));
    }
    server.submit("key-1", job(99)).await.is_problem(422, "idempotency-key-reused");
    // Its key is unused, so the same request creates the job once there is quota.
    assert_eq!(server.submit_with_retries(&format!("key-{refused}"), job(refused)).await.status, 201);
}

#[tokio::test]
async fn only_creations_use_the_creation_quota() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&FEW_CREATIONS).await;
    let first = remaining(&server.submit("key-1", job(1)).await, "creations");
    for _ in 0..20 {
        server.submit("key-1", job(1)).await;
        server.submit("key-1", job(2)).await;
    }
    let held = ledger.hold_key("held").await;
    let short_lock_wait =
        ledger.serve_with(&[&FEW_CREATIONS[..], &[("HAPAX__INTAKE__LOCK_WAIT", "50ms")]].concat()).await;
    for _ in 0..5 {
        short_lock_wait.submit("held", job(1)).await.is_problem(409, "request-in-flight");
    }
    held.roll_back().await;
    let left = remaining(&server.submit("key-2", job(2)).await, "creations");
    assert!((first - 1..=first).contains(&left), "{first} {left}");
    let left = remaining(&short_lock_wait.submit("key-3", job(3)).await, "creations");
    assert_eq!(left, 999);
}

#[tokio::test]
async fn an_expired_key_does_not_count_as_a_replay() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__CREATIONS_PER_SECOND", "1"), ("HAPAX__QUOTA__CREATIONS_BURST", "1")];
    let server = ledger.serve_with(&settings).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    let mut statuses = Vec::new();
    for _ in 0..20 {
        ledger.expire("key-1").await;
        statuses.push(server.submit("key-1", job(1)).await.status);
    }
    // One unit a second refills. A request with an expired key creates a new job and is not a replay.
    assert!(statuses.contains(&429) && !statuses.contains(&200), "{statuses:?}");
}

#[tokio::test]
async fn each_token_has_its_own_request_quota() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__REQUESTS_PER_SECOND", "1"), ("HAPAX__QUOTA__REQUESTS_BURST", "3")];
    let server = ledger.serve_with(&settings).await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    let mut refused = 0;
    for _ in 0..30 {
        let answer = server.get(&location).await;
        if answer.status == 429 {
            is_refused(&answer, "requests");
            refused += 1;
        }
    }
    assert!(refused > 15, "{refused}");
    let other = server.as_caller(&ledger.token_for("acme", &hapax::access::Scope::ALL).await);
    assert_eq!(other.get(&location).await.status, 200);
    for path in ["/", "/healthz", "/readyz"] {
        let answer = server.until_status(path, 200).await;
        assert!(!answer.headers.contains_key("ratelimit"), "{answer:?}");
    }
}

#[tokio::test]
async fn ratelimit_headers_exist_only_with_quotas() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let answer = server.submit("key-1", job(1)).await;
    let policy = r#""requests";q=2000;w=2, "replays";q=250;w=25, "creations";q=2000;w=2"#;
    assert_eq!(answer.header("ratelimit-policy"), policy);
    assert_eq!(answer.header("ratelimit"), r#""requests";r=1999;t=1, "replays";r=249;t=1, "creations";r=1999;t=1"#);
    let shown = server.get(answer.header("location")).await;
    assert_eq!(shown.header("ratelimit-policy"), r#""requests";q=2000;w=2"#);

    let unlimited = ledger.serve_with(&NO_QUOTAS).await;
    let answer = unlimited.submit("key-1", job(1)).await;
    assert!(answer.status == 200 && !answer.headers.contains_key("ratelimit-policy"), "{answer:?}");
}
