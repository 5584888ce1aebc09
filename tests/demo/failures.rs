//! What goes wrong during the demonstration, and what becomes of the jobs.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::clients::{Clients, work};
use super::replicas::{RECLAIM_INTERVAL, Replicas};
use super::verdict;
use super::workers::{LEASE, Workers};
use crate::harness::{Balancer, Ledger, until};

/// Jobs that the functions of this file submit.
pub const JOBS: usize = 4;

/// For a slow machine: how much later than promised a lost job may come back.
const GRACE: Duration = Duration::from_secs(1);

pub async fn in_the_work(balancer: &Balancer) -> bool {
    println!("\nA job that runs for longer than its lease, one whose first attempt fails, and one that is cancelled:");
    let long = submit(balancer, "long", json!({ "milliseconds": (LEASE + Duration::from_secs(2)).as_millis() })).await;
    let failing = submit(balancer, "failing", json!({ "fail_once": true })).await;
    let endless = submit(balancer, "endless", json!({ "milliseconds": 600_000 })).await;
    until_running(balancer, &endless).await;
    let began = Instant::now();
    balancer.cancel(&endless).await;
    let ended = over(balancer, &endless).await;
    let state = ended["state"].as_str().unwrap();
    let after = began.elapsed().as_secs_f64();
    let kept = verdict(state == "cancelled", &format!("cancelled while it ran: {state} after {after:.1} s"));
    over(balancer, &failing).await;
    let outcomes = outcomes(balancer, &failing).await;
    let kept = kept & verdict(outcomes == ["failed", "succeeded"], &format!("failed once: {}", outcomes.join(", ")));
    over(balancer, &long).await;
    let outcomes = self::outcomes(balancer, &long).await;
    kept & verdict(outcomes == ["succeeded"], &format!("longer than its lease: {}, by heartbeats", outcomes.join(", ")))
}

pub async fn of_a_worker(balancer: &Balancer, workers: &mut Workers) -> bool {
    println!("\nA worker killed with -9 in the middle of a job:");
    let job = submit(balancer, "lost", json!({ "milliseconds": 2_000 })).await;
    let running = until_running(balancer, &job).await;
    let claim = balancer.get(&format!("/claims/{}", running["claim_id"].as_str().unwrap())).await.json();
    let name = claim["worker"].as_str().unwrap();
    workers.kill(name);
    let killed = Instant::now();
    println!("  {name} is killed while it runs job {job}");
    until("the lost job is taken back", async || {
        let lost = outcomes(balancer, &job).await[0] == "lost";
        lost.then_some(())
    })
    .await;
    let (back, promised) = (killed.elapsed(), LEASE + RECLAIM_INTERVAL);
    let after = format!(
        "available again after {:.1} s; promised: lease and claims.reclaim_interval, {:.1} s",
        back.as_secs_f64(),
        promised.as_secs_f64()
    );
    let kept = verdict(back < promised + GRACE, &after);
    let ended = over(balancer, &job).await;
    let attempts = attempts(balancer, &job).await;
    let second = attempts[1]["worker"].as_str().unwrap();
    let state = ended["state"].as_str().unwrap();
    let told = format!("finished with attempt {}, by {second}: {state}", ended["attempt"]);
    kept & verdict(attempts.len() == 2 && second != name && state == "succeeded", &told)
}

pub async fn of_a_replica(balancer: &Balancer, ledger: &Ledger, replicas: &mut Replicas, clients: &Clients) -> bool {
    println!("\nA replica killed with -9:");
    let (began, before) = (Instant::now(), clients.tally());
    replicas.end(0, Signal::KILL).await;
    balancer.until_ready(2).await;
    println!("  the load balancer has taken it out after {:.1} s", began.elapsed().as_secs_f64());
    replicas.replace(0, ledger).await;
    balancer.until_ready(3).await;
    println!("  its successor in use after {:.1} s", began.elapsed().as_secs_f64());
    let after = clients.tally();
    let (jobs, failed) = (after.jobs - before.jobs, after.failed() - before.failed());
    verdict(
        jobs > 0,
        &format!("{jobs} jobs submitted meanwhile; failed attempts, which the clients repeated: {failed}"),
    )
}

/// Submits a job that runs before those of the other clients.
async fn submit(balancer: &Balancer, key: &str, payload: Value) -> String {
    let mut job = work(0, 0);
    (job["priority"], job["payload"]) = (json!(1), payload);
    let answer = balancer.submit(key, job).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.job_id()
}

async fn until_running(balancer: &Balancer, id: &str) -> Value {
    until(format!("job {id} runs"), async || {
        let job = balancer.get(&format!("/jobs/{id}")).await.json();
        (job["state"] == "running").then_some(job)
    })
    .await
}

/// The job, once it has ended.
async fn over(balancer: &Balancer, id: &str) -> Value {
    until(format!("job {id} has ended"), async || {
        let job = balancer.get(&format!("/jobs/{id}?wait_seconds=20")).await.json();
        let ended = !["queued", "running"].contains(&job["state"].as_str().unwrap());
        ended.then_some(job)
    })
    .await
}

async fn attempts(balancer: &Balancer, id: &str) -> Vec<Value> {
    let answer = balancer.get(&format!("/jobs/{id}/attempts")).await.json();
    answer["attempts"].as_array().unwrap().clone()
}

/// What was reported of each attempt, oldest first.
async fn outcomes(balancer: &Balancer, id: &str) -> Vec<String> {
    let attempts = attempts(balancer, id).await;
    attempts.iter().map(|attempt| attempt["reported"].as_str().unwrap().to_owned()).collect()
}
