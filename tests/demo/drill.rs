//! `make drill`: failures under load, with figures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::verdict;
use crate::harness::{Client, Ledger, Load, NO_QUOTAS, OnFailure, OwnPostgres, Proxy, Server, job};

const CLIENTS: usize = 64;
/// The default; the drills do not change it.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_millis(100);

pub async fn show(postgres: &OwnPostgres) -> bool {
    let mut kept = killed(postgres).await;
    kept &= silenced(postgres).await;
    kept & overloaded(postgres).await
}

/// No quotas: all load comes from one token.
async fn serve(ledger: &Ledger, url: &str) -> Server {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Server::start_with_default_deadlines(any, url, &ledger.token, &NO_QUOTAS).await
}

async fn killed(postgres: &OwnPostgres) -> bool {
    println!("PostgreSQL stopped immediately (as in a crash) for 5 s, {CLIENTS} clients retrying all the while:");
    let ledger = postgres.ledger().await;
    let server = serve(&ledger, &ledger.url).await;
    let load = Load::start(&server, CLIENTS, OnFailure::Retry);
    load.until_more(201, 500).await;
    postgres.stop_immediately().await;
    sleep(Duration::from_secs(5)).await;
    postgres.start_again().await;
    let back = Instant::now();
    load.until_more(201, 1).await;
    let first = back.elapsed();
    load.until_more(201, 500).await;
    let mut tally = load.stop().await;
    println!("  answers by status: {:?}", tally.answers);
    let kept = verdict(first < Duration::from_secs(1), &format!("first 201 {} ms after its return", first.as_millis()));
    let slowest =
        format!("slowest answer {} ms, deadline {} ms", tally.slowest.as_millis(), REQUEST_DEADLINE.as_millis());
    let kept = kept & verdict(tally.slowest < REQUEST_DEADLINE + GRACE, &slowest);
    let done = tally.jobs.len();
    tally.jobs.sort_unstable();
    tally.jobs.dedup();
    let (jobs, keys) = (ledger.jobs().await, ledger.keys().await);
    let once = tally.jobs.len() == done && jobs == keys && jobs == i64::try_from(done).unwrap();
    kept & verdict(once, &format!("{done} requests done, {jobs} jobs and {keys} keys in the database"))
}

async fn silenced(postgres: &OwnPostgres) -> bool {
    println!("\nA network to PostgreSQL that drops all packets, {CLIENTS} clients, for 12 s:");
    let ledger = postgres.ledger().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = serve(&ledger, &proxy.url(&ledger)).await;
    let load = Load::start(&server, CLIENTS, OnFailure::NextJob);
    load.until_more(201, 500).await;
    proxy.start_black_hole();
    sleep(Duration::from_secs(12)).await;
    let alive = server.get("/healthz").await.status;
    proxy.end_black_hole();
    let back = Instant::now();
    load.until_more(201, 1).await;
    let first = back.elapsed();
    let tally = load.stop().await;
    println!("  answers by status: {:?}; /healthz meanwhile: {alive}", tally.answers);
    println!("  first 201 {} ms after its return", first.as_millis());
    let slowest =
        format!("slowest answer {} ms, deadline {} ms", tally.slowest.as_millis(), REQUEST_DEADLINE.as_millis());
    verdict(tally.slowest < REQUEST_DEADLINE + GRACE && alive == 200, &slowest)
}

/// The database is slow, not busy. Otherwise the clients, which run on the same cores, would be the bottleneck.
async fn overloaded(postgres: &OwnPostgres) -> bool {
    const MEASURED: Duration = Duration::from_secs(6);
    const TIMES: f64 = 10.0;
    println!("\nTen times the load that one replica carries, on a database that takes 50 ms for each commit:");
    let ledger = postgres.ledger().await;
    ledger
        .execute(
            "create function slow() returns trigger language plpgsql as
             'begin perform pg_sleep(0.05); return null; end';
             create constraint trigger slow after insert on jobs deferrable initially deferred
             for each row execute function slow()",
        )
        .await;
    let server = serve(&ledger, &ledger.url).await;
    let load = Load::start(&server, CLIENTS, OnFailure::NextJob);
    load.until_more(201, 100).await;
    let (began, before) = (Instant::now(), load.tally().created());
    sleep(MEASURED).await;
    let created = f64::from(u32::try_from(load.tally().created() - before).unwrap());
    let peak = created / began.elapsed().as_secs_f64();
    let refused = load.stop().await.failed();
    println!("  {CLIENTS} clients, one request after the other: {peak:.0} jobs a second, {refused} refused");

    let flood = flood(&server, peak * TIMES, MEASURED).await;
    let goodput = flood.created / MEASURED.as_secs_f64();
    println!(
        "  {:.0} requests a second whatever the answers: {goodput:.0} jobs a second, {} refused, {} otherwise",
        flood.sent / MEASURED.as_secs_f64(),
        flood.refused,
        flood.other
    );
    let kept = verdict(goodput > 0.9 * peak, &format!("goodput {:.2} of the peak", goodput / peak));
    let again = server.submit("afterwards", job(0)).await.status;
    kept & verdict(again == 201 && flood.other == 0, &format!("the next request: {again}"))
}

struct Flood {
    sent: f64,
    created: f64,
    refused: usize,
    other: usize,
}

/// Sends requests at a fixed rate, whatever the answers are.
async fn flood(client: &Client, per_second: f64, duration: Duration) -> Flood {
    const TICK: Duration = Duration::from_millis(2);
    let counts = Arc::new([const { AtomicUsize::new(0) }; 3]);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (began, mut sent, mut requests) = (Instant::now(), 0_u64, Vec::new());
    let mut created_in_time = 0;
    while began.elapsed() < duration {
        ticks.tick().await;
        let due = (began.elapsed().as_secs_f64() * per_second) as u64;
        for n in sent..due {
            let (client, counts) = (client.clone(), Arc::clone(&counts));
            requests.push(tokio::spawn(async move {
                let status =
                    client.post_jobs(&format!("flood-{n}"), job(n)).send().await.map(|answer| answer.status().as_u16());
                let kind = match status {
                    Ok(201) => 0,
                    Ok(503) => 1,
                    _ => 2,
                };
                counts[kind].fetch_add(1, Ordering::Relaxed);
            }));
        }
        sent = due;
        created_in_time = counts[0].load(Ordering::Relaxed);
    }
    for request in requests {
        request.await.unwrap();
    }
    let [_, refused, other] = [0, 1, 2].map(|kind| counts[kind].load(Ordering::Relaxed));
    let float = |count: usize| f64::from(u32::try_from(count).unwrap());
    Flood { sent: sent as f64, created: float(created_in_time), refused, other }
}
