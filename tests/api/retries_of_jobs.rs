//! `POST /jobs/{id}/retry`: a finished job is queued again.

use serde_json::{Value, json};

use crate::harness::{Answer, Ledger, NO_QUOTAS, Server, job};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_QUOTAS).await;
    (ledger, server)
}

#[track_caller]
fn is_first(answer: &Answer) {
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (200, "false"), "{answer:?}");
}

#[track_caller]
fn is_replay_of(first: &Answer, answer: &Answer) {
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (200, "true"), "{answer:?}");
    assert_eq!((&answer.body, answer.header("etag")), (&first.body, first.header("etag")));
}

#[tokio::test]
async fn a_finished_job_is_queued_again_with_all_its_attempts_and_its_token_rises() {
    let (ledger, server) = serve().await;
    let body = json!({ "type": "t", "payload": 1, "max_attempts": 1, "priority": 1 });
    let id = server.submit("k", body).await.job_id();
    let (mut token, mut version) = (0, 1);
    for (round, outcome) in ["failed", "succeeded", "cancelled", "failed"].into_iter().enumerate() {
        ledger.make_due().await;
        let claim = server.take().await;
        assert!(claim.token() > token, "{} after {token}", claim.token());
        token = claim.token();
        assert_eq!((&claim.jobs[0]["attempt"], &claim.jobs[0]["max_attempts"]), (&json!(1), &json!(1)));
        let (_, state) = server.settle(&claim.id, &id, outcome).await;
        assert_eq!(state.as_deref(), Some(outcome));
        version += 3;
        let retried = server.retry(&id, &format!("r{round}")).await;
        is_first(&retried);
        let shown = server.job(&id).await;
        let mut expected: Value = shown.clone();
        expected.as_object_mut().unwrap().remove("payload");
        assert_eq!(retried.json(), expected);
        assert_eq!(
            (&shown["state"], &shown["attempt"], &shown["version"]),
            (&json!("queued"), &json!(0), &json!(version))
        );
        assert_eq!(retried.header("etag"), format!("\"{version}\""));
        for over in ["finished_at", "result", "error", "claim_id", "started_at"] {
            assert!(shown.get(over).is_none(), "{over} in {shown}");
        }
        // The earlier worker is told what it reported.
        assert_eq!(
            server.settle(&claim.id, &id, outcome).await,
            ("already-recorded".to_owned(), Some("queued".to_owned()))
        );
    }
    assert_eq!(server.reported(&id).await, ["failed", "succeeded", "cancelled", "failed"]);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_job_cancelled_before_it_ran_can_be_retried() {
    let (_ledger, server) = serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    server.cancel(&id).await;
    is_first(&server.retry(&id, "r").await);
    let claim = server.take().await;
    assert_eq!((claim.job(), claim.token()), (id.as_str(), 4));
    assert_eq!(server.reported(&id).await, ["running"]);
}

#[tokio::test]
async fn a_repeated_retry_is_a_replay_also_when_the_job_has_gone_on() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    server.cancel(&id).await;
    let first = server.retry(&id, "r").await;
    is_first(&first);
    is_replay_of(&first, &server.retry(&id, "r").await);
    let claim = server.take().await;
    is_replay_of(&first, &server.retry(&id, "r").await);
    server.settle(&claim.id, &id, "succeeded").await;
    // A finished job is not queued again by a late copy.
    is_replay_of(&first, &server.retry(&id, "r").await);
    assert_eq!(server.state(&id).await, "succeeded");
    let other = server.submit("k2", job(2)).await.job_id();
    server.cancel(&other).await;
    server.retry(&other, "r").await.is_problem(422, "idempotency-key-reused");
    is_first(&server.retry(&id, "r2").await);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_job_that_is_not_over_is_not_retried() {
    let (_ledger, server) = serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    server.retry(&id, "r").await.is_problem(409, "job-not-finished");
    let claim = server.take().await;
    server.retry(&id, "r").await.is_problem(409, "job-not-finished");
    server.cancel(&id).await;
    server.retry(&id, "r").await.is_problem(409, "job-not-finished");
    server.settle(&claim.id, &id, "cancelled").await;
    // The key was not used up.
    is_first(&server.retry(&id, "r").await);
    let without_key = server.send(server.request("POST", &format!("/jobs/{id}/retry"))).await;
    without_key.is_problem(400, "idempotency-key-required");
}

#[tokio::test]
async fn a_retry_takes_the_content_of_a_unique_job_back_or_is_refused() {
    let (ledger, server) = serve().await;
    let unique = json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    let old = server.submit("a", &unique).await.job_id();
    server.cancel(&old).await;
    let new = server.submit("b", &unique).await.job_id();
    assert_ne!(new, old);
    let before = server.job(&old).await;
    server.retry(&old, "r").await.is_problem(409, "content-taken");
    assert_eq!(server.job(&old).await, before);
    assert_eq!(ledger.number("select count(*) from idempotency_keys where key = 'r'").await, 0);
    let claim = server.take().await;
    server.retry(&old, "r").await.is_problem(409, "content-taken");
    server.settle(&claim.id, &new, "succeeded").await;
    is_first(&server.retry(&old, "r").await);
    // The content belongs to the retried job now.
    assert_eq!(server.submit("c", &unique).await.job_id(), old);
    server.retry(&new, "r3").await.is_problem(409, "content-taken");
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn of_twenty_copies_of_a_retry_on_two_replicas_one_queues_the_job() {
    let ledger = Ledger::new().await;
    let servers = [ledger.serve_with(&NO_QUOTAS).await, ledger.serve_with(&NO_QUOTAS).await];
    for round in 0..5 {
        let id = servers[0].submit(&format!("k{round}"), job(round)).await.job_id();
        servers[0].cancel(&id).await;
        let copies: Vec<_> = (0..20)
            .map(|n| {
                let (client, id, key) = ((*servers[n % 2]).clone(), id.clone(), format!("r{round}"));
                tokio::spawn(async move { client.retry(&id, &key).await })
            })
            .collect();
        let mut answers = Vec::new();
        for copy in copies {
            answers.push(copy.await.unwrap());
        }
        let first: Vec<_> = answers.iter().filter(|answer| answer.header("idempotent-replayed") == "false").collect();
        assert_eq!(first.len(), 1);
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == first[0].body));
        assert_eq!(servers[1].job(&id).await["version"], 3);
        servers[0].cancel(&id).await;
    }
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn of_two_retries_with_different_keys_one_wins() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    server.cancel(&id).await;
    let held = ledger.hold("select from job_outcomes for update").await;
    let retries = ["r1", "r2"].map(|key| {
        let (client, id) = ((*server).clone(), id.clone());
        tokio::spawn(async move { client.retry(&id, key).await })
    });
    ledger.until_waiting(2).await;
    held.roll_back().await;
    let mut statuses = Vec::new();
    for retry in retries {
        statuses.push(retry.await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!((statuses, server.job(&id).await["version"].clone()), (vec![200, 409], json!(3)));
}
