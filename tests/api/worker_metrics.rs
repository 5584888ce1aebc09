//! What the metrics say about claims, results, waits and the reclaimer.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Answer, Client, Ledger, job, until};

/// No housekeeping changes what a test has prepared.
const NO_HOUSEKEEPING: [(&str, &str); 2] =
    [("HAPAX__PURGE__INTERVAL", "1h"), ("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h")];

async fn claim(client: &Client, id: Uuid, request: Value) -> Answer {
    let put = client.request("PUT", &format!("/claims/{id}")).header("content-type", "application/json");
    client.send(put.body(request.to_string())).await
}

async fn report(client: &Client, claim: Uuid, job: &str, outcome: &str) -> Answer {
    let post = client.request("POST", &format!("/claims/{claim}/results")).header("content-type", "application/json");
    client.send(post.body(json!({ "results": [{ "job_id": job, "outcome": outcome }] }).to_string())).await
}

#[tokio::test]
async fn each_request_for_a_claim_is_counted_once_by_its_result() {
    let ledger = Ledger::new().await;
    let often = [("HAPAX__CLAIMS__POLL_INTERVAL", "50ms"), ("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h")];
    let server = ledger.serve_with(&often).await;
    let (id, one) = (Uuid::now_v7(), json!({ "queues": ["default"] }));
    let id_of_the_job = server.submit("k", job(1)).await.job_id();
    assert_eq!(claim(&server, id, one.clone()).await.status, 201);
    assert_eq!(claim(&server, id, one.clone()).await.status, 200);
    claim(&server, id, json!({ "queues": ["other"] })).await.is_problem(409, "claim-exists-with-other-content");
    // It looks for jobs several times.
    let waiting = json!({ "queues": ["default"], "wait_seconds": 1 });
    assert_eq!(claim(&server, Uuid::now_v7(), waiting).await.status, 200);
    report(&server, id, &id_of_the_job, "succeeded").await;
    claim(&server, id, one).await.is_problem(410, "claim-ended");
    for result in ["claimed", "repeated", "other", "nothing", "ended"] {
        assert_eq!(server.metric(&format!("hapax_claims_total{{result=\"{result}\"}}")).await, 1.0, "{result}");
    }
    assert_eq!(server.metric("hapax_job_wait_seconds_count").await, 1.0);
}

#[tokio::test]
async fn a_job_is_observed_from_its_run_at_to_its_claim_and_on_to_its_result() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_HOUSEKEEPING).await;
    for n in 0..2 {
        server.submit(&format!("k-{n}"), job(n)).await;
    }
    // A run_at before the creation is not a wait.
    ledger.execute("update job_queue set run_at = created_at - interval '1 year'").await;
    ledger
        .execute(
            "update job_queue set run_at = now() - interval '1 hour', created_at = now() - interval '1 day' \
             where job_id = (select job_id from job_queue order by job_id limit 1)",
        )
        .await;
    let id = Uuid::now_v7();
    let jobs = claim(&server, id, json!({ "queues": ["default"], "max_jobs": 2 })).await.json()["jobs"].clone();
    assert_eq!(server.metric("hapax_job_wait_seconds_count").await, 2.0);
    let waited = server.metric("hapax_job_wait_seconds_sum").await;
    assert!((3600.0..3700.0).contains(&waited), "{waited}");

    ledger.execute("update job_leases set started_at = started_at - interval '10 minutes'").await;
    for job in jobs.as_array().unwrap() {
        report(&server, id, job["id"].as_str().unwrap(), "succeeded").await;
        report(&server, id, job["id"].as_str().unwrap(), "succeeded").await;
    }
    assert_eq!(server.metric("hapax_job_run_seconds_count").await, 2.0);
    let ran = server.metric("hapax_job_run_seconds_sum").await;
    assert!((1200.0..1300.0).contains(&ran), "{ran}");
}

#[tokio::test]
async fn results_are_counted_by_status_and_jobs_by_what_became_of_them() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_HOUSEKEEPING).await;
    let last_attempt = json!({ "type": "t", "payload": 1, "max_attempts": 1 });
    for n in 0..5 {
        server.submit(&format!("k-{n}"), job(n)).await;
    }
    server.submit("last", last_attempt).await;
    let id = Uuid::now_v7();
    let jobs = claim(&server, id, json!({ "queues": ["default"], "max_jobs": 6 })).await.json()["jobs"].clone();
    let jobs: Vec<&str> = jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    for (job, outcome) in jobs.iter().zip(["succeeded", "failed", "failed", "released", "cancelled", "failed"]) {
        report(&server, id, job, outcome).await;
    }
    report(&server, id, jobs[0], "succeeded").await;
    report(&server, id, jobs[0], "failed").await;
    report(&server, Uuid::now_v7(), jobs[0], "succeeded").await;
    for (status, count) in
        [("recorded", 6.0), ("already-recorded", 1.0), ("recorded-otherwise", 1.0), ("lease-lost", 1.0)]
    {
        assert_eq!(server.metric(&format!("hapax_reports_total{{status=\"{status}\"}}")).await, count, "{status}");
    }
    for (outcome, count) in
        [("succeeded", 1.0), ("retried", 2.0), ("released", 1.0), ("cancelled", 1.0), ("failed", 1.0)]
    {
        let jobs = server.metric(&format!("hapax_settled_jobs_total{{outcome=\"{outcome}\"}}")).await;
        assert_eq!(jobs, count, "{outcome}");
    }
}

#[tokio::test]
async fn the_end_of_a_claim_counts_the_jobs_that_it_releases_once() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_HOUSEKEEPING).await;
    for n in 0..3 {
        server.submit(&format!("k-{n}"), job(n)).await;
    }
    let id = Uuid::now_v7();
    let jobs = claim(&server, id, json!({ "queues": ["default"], "max_jobs": 3 })).await.json()["jobs"].clone();
    report(&server, id, jobs[0]["id"].as_str().unwrap(), "released").await;
    for _ in 0..2 {
        let released = server.release(&id.to_string()).await;
        assert_eq!(released.status, 204);
    }
    assert_eq!(server.metric("hapax_settled_jobs_total{outcome=\"released\"}").await, 3.0);
    assert_eq!(server.metric("hapax_job_run_seconds_count").await, 1.0);
}

#[tokio::test]
async fn requests_that_wait_for_a_job_are_counted_while_they_wait() {
    let ledger = Ledger::new().await;
    let twenty = [("HAPAX__CLAIMS__WAITING", "20"), ("HAPAX__CLAIMS__WAITING_PER_TENANT", "20")];
    let server = ledger.serve_with(&twenty).await;
    let client = server.as_caller(&ledger.token_for("acme", &hapax::access::Scope::ALL).await);
    let waiting = tokio::spawn(async move {
        claim(&client, Uuid::now_v7(), json!({ "queues": ["default"], "wait_seconds": 30 })).await
    });
    server.until_metric("hapax_waiting_requests", 1.0).await;
    assert_eq!(server.metric("hapax_waiting_requests_limit").await, 20.0);
    server.submit("k", job(1)).await;
    assert_eq!(waiting.await.unwrap().status, 201);
    server.until_metric_is("hapax_waiting_requests", 0.0).await;
}

#[tokio::test]
async fn the_reclaim_lag_is_the_age_of_the_oldest_claim_that_is_due() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_HOUSEKEEPING).await;
    for n in 0..2 {
        server.submit(&format!("k-{n}"), job(n)).await;
        claim(&server, Uuid::now_v7(), json!({ "queues": ["default"] })).await;
    }
    server.until_metric_is("hapax_reclaim_lag_seconds", 0.0).await;
    ledger
        .execute("update claims set check_at = now() - interval '7 minutes' where id = (select id from claims limit 1)")
        .await;
    let lag = until("a scrape reads the lag", async || {
        let lag = server.metric("hapax_reclaim_lag_seconds").await;
        (lag > 0.0).then_some(lag)
    })
    .await;
    assert!((420.0..500.0).contains(&lag), "{lag}");
}

#[tokio::test]
async fn a_key_that_the_purger_keeps_for_its_job_is_counted() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__PURGE__INTERVAL", "20ms")]).await;
    server.submit("k", job(1)).await;
    ledger.pass_expiry("k").await;
    server.until_metric("hapax_kept_keys_total", 1.0).await;
    assert_eq!((server.metric("hapax_purged_keys_total").await, ledger.keys().await), (0.0, 1));
}
