//! Concurrent requests on two servers that share a database.

use std::collections::HashMap;

use serde_json::Value;

use crate::harness::{Answer, Ledger, Server, job};

/// Sends all requests at the same time, alternating between the servers.
async fn at_once(servers: [&Server; 2], requests: impl IntoIterator<Item = (String, Value)>) -> Vec<Answer> {
    let requests: Vec<_> = requests.into_iter().collect();
    let start = std::sync::Arc::new(tokio::sync::Barrier::new(requests.len()));
    let mut tasks = Vec::new();
    for (number, (key, body)) in requests.into_iter().enumerate() {
        let (client, start) = ((**servers[number % 2]).clone(), start.clone());
        tasks.push(tokio::spawn(async move {
            start.wait().await;
            client.submit(&key, body).await
        }));
    }
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

fn count(answers: &[Answer]) -> HashMap<u16, usize> {
    answers.iter().fold(HashMap::new(), |mut counts, answer| {
        *counts.entry(answer.status).or_default() += 1;
        counts
    })
}

#[tokio::test]
async fn a_hundred_copies_of_one_request_make_one_job() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    for round in 0..5 {
        let answers = at_once([&one, &two], (0..100).map(|_| (format!("key-{round}"), job(round)))).await;
        assert_eq!(count(&answers), HashMap::from([(201, 1), (200, 99)]));
        assert!(answers.iter().all(|answer| answer.body == answers[0].body));
        assert!(answers.iter().all(|answer| answer.header("location") == answers[0].header("location")));
    }
    ledger.assert_consistent(5).await;
}

#[tokio::test]
async fn of_four_bodies_with_one_key_one_creates_a_job_and_the_others_get_422() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    for round in 0..5 {
        let answers = at_once([&one, &two], (0..40).map(|n| (format!("key-{round}"), job(n % 4)))).await;
        assert_eq!(count(&answers), HashMap::from([(201, 1), (200, 9), (422, 30)]));
        let winner = answers.iter().find(|answer| answer.status == 201).unwrap();
        for answer in &answers {
            match answer.status {
                422 => assert_eq!(answer.json()["job_id"], winner.json()["id"]),
                _ => assert_eq!(answer.body, winner.body),
            }
        }
    }
    ledger.assert_consistent(5).await;
}

#[tokio::test]
async fn different_keys_do_not_collide() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let answers = at_once([&one, &two], (0..200).map(|n| (format!("key-{n}"), job(n)))).await;
    assert_eq!(count(&answers), HashMap::from([(201, 200)]));
    ledger.assert_consistent(200).await;
}

#[tokio::test]
async fn a_submission_that_waits_for_a_rolled_back_one_creates_the_job() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let held = ledger.hold_key("key-1").await;
    let waiting = server.submit_in_background("key-1", job(1));
    ledger.until_waiting(1).await;
    held.roll_back().await;
    assert_eq!(waiting.await.unwrap().status, 201);
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn a_submission_that_waits_for_a_committed_one_is_compared_with_it() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let held = ledger.hold_key("key-1").await;
    let waiting = server.submit_in_background("key-1", job(1));
    ledger.until_waiting(1).await;
    held.commit().await;
    let answer = waiting.await.unwrap();
    answer.is_problem(422, "idempotency-key-reused");
    // The holder wrote a key without a job, so there is nothing to compare.
    assert_eq!(answer.json().get("pointers"), None);
    assert_eq!(ledger.jobs().await, 0);
}

#[tokio::test]
async fn a_key_held_for_too_long_gets_409_and_the_retry_succeeds() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__LOCK_WAIT", "100ms")]).await;
    let held = ledger.hold_key("key-1").await;
    let answer = server.submit("key-1", job(1)).await;
    answer.is_problem(409, "request-in-flight");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json()["retryable"], true);
    held.roll_back().await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
}

#[tokio::test]
async fn other_submissions_in_the_batch_of_a_held_key_succeed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__CONNECTIONS", "2")]).await;
    let held = ledger.hold_key("held").await;
    let copies: Vec<_> = (0..8).map(|_| server.submit_in_background("held", job(1))).collect();
    ledger.until_waiting(1).await;
    for n in 0..5 {
        assert_eq!(server.submit(&format!("free-{n}"), job(n)).await.status, 201);
    }
    assert!(copies.iter().all(|copy| !copy.is_finished()));
    held.roll_back().await;
    let mut statuses = Vec::new();
    for copy in copies {
        statuses.push(copy.await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 200, 201]);
    ledger.assert_consistent(6).await;
}

#[tokio::test]
async fn a_request_beyond_the_limit_in_flight_gets_503_immediately() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__REQUESTS_IN_FLIGHT", "3")]).await;
    server.submit_with_retries("warm-up", job(0)).await;
    let mut held = Vec::new();
    let mut waiting = Vec::new();
    for n in 0..3 {
        let key = format!("held-{n}");
        held.push(ledger.hold_key(&key).await);
        waiting.push(server.submit_in_background(&key, job(n)));
    }
    // A tenant may wait for two locks at once. The third request waits for one of these slots.
    server.until_metric("hapax_http_requests_in_flight", 3.0).await;
    let refused = server.submit("one-more", job(9)).await;
    refused.is_problem(503, "overloaded");
    refused.assert_retry_after();
    assert_eq!(server.get("/healthz").await.status, 200);
    for key in held {
        key.roll_back().await;
    }
    for request in waiting {
        assert_eq!(request.await.unwrap().status, 201);
    }
    assert_eq!(server.submit("one-more", job(9)).await.status, 201);
    ledger.assert_consistent(5).await;
}
