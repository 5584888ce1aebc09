//! `make demo`: three replicas behind the load balancer.

use std::collections::BTreeMap;
use std::time::Instant;

use rustix::process::Signal;

use super::verdict;
use crate::harness::{Answer, Balancer, Ledger, Load, NO_QUOTAS, OnFailure, OwnPostgres, Server, free_address, job};

const REQUESTS: u64 = 200;
const CLIENTS: usize = 16;

pub async fn show(postgres: &OwnPostgres) -> bool {
    println!("Three replicas of the release behind the load balancer of deploy/haproxy.cfg, on one PostgreSQL.");
    let ledger = postgres.ledger().await;
    let addresses = [free_address(), free_address(), free_address()];
    let mut servers = Vec::new();
    for address in addresses {
        servers.push(start(&ledger, address).await);
        println!("  replica {} serves on {address}", servers.len());
    }
    let balancer = Balancer::start(addresses, &ledger.token).await;
    balancer.until_ready(3).await;
    println!("  the load balancer sends requests to all three, on {}", balancer.address);

    let mut kept = copies(&balancer, &ledger).await;
    kept &= different(&balancer, &ledger).await;

    println!("\nA rolling restart of all three, {CLIENTS} clients submitting all the while, none of them retrying:");
    let before = ledger.jobs().await;
    let load = Load::start(&balancer, CLIENTS, OnFailure::NextJob);
    load.until_more(201, 200).await;
    for (number, address) in addresses.into_iter().enumerate() {
        let began = Instant::now();
        let old = servers.remove(0);
        old.signal(Signal::TERM);
        assert!(old.ended().await, "the replica exits with success");
        let drained = began.elapsed();
        servers.push(start(&ledger, address).await);
        balancer.until_ready(3).await;
        let answered: usize = load.tally().answers.values().sum();
        println!(
            "  replica {} gone after {:.1} s, its successor in use after {:.1} s; {answered} requests so far",
            number + 1,
            drained.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }
    load.until_more(201, 200).await;
    let tally = load.stop().await;
    let requests: usize = tally.answers.values().sum();
    kept &= verdict(tally.failed() == 0, &format!("{} of {requests} requests failed", tally.failed()));
    let hidden = balancer.hidden_failures().await;
    kept &= verdict(hidden == 0, &format!("{hidden} failures hidden by the load balancer"));
    let made = ledger.jobs().await - before;
    kept & verdict(
        made == i64::try_from(tally.created()).unwrap(),
        &format!("{made} jobs for {} × 201", tally.created()),
    )
}

async fn start(ledger: &Ledger, address: std::net::SocketAddr) -> Server {
    // As in production, except for a short drain delay and no quotas, because all load comes from one token.
    let settings = [&[("HAPAX__SERVER__DRAIN_DELAY", "2s")][..], &NO_QUOTAS].concat();
    Server::start_with_default_deadlines(address, &ledger.url, &ledger.token, &settings).await
}

async fn copies(balancer: &Balancer, ledger: &Ledger) -> bool {
    println!("\n{REQUESTS} copies of one request, at once:");
    let sent: Vec<_> = (0..REQUESTS).map(|_| balancer.submit_in_background("the-key", job(0))).collect();
    let answers = collect(sent).await;
    let same = answers.iter().all(|answer| answer.body == answers[0].body);
    let tally = by_status(&answers);
    let kept = verdict(tally == BTreeMap::from([(200, 199), (201, 1)]), &format!("answers by status: {tally:?}"));
    let kept = kept & verdict(same, &format!("all with the same bytes, of job {}", answers[0].job_id()));
    let jobs = ledger.jobs().await;
    kept & verdict(jobs == 1, &format!("jobs in the database: {jobs}"))
}

async fn different(balancer: &Balancer, ledger: &Ledger) -> bool {
    println!("\n{REQUESTS} different requests, at once:");
    let sent: Vec<_> = (0..REQUESTS).map(|n| balancer.submit_in_background(&format!("key-{n}"), job(n))).collect();
    let answers = collect(sent).await;
    let tally = by_status(&answers);
    let kept = verdict(tally == BTreeMap::from([(201, 200)]), &format!("answers by status: {tally:?}"));
    let jobs = ledger.jobs().await;
    kept & verdict(jobs == 201, &format!("jobs in the database: {jobs}"))
}

async fn collect(sent: Vec<tokio::task::JoinHandle<Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for answer in sent {
        answers.push(answer.await.unwrap());
    }
    answers
}

fn by_status(answers: &[Answer]) -> BTreeMap<u16, usize> {
    let mut tally = BTreeMap::new();
    answers.iter().for_each(|answer| *tally.entry(answer.status).or_default() += 1);
    tally
}
