//! `make demo`: three replicas behind the load balancer, clients in front of them, and three workers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::clients::{CLIENTS as SUBMITTERS, Clients, work};
use super::workers::{LEASE, Workers};
use super::{failures, tally, verdict};
use crate::harness::{Answer, Balancer, Ledger, Load, NO_QUOTAS, OnFailure, OwnPostgres, Server, free_address};

/// The bound for a lost job to come back is [`LEASE`] and this.
pub const RECLAIM_INTERVAL: Duration = Duration::from_millis(500);

/// Jobs that the copies and the different requests make.
pub const JOBS: usize = 201;

const REQUESTS: u64 = 200;
/// Clients that submit without a pause during the rolling restart.
const CLIENTS: usize = 16;

pub async fn show(postgres: &OwnPostgres) -> bool {
    println!("Three replicas of the release behind the load balancer of deploy/haproxy.cfg, on one PostgreSQL.");
    let ledger = postgres.ledger().await;
    let mut replicas = Replicas::start(&ledger).await;
    let balancer = Balancer::start(replicas.addresses, &ledger.token).await;
    balancer.until_ready(3).await;
    println!("  the load balancer sends requests to all three, on {}", balancer.address);
    let mut workers = Workers::start(3, &balancer, &ledger.token);
    println!("  three workers (examples/worker.py) claim jobs through it, with leases of {} s", LEASE.as_secs());

    let mut kept = copies(&balancer, &ledger).await;
    kept &= different(&balancer, &ledger).await;
    let clients = Clients::start(&balancer);
    println!("\nFrom now on, {SUBMITTERS} clients submit jobs to the workers' queue, each of them twice at once.");
    kept &= failures::in_the_work(&balancer).await;
    kept &= failures::of_a_worker(&balancer, &mut workers).await;
    kept &= failures::of_a_replica(&balancer, &ledger, &mut replicas, &clients).await;
    kept &= rolling_restart(&balancer, &ledger, &mut replicas, &clients).await;
    kept & tally::show(&balancer, &ledger, workers, clients.stop().await).await
}

/// The replicas, each with its address, which its successor takes over.
pub struct Replicas {
    pub addresses: [SocketAddr; 3],
    servers: Vec<Server>,
}

impl Replicas {
    async fn start(ledger: &Ledger) -> Self {
        let addresses = [free_address(), free_address(), free_address()];
        let mut servers = Vec::new();
        for address in addresses {
            servers.push(start(ledger, address).await);
            println!("  replica {} serves on {address}", servers.len());
        }
        Self { addresses, servers }
    }

    /// Sends a signal to a replica and waits for its end. Returns whether it exited with success.
    pub async fn end(&mut self, place: usize, signal: Signal) -> bool {
        let server = self.servers.remove(place);
        server.signal(signal);
        server.ended().await
    }

    /// Starts the successor of a replica that has ended.
    pub async fn replace(&mut self, place: usize, ledger: &Ledger) {
        self.servers.insert(place, start(ledger, self.addresses[place]).await);
    }
}

async fn start(ledger: &Ledger, address: SocketAddr) -> Server {
    // As in production, except for a short drain delay, short times until a job runs again, and no quotas, because all
    // load comes from one token.
    let reclaim_interval = format!("{}ms", RECLAIM_INTERVAL.as_millis());
    let short: [(&str, &str); 3] = [
        ("HAPAX__SERVER__DRAIN_DELAY", "2s"),
        ("HAPAX__CLAIMS__RECLAIM_INTERVAL", &reclaim_interval),
        ("HAPAX__CLAIMS__RETRY_DELAY_MIN", "1s"),
    ];
    let settings = [&short[..], &NO_QUOTAS].concat();
    Server::start_with_default_deadlines(address, &ledger.url, &ledger.token, &settings).await
}

async fn copies(balancer: &Balancer, ledger: &Ledger) -> bool {
    println!("\n{REQUESTS} copies of one request, at once:");
    let sent: Vec<_> = (0..REQUESTS).map(|_| balancer.submit_in_background("the-key", work(0, 0))).collect();
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
    let sent: Vec<_> = (0..REQUESTS).map(|n| balancer.submit_in_background(&format!("key-{n}"), work(n, 0))).collect();
    let answers = collect(sent).await;
    let tally = by_status(&answers);
    let kept = verdict(tally == BTreeMap::from([(201, 200)]), &format!("answers by status: {tally:?}"));
    let jobs = ledger.jobs().await;
    kept & verdict(jobs == 201, &format!("jobs in the database: {jobs}"))
}

/// Clients without a pause submit to another queue, so that the workers' queue does not grow.
async fn rolling_restart(balancer: &Balancer, ledger: &Ledger, replicas: &mut Replicas, clients: &Clients) -> bool {
    println!(
        "\nA rolling restart of all three, {CLIENTS} more clients submitting without a pause, none of them retrying:"
    );
    let loaded = "select count(*) from job_queue where queue = 'default'";
    let (before, failed_before) = (ledger.number(loaded).await, clients.tally().failed());
    let hidden_before = balancer.hidden_failures().await;
    let load = Load::start(balancer, CLIENTS, OnFailure::NextJob);
    load.until_more(201, 200).await;
    for place in 0..3 {
        let began = Instant::now();
        assert!(replicas.end(place, Signal::TERM).await, "the replica exits with success");
        let drained = began.elapsed();
        replicas.replace(place, ledger).await;
        balancer.until_ready(3).await;
        let answered: usize = load.tally().answers.values().sum();
        println!(
            "  replica {} gone after {:.1} s, its successor in use after {:.1} s; {answered} requests so far",
            place + 1,
            drained.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }
    load.until_more(201, 200).await;
    let tally = load.stop().await;
    let requests: usize = tally.answers.values().sum();
    let failed = tally.failed() + clients.tally().failed() - failed_before;
    let kept = verdict(failed == 0, &format!("{failed} of {requests} requests failed"));
    let hidden = balancer.hidden_failures().await - hidden_before;
    let kept = kept & verdict(hidden == 0, &format!("{hidden} failures hidden by the load balancer"));
    let made = ledger.number(loaded).await - before;
    kept & verdict(
        made == i64::try_from(tally.created()).unwrap(),
        &format!("{made} jobs for {} × 201", tally.created()),
    )
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
