//! Lost answers, killed replicas and frozen workers: a call of a worker that is sent again does no harm.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Claim, Client, Fault, Ledger, NO_QUOTAS, OwnPostgres, Proxy, SHORT_DEADLINES, Server, job, new_id,
};

const NO_RECLAIMER: (&str, &str) = ("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h");

async fn serve(ledger: &Ledger) -> Server {
    ledger.serve_with(&[&NO_QUOTAS[..], &[NO_RECLAIMER]].concat()).await
}

/// A claim that the proxy recognises by the name of its worker.
fn marked() -> Value {
    json!({ "queues": ["default"], "max_jobs": 2, "worker": "the-worker" })
}

async fn two_jobs(server: &Server) {
    for n in 0..2 {
        server.submit_with_retries(&format!("k{n}"), job(n)).await;
    }
}

/// Results for all jobs of the claim, which the proxy recognises.
fn results(claim: &Claim) -> Value {
    let result = |id: &&str| json!({ "job_id": id, "outcome": "succeeded", "result": "the-result" });
    claim.job_ids().iter().map(result).collect()
}

fn statuses(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let status = |result: &Value| result["status"].as_str().unwrap().to_owned();
    answer.json()["results"].as_array().unwrap().iter().map(status).collect()
}

#[tokio::test]
async fn a_claim_whose_connection_is_cut_after_the_commit_returns_its_jobs() {
    for fault in [Fault::CutAfter, Fault::CutBefore] {
        let ledger = Ledger::new().await;
        let proxy = Proxy::in_front_of(&ledger).await;
        let server = ledger.serve_through(&proxy, &[NO_RECLAIMER]).await;
        two_jobs(&server).await;
        proxy.fail_next("the-worker", fault);
        let id = new_id();
        let answer = server.claim(&id, marked()).await;
        assert!(proxy.is_done());
        assert_eq!((Claim::of(&answer).jobs.len(), ledger.number("select count(*) from claims").await), (2, 1));
        assert_eq!(server.claim(&id, marked()).await.json()["jobs"], answer.json()["jobs"]);
        assert_eq!(server.metric(r#"hapax_database_retries_total{reason="lost"}"#).await, 1.0);
    }
}

#[tokio::test]
async fn results_whose_connection_is_cut_after_the_commit_are_recorded_once() {
    for (fault, expected) in [(Fault::CutAfter, "already-recorded"), (Fault::CutBefore, "recorded")] {
        let ledger = Ledger::new().await;
        let proxy = Proxy::in_front_of(&ledger).await;
        let server = ledger.serve_through(&proxy, &[NO_RECLAIMER]).await;
        two_jobs(&server).await;
        let claim = Claim::of(&server.claim(&new_id(), marked()).await);
        proxy.fail_next("the-result", fault);
        let answer = server.report(&claim.id, results(&claim)).await;
        assert!(proxy.is_done());
        assert_eq!(statuses(&answer), [expected; 2]);
        assert_eq!(statuses(&server.report(&claim.id, results(&claim)).await), ["already-recorded"; 2]);
        assert_eq!(ledger.number("select count(*) from job_outcomes where version = 3").await, 2);
    }
}

/// The story of camunda 59354, actions/runner 4728 and temporal 1058: the answer with the jobs is lost.
#[tokio::test]
async fn a_claim_with_an_unknown_outcome_is_repeated_on_the_other_replica() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let one = ledger.serve_through(&proxy, &[&SHORT_DEADLINES[..], &[NO_RECLAIMER]].concat()).await;
    let two = serve(&ledger).await;
    two_jobs(&two).await;
    let id = new_id();
    // Warms the connections up and stores nothing.
    one.claim(&new_id(), json!({ "queues": ["empty"] })).await;
    proxy.fail_next("the-worker", Fault::BlackHole);
    proxy.then_fail_after(0, "the-worker", Fault::BlackHole);
    let unknown = one.claim(&id, marked()).await;
    unknown.is_problem(503, "outcome-unknown");
    unknown.assert_retry_after();
    let repeated = two.claim(&id, marked()).await;
    assert_eq!((repeated.status, Claim::of(&repeated).jobs.len()), (200, 2));
    assert_eq!(one.claim(&id, marked()).await.json(), repeated.json());
    assert_eq!(ledger.number("select count(*) from claims").await, 1);
}

#[tokio::test]
async fn results_with_an_unknown_outcome_are_repeated_on_the_other_replica() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let one = ledger.serve_through(&proxy, &[&SHORT_DEADLINES[..], &[NO_RECLAIMER]].concat()).await;
    let two = serve(&ledger).await;
    two_jobs(&two).await;
    let claim = Claim::of(&two.claim(&new_id(), marked()).await);
    one.heartbeat(&claim.id).await;
    proxy.fail_next("the-result", Fault::BlackHole);
    proxy.then_fail_after(0, "the-result", Fault::BlackHole);
    one.report(&claim.id, results(&claim)).await.is_problem(503, "outcome-unknown");
    assert_eq!(statuses(&two.report(&claim.id, results(&claim)).await), ["already-recorded"; 2]);
    assert_eq!(ledger.number("select count(*) from job_outcomes where version = 3").await, 2);
}

/// Sends a request to a replica, and kills the replica after the commit and before it answers. The request writes to
/// `table`; `done` counts 1 after the commit.
async fn kill_after_the_commit(
    ledger: &Ledger,
    replica: Server,
    table: &str,
    request: reqwest::RequestBuilder,
    done: &str,
) {
    let held = ledger.lock_table(table, "share").await;
    let asked = tokio::spawn(async move { request.send().await.is_ok() });
    ledger.until_waiting_long().await;
    replica.signal(Signal::STOP);
    held.roll_back().await;
    ledger.until(done, |count| count == 1).await;
    replica.signal(Signal::KILL);
    assert!(!replica.ended().await);
    assert!(!asked.await.unwrap(), "the client got no answer");
}

#[tokio::test]
async fn a_claim_whose_replica_is_killed_after_the_commit_is_repeated_on_the_other_one() {
    let ledger = Ledger::new().await;
    let (one, two) = (serve(&ledger).await, serve(&ledger).await);
    two_jobs(&two).await;
    let id = new_id();
    let request = one.put_claim(&id, marked());
    kill_after_the_commit(&ledger, one, "claims", request, "select count(*) from claims").await;
    let repeated = two.claim(&id, marked()).await;
    assert_eq!((repeated.status, Claim::of(&repeated).jobs.len()), (200, 2));
    assert_eq!(statuses(&two.report(&id, results(&Claim::of(&repeated))).await), ["recorded"; 2]);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn results_whose_replica_is_killed_after_the_commit_are_repeated_on_the_other_one() {
    let ledger = Ledger::new().await;
    let (one, two) = (serve(&ledger).await, serve(&ledger).await);
    two_jobs(&two).await;
    let claim = Claim::of(&two.claim(&new_id(), marked()).await);
    let request = one.request("POST", &format!("/claims/{}/results", claim.id));
    let body = json!({ "results": results(&claim) }).to_string();
    let request = request.header("content-type", "application/json").body(body);
    let done = "select count(distinct state) from job_outcomes";
    kill_after_the_commit(&ledger, one, "job_outcomes", request, done).await;
    assert_eq!(statuses(&two.report(&claim.id, results(&claim)).await), ["already-recorded"; 2]);
    assert_eq!(two.job(claim.job_ids()[0]).await["result"], "the-result");
}

#[tokio::test]
async fn heartbeats_and_releases_whose_replica_is_killed_after_the_commit_are_repeated_on_the_other_one() {
    let ledger = Ledger::new().await;
    let (one, two, three) = (serve(&ledger).await, serve(&ledger).await, serve(&ledger).await);
    two_jobs(&three).await;
    let claim = Claim::of(&three.claim(&new_id(), marked()).await);
    ledger.expire_claim(&claim.id).await;
    let request = one.request("POST", &format!("/claims/{}/heartbeat", claim.id));
    let done = "select count(*) from claims where expires_at > now()";
    kill_after_the_commit(&ledger, one, "claims", request, done).await;
    let repeated = three.heartbeat(&claim.id).await;
    assert_eq!((repeated.status, repeated.json()["jobs"].as_array().unwrap().len()), (200, 2));

    let request = two.request("DELETE", &format!("/claims/{}", claim.id));
    let done = "select count(*) from claims where released_at is not null";
    kill_after_the_commit(&ledger, two, "job_leases", request, done).await;
    assert_eq!(three.release(&claim.id).await.status, 204);
    let released = "select count(*) from job_queue where attempt = 0 and releases = 1 and version = 3";
    assert_eq!(ledger.number(released).await, 2, "released once");
}

#[tokio::test]
async fn a_claim_whose_replica_is_killed_before_the_commit_is_made_by_the_other_one() {
    let ledger = Ledger::new().await;
    let (one, two) = (serve(&ledger).await, serve(&ledger).await);
    two_jobs(&two).await;
    let held = ledger.lock_table("claims", "share").await;
    let id = new_id();
    let request = one.put_claim(&id, marked());
    let asked = tokio::spawn(async move { request.send().await.is_ok() });
    ledger.until_waiting_long().await;
    one.signal(Signal::KILL);
    assert!(!one.ended().await && !asked.await.unwrap());
    assert_eq!(ledger.end_sessions_that_wait().await, 1);
    held.roll_back().await;
    let answer = two.claim(&id, marked()).await;
    assert_eq!((answer.status, Claim::of(&answer).jobs.len()), (201, 2));
    ledger.assert_jobs_in_one_place().await;
}

/// A worker that freezes for longer than its lease goes on as if nothing had happened. A guard by job or state alone would
/// let it complete the attempt of its successor (pg-boss, Faktory).
#[tokio::test]
async fn the_results_of_a_worker_frozen_past_its_lease_are_refused_and_those_of_the_second_kept() {
    let ledger = Ledger::new().await;
    let frozen = serve(&ledger).await;
    let id = frozen.submit("k", job(1)).await.job_id();
    // Its claim is committed, but the answer is not sent before the lease is lost.
    let held = ledger.lock_table("claims", "share").await;
    let (client, claim) = ((*frozen).clone(), new_id());
    let asked = tokio::spawn(async move { client.claim(&claim, json!({ "queues": ["default"] })).await });
    ledger.until_waiting_long().await;
    frozen.signal(Signal::STOP);
    held.roll_back().await;
    ledger.until("select count(*) from job_leases", |leases| leases == 1).await;
    // Not earlier: its reclaimer would wait for the table, too.
    let quick = ledger.serve_with(&[("HAPAX__CLAIMS__RECLAIM_INTERVAL", "10ms")]).await;
    ledger.execute("update claims set expires_at = clock_timestamp(), check_at = clock_timestamp()").await;
    ledger.until("select count(*) from job_queue", |jobs| jobs == 1).await;
    let second = quick.take().await;
    frozen.signal(Signal::CONT);
    let first = Claim::of(&asked.await.unwrap());
    assert_eq!((first.job(), second.job()), (id.as_str(), id.as_str()));
    assert!(first.token() < second.token());
    frozen.heartbeat(&first.id).await.is_problem(410, "claim-ended");
    assert_eq!(frozen.settle(&first.id, &id, "succeeded").await.0, "lease-lost");
    assert_eq!(quick.settle(&second.id, &id, "succeeded").await.0, "recorded");
    assert_eq!(
        frozen.settle(&first.id, &id, "succeeded").await,
        ("lease-lost".to_owned(), Some("succeeded".to_owned()))
    );
    assert_eq!(quick.reported(&id).await, ["lost", "succeeded"]);
}

/// What a careless worker does with a job.
async fn work(client: &Client, other: &Client, ledger: &Ledger, round: usize) -> Vec<String> {
    let body = json!({ "queues": ["default", "other"], "max_jobs": 1 + round % 4, "lease_seconds": 5 });
    let id = new_id();
    let first = client.claim(&id, &body).await;
    // Every second claim is sent again, to the other replica.
    let again = if round.is_multiple_of(2) { Some(other.claim(&id, &body).await) } else { None };
    let claim = Claim::of(&first);
    if claim.jobs.is_empty() {
        // Released jobs wait. The test does not.
        ledger.make_due().await;
        return Vec::new();
    }
    if let Some(again) = again.filter(|again| again.status == 200) {
        assert!(again.json()["jobs"].as_array().unwrap().iter().all(|job| claim.jobs.contains(job)));
    }
    match round % 7 {
        // It dies.
        0 => ledger.expire_claim(&claim.id).await,
        1 => drop(client.release(&claim.id).await),
        2 => drop(client.heartbeat(&claim.id).await),
        _ => {}
    }
    let outcome = ["succeeded", "failed", "succeeded", "succeeded", "released"][round % 5];
    let result = |id: &&str| match outcome {
        "succeeded" => json!({ "job_id": id, "outcome": outcome }),
        _ => json!({ "job_id": id, "outcome": outcome, "retry_in_seconds": 0 }),
    };
    let results: Value = claim.job_ids().iter().map(result).collect();
    // It reports twice at once.
    let (one, two) = tokio::join!(client.report(&claim.id, &results), other.report(&claim.id, &results));
    let mut recorded = Vec::new();
    for answer in [one, two] {
        let settled = answer.json()["results"].as_array().unwrap().clone();
        let settled = settled.iter().filter(|settled| settled["status"] == "recorded" && outcome == "succeeded");
        recorded.extend(settled.map(|settled| settled["job_id"].as_str().unwrap().to_owned()));
    }
    recorded
}

#[tokio::test]
async fn careless_workers_on_two_replicas_finish_every_job_once() {
    let ledger = Arc::new(Ledger::new().await);
    let settings = [&NO_QUOTAS[..], &[("HAPAX__CLAIMS__RECLAIM_INTERVAL", "10ms")]].concat();
    let servers = [ledger.serve_with(&settings).await, ledger.serve_with(&settings).await];
    let lists = async || ledger.number("select count(*) from jobs").await;
    ledger.fill_queue("default", 100).await;
    ledger.fill_queue_with("other", 1, "now()", 50).await;
    ledger.execute("update job_queue set max_attempts = 1000").await;
    let workers: Vec<_> = (0..6)
        .map(|n| {
            let (client, other) = ((*servers[n % 2]).clone(), (*servers[(n + 1) % 2]).clone());
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move {
                let (mut recorded, mut round) = (Vec::new(), n);
                while ledger.number("select (select count(*) from job_queue) + (select count(*) from job_leases)").await
                    > 0
                {
                    recorded.extend(work(&client, &other, &ledger, round).await);
                    round += 1;
                }
                recorded
            })
        })
        .collect();
    let mut recorded = Vec::new();
    for worker in workers {
        recorded.extend(worker.await.unwrap());
    }
    recorded.sort_unstable();
    let count = recorded.len();
    recorded.dedup();
    assert_eq!((count, recorded.len(), lists().await), (150, 150, 150), "each success is recorded once");
    assert_eq!(ledger.number("select count(*) from job_outcomes where state = 'succeeded'").await, 150);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_postgresql_crash_loses_no_lease_and_no_result() {
    let postgres = OwnPostgres::start().await;
    let ledger = postgres.ledger().await;
    let settings = [("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "false"), NO_RECLAIMER];
    let server = ledger.serve_with(&[&NO_QUOTAS[..], &settings].concat()).await;
    two_jobs(&server).await;
    let id = new_id();
    let claim = Claim::of(&server.claim(&id, marked()).await);
    assert_eq!(server.settle(&id, claim.job_ids()[0], "succeeded").await.0, "recorded");
    postgres.stop_immediately().await;
    postgres.start_again().await;
    server.until_status("/readyz", 200).await;
    let rest = Claim::of(&server.claim(&id, marked()).await);
    assert_eq!(rest.jobs, claim.jobs[1..]);
    assert_eq!(server.heartbeat(&id).await.status, 200);
    assert_eq!(server.settle(&id, claim.job_ids()[0], "succeeded").await.0, "already-recorded");
    assert_eq!(server.settle(&id, claim.job_ids()[1], "succeeded").await.0, "recorded");
    ledger.assert_jobs_in_one_place().await;
}
