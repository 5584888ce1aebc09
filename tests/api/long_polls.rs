//! Requests that wait: a worker for a job, a client for the end of a job.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{
    Answer, Balancer, Claim, Client, Ledger, NO_QUOTAS, RawConnection, Server, free_address, job, new_id,
};

/// Waiting requests do not look again on their own before the end of a test.
const ONLY_WOKEN: (&str, &str) = ("HAPAX__CLAIMS__POLL_INTERVAL", "1h");
const LOOKS_OFTEN: (&str, &str) = ("HAPAX__CLAIMS__POLL_INTERVAL", "20ms");

async fn serve(ledger: &Ledger, setting: (&str, &str)) -> Server {
    ledger.serve_with(&[&NO_QUOTAS[..], &[setting]].concat()).await
}

/// Claims in a background task. Returns once the server has looked and found nothing.
async fn waiting_for_a_job(ledger: &Ledger, client: &Client, body: Value) -> JoinHandle<Answer> {
    let (client, id) = (client.clone(), new_id());
    let waiting = tokio::spawn(async move { client.claim(&id, body).await });
    until_looked(ledger, "/* claim */", 1).await;
    waiting
}

async fn waiting_for_the_end(ledger: &Ledger, client: &Client, id: &str) -> JoinHandle<Answer> {
    let (client, path) = (client.clone(), format!("/jobs/{id}?wait_seconds=30"));
    let waiting = tokio::spawn(async move { client.get(&path).await });
    until_looked(ledger, "/* find_job_without_payload */", 1).await;
    waiting
}

/// Returns once this many sessions have completed a statement as their last one.
async fn until_looked(ledger: &Ledger, statement: &str, sessions: i64) {
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle' \
         and application_name = 'hapax' and ltrim(query, E' \\n') like '{statement}%'"
    );
    ledger.until(&sql, |looked| looked >= sessions).await;
}

/// Sends a claim to this address. Returns the connection once the claim waits at the server.
async fn claim_that_waits(client: &Client, server: &Server) -> RawConnection {
    let (body, request) = (wait(30).to_string(), format!("PUT /claims/{}", new_id()));
    let length = format!("content-length: {}", body.len());
    let mut connection = client.raw().await;
    connection.write_head(&request, &[b"content-type: application/json", length.as_bytes()]).await;
    connection.write(body.as_bytes()).await;
    until_waiting(server, 1).await;
    connection
}

async fn until_waiting(server: &Server, requests: u8) {
    server.until_metric_is("hapax_waiting_requests", requests.into()).await;
}

/// Returns once a request has stopped to wait and so many are left. It would wait for 30 s.
async fn until_one_stops_waiting(server: &Server, left: u8) {
    let began = Instant::now();
    until_waiting(server, left).await;
    assert!(began.elapsed() < Duration::from_secs(25), "it waited to the end of its time");
}

fn wait(seconds: u64) -> Value {
    json!({ "queues": ["a", "default"], "wait_seconds": seconds })
}

#[tokio::test]
async fn a_waiting_worker_gets_a_job_that_arrives_on_its_replica() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, ONLY_WOKEN).await;
    let unique = json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    for (n, body) in [json!({ "type": "t", "payload": 0 }), unique].into_iter().enumerate() {
        let waiting = waiting_for_a_job(&ledger, &server, wait(30)).await;
        let id = server.submit(&format!("k{n}"), body).await.job_id();
        let answer = waiting.await.unwrap();
        assert_eq!((answer.status, Claim::of(&answer).job()), (201, id.as_str()));
    }
    let waiting = waiting_for_a_job(&ledger, &server, wait(30)).await;
    let id = new_id();
    server.put(&id, json!({ "type": "t", "payload": 1, "queue": "a" })).await;
    assert_eq!(Claim::of(&waiting.await.unwrap()).job(), id);
    let waiting = waiting_for_a_job(&ledger, &server, wait(30)).await;
    let batch = server.submit_batch(json!({ "idempotency_key": "b", "job": job(5) })).await;
    assert_eq!(Claim::of(&waiting.await.unwrap()).job(), batch.items()[0].job_id());
}

#[tokio::test]
async fn a_waiting_worker_gets_a_job_that_arrives_on_another_replica() {
    let ledger = Ledger::new().await;
    let (one, two) = (serve(&ledger, LOOKS_OFTEN).await, serve(&ledger, LOOKS_OFTEN).await);
    let waiting = waiting_for_a_job(&ledger, &one, wait(30)).await;
    let id = two.submit("k", job(1)).await.job_id();
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, Claim::of(&answer).job()), (201, id.as_str()));
}

#[tokio::test]
async fn copies_of_a_waiting_claim_on_two_replicas_get_the_same_job() {
    let ledger = Ledger::new().await;
    let servers = [serve(&ledger, LOOKS_OFTEN).await, serve(&ledger, LOOKS_OFTEN).await];
    let id = new_id();
    let copies: Vec<_> = (0..4)
        .map(|n| {
            let (client, id) = ((*servers[n % 2]).clone(), id.clone());
            tokio::spawn(async move { client.claim(&id, wait(30)).await })
        })
        .collect();
    until_looked(&ledger, "/* claim */", 2).await;
    for n in 0..3 {
        servers[0].submit(&format!("k{n}"), job(n)).await;
    }
    let mut answers = Vec::new();
    for copy in copies {
        answers.push(copy.await.unwrap());
    }
    answers.sort_by_key(|answer| std::cmp::Reverse(answer.status));
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [201, 200, 200, 200]);
    assert!(answers.iter().all(|answer| answer.json()["jobs"] == answers[0].json()["jobs"]));
    assert_eq!(ledger.number("select count(*) from job_leases").await, 1);
}

#[tokio::test]
async fn a_job_wakes_one_of_two_waiting_workers_and_the_next_job_the_other() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, ONLY_WOKEN).await;
    let body = || json!({ "queues": ["default"], "wait_seconds": 30 });
    let first = waiting_for_a_job(&ledger, &server, body()).await;
    let second = waiting_for_a_job(&ledger, &server, body()).await;
    let jobs = [server.submit("a", job(1)).await.job_id(), server.submit("b", job(2)).await.job_id()];
    let mut got =
        [Claim::of(&first.await.unwrap()).job().to_owned(), Claim::of(&second.await.unwrap()).job().to_owned()];
    got.sort_unstable();
    assert_eq!(got, jobs);
}

#[tokio::test]
async fn a_wait_without_a_job_ends_in_time_and_stores_nothing() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, LOOKS_OFTEN).await;
    server.submit("k", json!({ "type": "t", "payload": 1, "queue": "other" })).await;
    let began = Instant::now();
    let id = new_id();
    let answer = server.claim(&id, wait(1)).await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "id": id, "jobs": [] })));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(ledger.number("select count(*) from claims").await, 0);
}

#[tokio::test]
async fn a_waiting_request_holds_neither_a_connection_nor_a_place_in_flight() {
    let ledger = Ledger::new().await;
    let settings = [ONLY_WOKEN, ("HAPAX__CLAIMS__CONNECTIONS", "1"), ("HAPAX__SERVER__REQUESTS_IN_FLIGHT", "1")];
    let server = ledger.serve_with(&[&NO_QUOTAS[..], &settings].concat()).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(waiting_for_a_job(&ledger, &server, wait(30)).await);
        server.until_metric_is("hapax_http_requests_in_flight", 0.0).await;
    }
    for n in 0..3 {
        server.submit_with_retries(&format!("k{n}"), job(n)).await;
        server.until_metric_is("hapax_http_requests_in_flight", 0.0).await;
    }
    for waiting in waiting {
        let answer = waiting.await.unwrap();
        assert_eq!(answer.status, 201, "{answer:?}");
    }
}

#[tokio::test]
async fn a_request_beyond_the_bound_of_its_tenant_does_not_wait() {
    let ledger = Ledger::new().await;
    let settings = [ONLY_WOKEN, ("HAPAX__CLAIMS__WAITING", "2"), ("HAPAX__CLAIMS__WAITING_PER_TENANT", "1")];
    let server = ledger.serve_with(&[&NO_QUOTAS[..], &settings].concat()).await;
    let other = server.as_caller(&ledger.token_for("globex", &hapax::access::Scope::ALL).await);
    let waiting = waiting_for_a_job(&ledger, &server, wait(30)).await;
    // If it waited, the test would wait for 30 s, and the job would wake the first of the two.
    let began = Instant::now();
    let beyond = server.claim(&new_id(), wait(30)).await;
    assert_eq!((beyond.status, beyond.json()["jobs"].clone()), (200, json!([])));
    assert!(began.elapsed() < Duration::from_secs(30));
    let (client, id) = (other.clone(), new_id());
    let theirs = tokio::spawn(async move { client.claim(&id, wait(30)).await });
    other.submit("k", job(1)).await;
    assert_eq!(Claim::of(&theirs.await.unwrap()).jobs.len(), 1);
    server.submit("k", job(1)).await;
    assert_eq!(Claim::of(&waiting.await.unwrap()).jobs.len(), 1);
}

#[tokio::test]
async fn a_shutdown_ends_waits_with_an_empty_answer() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, ONLY_WOKEN).await;
    let id = server.submit("k", json!({ "type": "t", "payload": 1, "queue": "other" })).await.job_id();
    let end = waiting_for_the_end(&ledger, &server, &id).await;
    let waiting = waiting_for_a_job(&ledger, &server, wait(30)).await;
    server.signal(Signal::TERM);
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, answer.json()["jobs"].clone()), (200, json!([])));
    let answer = end.await.unwrap();
    assert_eq!((answer.status, answer.json()["state"].clone()), (200, json!("queued")));
    assert!(server.ended().await);
}

#[tokio::test]
async fn a_client_that_waits_for_a_job_learns_its_end() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, ONLY_WOKEN).await;
    let id = server.submit("k", job(1)).await.job_id();
    let waiting = waiting_for_the_end(&ledger, &server, &id).await;
    let failed = server.take().await;
    // The job is not over after a failure that leaves attempts.
    server.settle_with(&failed.id, json!({ "job_id": id, "outcome": "failed", "retry_in_seconds": 0 })).await;
    let claim = server.take().await;
    let report = json!({ "job_id": id, "outcome": "succeeded", "result": { "n": 7 } });
    server.settle_with(&claim.id, report).await;
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, answer.json()), (200, server.job(&id).await));
    assert_eq!(answer.json()["result"], json!({ "n": 7 }));
    // A job that is over is answered at once.
    assert_eq!(server.get(&format!("/jobs/{id}?wait_seconds=30")).await.body, answer.body);
}

#[tokio::test]
async fn a_client_that_waits_learns_a_cancellation_and_a_deletion() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, ONLY_WOKEN).await;
    let id = server.submit("a", job(1)).await.job_id();
    let waiting = waiting_for_the_end(&ledger, &server, &id).await;
    server.cancel(&id).await;
    assert_eq!(waiting.await.unwrap().json()["state"], "cancelled");
    let id = server.submit("b", job(1)).await.job_id();
    let waiting = waiting_for_the_end(&ledger, &server, &id).await;
    server.delete(&id).await;
    waiting.await.unwrap().is_problem(410, "job-deleted");
}

#[tokio::test]
async fn a_client_that_waits_learns_an_end_on_another_replica_or_the_time_is_up() {
    let ledger = Ledger::new().await;
    let (one, two) = (serve(&ledger, LOOKS_OFTEN).await, serve(&ledger, LOOKS_OFTEN).await);
    let id = one.submit("k", job(1)).await.job_id();
    let waiting = waiting_for_the_end(&ledger, &one, &id).await;
    let claim = two.take().await;
    two.settle(&claim.id, &id, "succeeded").await;
    assert_eq!(waiting.await.unwrap().json()["state"], "succeeded");

    let id = one.submit("k2", job(2)).await.job_id();
    let began = Instant::now();
    let answer = one.get(&format!("/jobs/{id}?wait_seconds=1")).await;
    assert_eq!((answer.status, answer.json()["state"].clone()), (200, json!("queued")));
    assert!(began.elapsed() >= Duration::from_secs(1));
    for invalid in ["31", "-1", "x", "1.5"] {
        let refused = one.get(&format!("/jobs/{id}?wait_seconds={invalid}")).await;
        refused.is_problem(400, "invalid-parameter");
    }
}

#[tokio::test]
async fn a_claim_whose_client_has_gone_stops_waiting_and_takes_no_job() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, ONLY_WOKEN).await;
    for closes_only_its_side in [false, true] {
        let mut gone = claim_that_waits(&server, &server).await;
        if closes_only_its_side {
            gone.half_close().await;
            until_one_stops_waiting(&server, 0).await;
            assert_eq!(gone.answer().await.json()["jobs"], json!([]));
        } else {
            drop(gone);
            until_one_stops_waiting(&server, 0).await;
        }
        let id = server.submit(&new_id(), job(1)).await.job_id();
        let claim = server.take().await;
        assert_eq!((claim.job(), &claim.jobs[0]["attempt"]), (id.as_str(), &json!(1)));
        server.settle(&claim.id, &id, "succeeded").await;
    }
}

#[tokio::test]
async fn a_job_goes_to_the_worker_behind_one_that_has_gone() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, ONLY_WOKEN).await;
    let gone = claim_that_waits(&server, &server).await;
    let (client, id) = ((*server).clone(), new_id());
    let waiting = tokio::spawn(async move { client.claim(&id, wait(30)).await });
    until_waiting(&server, 2).await;
    drop(gone);
    until_one_stops_waiting(&server, 1).await;
    let id = server.submit("k", job(1)).await.job_id();
    let claim = Claim::of(&waiting.await.unwrap());
    assert_eq!((claim.job(), &claim.jobs[0]["attempt"]), (id.as_str(), &json!(1)));
}

#[tokio::test]
async fn a_wait_for_the_end_of_a_job_ends_when_its_client_has_gone() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger, ONLY_WOKEN).await;
    let id = server.submit("k", job(1)).await.job_id();
    let mut gone = server.raw().await;
    gone.write_head(&format!("GET /jobs/{id}?wait_seconds=30"), &[]).await;
    until_waiting(&server, 1).await;
    drop(gone);
    until_one_stops_waiting(&server, 0).await;
}

#[tokio::test]
async fn the_load_balancer_lets_a_replica_know_that_a_waiting_client_has_gone() {
    let ledger = Ledger::new().await;
    let addresses = [free_address(), free_address(), free_address()];
    let server = ledger.serve_at(addresses[0], &[&NO_QUOTAS[..], &[ONLY_WOKEN]].concat()).await;
    let balancer = Balancer::start(addresses, &ledger.token).await;
    balancer.until_ready(1).await;
    drop(claim_that_waits(&balancer, &server).await);
    until_one_stops_waiting(&server, 0).await;
}

/// The time-outs of `deploy/haproxy.cfg` must be longer than the longest wait.
#[tokio::test]
async fn the_load_balancer_waits_as_long_as_the_longest_wait() {
    let ledger = Ledger::new().await;
    let addresses = [free_address(), free_address(), free_address()];
    let _server = ledger.serve_at(addresses[0], &[&NO_QUOTAS[..], &[ONLY_WOKEN]].concat()).await;
    let balancer = Balancer::start(addresses, &ledger.token).await;
    balancer.until_ready(1).await;
    let began = Instant::now();
    let answer = Answer::of(balancer.put_claim(&new_id(), wait(30)).send().await.unwrap()).await;
    assert_eq!((answer.status, answer.json()["jobs"].clone()), (200, json!([])), "{answer:?}");
    assert!(began.elapsed() >= Duration::from_secs(30));
}

#[tokio::test]
async fn a_draining_replica_tells_its_workers_and_lets_none_wait() {
    let ledger = Ledger::new().await;
    let settings = [ONLY_WOKEN, ("HAPAX__SERVER__DRAIN_DELAY", "5m")];
    let server = ledger.serve_with(&[&NO_QUOTAS[..], &settings].concat()).await;
    server.submit("k", job(1)).await;
    let claim = server.take().await;
    assert_eq!(server.heartbeat(&claim.id).await.json()["draining"], false);
    let waiting = waiting_for_a_job(&ledger, &server, wait(30)).await;
    server.signal(Signal::TERM);
    assert_eq!(waiting.await.unwrap().json()["jobs"], json!([]));
    // It still serves: a worker can finish what it holds, and claim what is there.
    assert_eq!(server.heartbeat(&claim.id).await.json()["draining"], true);
    assert_eq!(server.claim(&new_id(), wait(30)).await.json()["jobs"], json!([]));
    server.submit("k2", job(2)).await;
    server.take().await;
    assert_eq!(server.settle(&claim.id, claim.job(), "succeeded").await.0, "recorded");
}
