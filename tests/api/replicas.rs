//! Three replicas behind the load balancer of `deploy/`, as in production.

use std::net::SocketAddr;

use rustix::process::Signal;

use crate::harness::{
    Answer, Balancer, Ledger, Load, NO_QUOTAS, OnFailure, SHORT_DEADLINES, Server, free_address, job, until,
};

/// With a drain delay that is longer than two checks of the load balancer, half a second apart, on the slowest machine.
async fn serve(ledger: &Ledger, address: SocketAddr) -> Server {
    let settings = [("HAPAX__SERVER__DRAIN_DELAY", "10s")];
    ledger.serve_at(address, &[&settings[..], &NO_QUOTAS].concat()).await
}

struct Replicas {
    balancer: Balancer,
    servers: Vec<Server>,
    addresses: [SocketAddr; 3],
}

async fn replicas(ledger: &Ledger) -> Replicas {
    let addresses = [free_address(), free_address(), free_address()];
    let mut servers = Vec::new();
    for address in addresses {
        servers.push(serve(ledger, address).await);
    }
    let balancer = Balancer::start(addresses, &ledger.token).await;
    balancer.until_ready(3).await;
    Replicas { balancer, servers, addresses }
}

#[tokio::test]
async fn copies_on_three_replicas_create_one_job() {
    let ledger = Ledger::new().await;
    let replicas = replicas(&ledger).await;
    let copies: Vec<_> = (0..60).map(|_| replicas.balancer.submit_in_background("the-key", job(1))).collect();
    let mut answers = Vec::new();
    for copy in copies {
        answers.push(copy.await.unwrap());
    }
    answers.sort_by_key(|answer| std::cmp::Reverse(answer.status));
    assert_eq!(answers[0].status, 201);
    assert!(answers[1..].iter().all(|answer| answer.status == 200 && answer.body == answers[0].body));
    // The load balancer may have skipped a replica; a later copy gets the same answer from it.
    let replayed = r#"hapax_http_requests_total{method="POST",route="/jobs",status="200"}"#;
    for server in &replicas.servers {
        until("every replica has answered a copy", async || {
            let copy = replicas.balancer.submit("the-key", job(1)).await;
            assert_eq!((copy.status, &copy.body), (200, &answers[0].body));
            (server.metric(replayed).await > 0.0).then_some(())
        })
        .await;
    }
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn a_rolling_restart_under_load_fails_no_request() {
    let ledger = Ledger::new().await;
    let Replicas { balancer, mut servers, addresses } = replicas(&ledger).await;
    let load = Load::start(&balancer, 8, OnFailure::NextJob);
    load.until_more(201, 50).await;
    for (number, address) in addresses.into_iter().enumerate() {
        let old = servers.remove(0);
        old.signal(Signal::TERM);
        assert!(old.ended().await);
        balancer.until_ready(2).await;
        load.until_more(201, 50).await;
        servers.push(serve(&ledger, address).await);
        balancer.until_ready(3).await;
        load.until_more(201, 50).await;
        println!("replica {number} replaced: {:?}", load.tally().answers);
    }
    let tally = load.stop().await;
    assert_eq!(tally.failed(), 0, "{:?}", tally.answers);
    assert_eq!(balancer.hidden_failures().await, 0);
    ledger.assert_consistent(tally.created().try_into().unwrap()).await;
}

#[tokio::test]
async fn a_replica_killed_under_load_loses_and_duplicates_no_job() {
    let ledger = Ledger::new().await;
    let Replicas { balancer, mut servers, .. } = replicas(&ledger).await;
    let load = Load::start(&balancer, 8, OnFailure::Retry);
    load.until_more(201, 50).await;
    servers.remove(0).signal(Signal::KILL);
    load.until_more(201, 200).await;
    let mut tally = load.stop().await;
    tally.jobs.sort_unstable();
    tally.jobs.dedup();
    // Each client retried until its job was accepted, so there is one job for each.
    let done = tally.created() + tally.answers.get(&200).copied().unwrap_or_default();
    assert_eq!(tally.jobs.len(), done);
    ledger.assert_consistent(done.try_into().unwrap()).await;
}

#[tokio::test]
async fn the_load_balancer_forwards_the_client_address_and_hides_metrics() {
    let ledger = Ledger::new().await;
    let replicas = replicas(&ledger).await;
    let spoofed = replicas.balancer.post_jobs("k", job(1)).header("x-forwarded-for", "192.0.2.1, 192.0.2.2");
    let answer = replicas.balancer.send(spoofed.header("x-request-id", "from-the-client")).await;
    assert_eq!((answer.status, answer.header("x-request-id")), (201, "from-the-client"));
    let logged = async || {
        let logs: Vec<String> = replicas.servers.iter().map(|server| server.log_text()).collect();
        let lines = logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains("from-the-client"));
        Some(lines.map(str::to_owned).collect::<Vec<_>>()).filter(|lines| !lines.is_empty())
    };
    let lines = until("a replica logs the request", logged).await;
    assert!(lines.len() == 1 && lines[0].contains(r#""forwarded_for":"127.0.0.1""#), "{lines:?}");
    replicas.balancer.get("/metrics").await.is_problem(404, "route-not-found");
    assert!(!replicas.balancer.get("/healthz").await.header("x-request-id").is_empty());
}

#[tokio::test]
async fn without_replicas_the_load_balancer_returns_problem_documents() {
    let ledger = Ledger::new().await;
    let balancer = Balancer::start([free_address(), free_address(), free_address()], &ledger.token).await;
    // The load balancer's own answer, which is not part of the contract.
    let answer = Answer::of(balancer.post_jobs("k", job(1)).send().await.unwrap()).await;
    answer.is_problem(503, "not-ready");
    answer.assert_retry_after();
}

#[tokio::test]
async fn during_an_outage_the_replicas_answer_and_recover_immediately() {
    let ledger = Ledger::new().await;
    let addresses = [free_address(), free_address(), free_address()];
    let mut servers = Vec::new();
    for address in addresses {
        servers.push(ledger.serve_at(address, &SHORT_DEADLINES).await);
    }
    let balancer = Balancer::start(addresses, &ledger.token).await;
    balancer.until_ready(3).await;
    assert_eq!(balancer.submit("key-1", job(1)).await.status, 201);
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    balancer.until_ready(0).await;
    let refused = balancer.submit("key-2", job(2)).await;
    // After losing an idle connection it is unknown whether the statement arrived.
    assert!(["database-unavailable", "outcome-unknown"].contains(&refused.problem().as_str()), "{refused:?}");
    refused.assert_retry_after();
    ledger.rename_back_from(&away).await;
    let answer = balancer.submit_with_retries("key-2", job(2)).await;
    assert_eq!(answer.status, 201);
    ledger.assert_consistent(2).await;
}
