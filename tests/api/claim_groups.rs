//! Group commit of claims, heartbeats and results: what arrives during a statement shares the next one.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{Answer, Claim, Client, Ledger, NO_QUOTAS, Server, job, new_id};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_QUOTAS).await;
    (ledger, server)
}

async fn submit(server: &Server, count: u64) {
    let lines = (0..count).map(|n| json!({ "idempotency_key": format!("k{n}"), "job": job(n) }).to_string());
    assert_eq!(server.submit_batch(lines.collect::<Vec<_>>().join("\n")).await.status, 200);
}

/// Blocks the first request of `requests` in its statement, lets the others arrive, and returns all answers.
async fn together(
    (ledger, server): (&Ledger, &Server),
    event: &str,
    mut requests: impl Iterator<Item = JoinHandle<Answer>>,
) -> Vec<Answer> {
    let held = ledger.block(event).await;
    let mut sent = vec![requests.next().unwrap()];
    ledger.until_blocked(1).await;
    sent.extend(requests);
    server.until_metric("hapax_http_requests_in_flight", sent.len() as f64).await;
    held.roll_back().await;
    let mut answers = Vec::new();
    for answer in sent {
        answers.push(answer.await.unwrap());
    }
    answers
}

fn in_background<F: Future<Output = Answer> + Send + 'static>(
    server: &Server,
    request: impl FnOnce(Client) -> F,
) -> JoinHandle<Answer> {
    tokio::spawn(request((**server).clone()))
}

async fn statements(server: &Server, name: &str) -> f64 {
    server.metric(&format!("hapax_group_commit_requests_count{{statement=\"{name}\"}}")).await
}

fn one() -> Value {
    json!({ "queues": ["default"] })
}

#[tokio::test]
async fn claims_heartbeats_and_results_that_arrive_together_share_statements() {
    let (ledger, server) = serve().await;
    submit(&server, 30).await;
    let claiming =
        (0..30).map(|_| in_background(&server, |client| async move { client.claim(&new_id(), one()).await }));
    let claims: Vec<Claim> =
        together((&ledger, &server), "insert on claims", claiming).await.iter().map(Claim::of).collect();
    let jobs: BTreeSet<&str> = claims.iter().map(Claim::job).collect();
    assert_eq!(jobs.len(), 30, "each claim has a job of its own");
    // A request counts as in flight a little before it is in the queue of its statement.
    assert!(statements(&server, "claim").await < 10.0);

    let beating = claims.iter().map(|claim| {
        let id = claim.id.clone();
        in_background(&server, |client| async move { client.heartbeat(&id).await })
    });
    let beats = together((&ledger, &server), "update on claims", beating).await;
    for (claim, beat) in claims.iter().zip(beats) {
        assert_eq!((beat.status, &beat.json()["jobs"][0]["id"]), (200, &json!(claim.job())));
    }
    assert!(statements(&server, "heartbeat").await < 10.0);

    let settling = claims.iter().map(|claim| {
        let (id, results) = (claim.id.clone(), json!([{ "job_id": claim.job(), "outcome": "succeeded" }]));
        in_background(&server, |client| async move { client.report(&id, results).await })
    });
    let settled = together((&ledger, &server), "delete on job_leases", settling).await;
    for (claim, settled) in claims.iter().zip(settled) {
        let result = json!({ "job_id": claim.job(), "status": "recorded", "state": "succeeded" });
        assert_eq!(settled.json()["results"], json!([result]));
    }
    assert!(statements(&server, "settle").await < 10.0);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn copies_that_arrive_together_get_one_answer() {
    let (ledger, server) = serve().await;
    submit(&server, 5).await;
    let id = new_id();
    let claiming = (0..12).map(|_| {
        let id = id.clone();
        in_background(&server, |client| async move { client.claim(&id, one()).await })
    });
    let answers = together((&ledger, &server), "insert on claims", claiming).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(answers.iter().all(|answer| answer.json() == answers[0].json()), "{answers:?}");
    let claim = Claim::of(&answers[0]);

    let settling = (0..12).map(|n| {
        let outcome = if n % 2 == 0 { "succeeded" } else { "failed" };
        let (id, results) = (id.clone(), json!([{ "job_id": claim.job(), "outcome": outcome }]));
        in_background(&server, |client| async move { client.report(&id, results).await })
    });
    let answers = together((&ledger, &server), "delete on job_leases", settling).await;
    let count = |status: &str| {
        answers.iter().filter(|answer| answer.json()["results"][0]["status"].as_str() == Some(status)).count()
    };
    assert_eq!([count("recorded"), count("already-recorded"), count("recorded-otherwise")], [1, 5, 6]);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_claim_takes_no_more_jobs_once_their_payloads_are_large() {
    let (ledger, server) = serve().await;
    for n in 0..7 {
        let body = json!({ "type": "t", "payload": "x".repeat(900_000) });
        assert_eq!(server.submit(&format!("k{n}"), body).await.status, 201);
    }
    let first = server.take_up_to(10).await;
    assert_eq!(first.jobs.len(), 5, "the fifth one exceeds 4 MiB");
    assert_eq!(ledger.number("select count(*) from job_queue where version = 1 and attempt = 0").await, 2);
    assert_eq!(server.take_up_to(10).await.jobs.len(), 2);
    ledger.assert_jobs_in_one_place().await;
}

/// Calls `hapax.claim` for claims of one job each, and returns the number of rows with each verdict.
async fn claim(ledger: &Ledger, claims: u32, options: &str, verdicts: [&str; 2]) -> [i64; 2] {
    ledger.execute("drop table if exists answer").await;
    ledger
        .execute(&format!(
            "create table answer as select verdict, run_at from hapax.claim(
                 p_tenant_id => (select id from tenants where name = 'acme'), p_queues => '{{default}}',
                 p_claim_ids => array(select gen_random_uuid() from generate_series(1, {claims})),
                 p_fingerprints => array_fill(decode(repeat('00', 32), 'hex'), array[{claims}]),
                 p_workers => array_fill(null::text, array[{claims}]),
                 p_max_jobs => array_fill(1, array[{claims}]),
                 p_lease_seconds => array_fill(60, array[{claims}]), {options})"
        ))
        .await;
    let mut counts = [0; 2];
    for (count, verdict) in counts.iter_mut().zip(verdicts) {
        *count = ledger.number(&format!("select count(*) from answer where verdict = '{verdict}'")).await;
    }
    counts
}

#[tokio::test]
async fn claims_that_share_a_statement_share_its_memory() {
    let (ledger, server) = serve().await;
    for n in 0..20 {
        server.submit(&format!("k{n}"), json!({ "type": "t", "payload": 12345 })).await;
    }
    // Eight times ten bytes.
    assert_eq!(claim(&ledger, 19, "p_payload_bytes => 10", ["claimed", "again"]).await, [16, 3]);
    assert_eq!(ledger.number("select count(*) from job_queue where version = 1 and attempt = 0").await, 4);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_mark_passes_over_earlier_jobs_unless_there_are_no_others() {
    let (ledger, server) = serve().await;
    for (key, minute) in [("early", 1), ("late", 3)] {
        let body = json!({ "type": "t", "payload": 1, "run_at": format!("2020-01-01T00:0{minute}:00Z") });
        assert_eq!(server.submit(key, body).await.status, 201);
    }
    let from = "p_starts => array[null, '2020-01-01T00:02:00Z', null, null]::timestamptz[]";
    let minute = "select extract(minute from run_at)::bigint from answer";
    assert_eq!(claim(&ledger, 1, from, ["claimed", "again"]).await, [1, 0]);
    assert_eq!(ledger.number(minute).await, 3);
    assert_eq!(claim(&ledger, 1, from, ["claimed", "again"]).await, [1, 0]);
    assert_eq!(ledger.number(minute).await, 1);
    assert_eq!(claim(&ledger, 1, from, ["claimed", "again"]).await, [0, 0]);
}
