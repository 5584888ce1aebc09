//! apalis-postgres: `push_task` of a task with an idempotency key, as in the crate's own example `unique_jobs`, to a
//! storage for each producer (a push takes it by `&mut`), all on a pool of one connection a client.
//!
//! Owns the command line, the clock and the printed line; the one query that it asks beside the peer is in `queries`.

mod queries;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use apalis_core::backend::TaskSink;
use apalis_core::task::builder::TaskBuilder;
use apalis_postgres::{Config, PgPool, PostgresStorage};
use clap::Parser;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinSet;
use uuid::Uuid;

const QUEUE: &str = "bench";
const WARM_UP: Duration = Duration::from_secs(1);
/// Six times, with the key and the names of the members, it is about 200 bytes of JSON.
const SENTENCE: &str = "The words of a customer. ";

#[derive(Parser)]
struct Asked {
    #[arg(long)]
    database_url: String,
    #[arg(long)]
    clients: u32,
    #[arg(long)]
    seconds: f64,
}

#[derive(Serialize, Deserialize)]
struct Order {
    order: String,
    text: String,
}

#[derive(Serialize)]
struct Line {
    peer: &'static str,
    version: &'static str,
    jobs: usize,
    seconds: f64,
    p50_us: u128,
    p99_us: u128,
}

#[derive(Default)]
struct Load {
    acknowledged: i64,
    latencies: Vec<Duration>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let asked = Asked::parse();
    let pool = PgPoolOptions::new().max_connections(asked.clients).connect(&asked.database_url).await?;
    PostgresStorage::setup(&pool).await?;

    a_key_twice_is_one_job(&pool).await?;
    let before = queries::count(&pool, QUEUE).await?;
    let mut load = put_under_load(&pool, &asked).await?;
    let stored = queries::count(&pool, QUEUE).await? - before;
    ensure!(stored == load.acknowledged, "{} inserts were acknowledged, {stored} jobs are stored", load.acknowledged);
    ensure!(!load.latencies.is_empty(), "no insert was acknowledged in time");

    load.latencies.sort_unstable();
    let line = Line {
        peer: "apalis-postgres",
        version: locked_version().context("Cargo.lock does not name the peer")?,
        jobs: load.latencies.len(),
        seconds: asked.seconds,
        p50_us: at_share(&load.latencies, 0.5),
        p99_us: at_share(&load.latencies, 0.99),
    };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}

/// Else the keys would be ballast, and the figures those of a plain insert.
async fn a_key_twice_is_one_job(pool: &PgPool) -> Result<()> {
    let (key, before) = (Uuid::new_v4().to_string(), queries::count(pool, QUEUE).await?);
    let mut storage = storage(pool);
    insert(&mut storage, key.clone()).await?;
    if let Err(refused) = insert(&mut storage, key).await {
        eprintln!("The same key again: {refused:#}");
    }
    let stored = queries::count(pool, QUEUE).await? - before;
    ensure!(stored == 1, "the same key twice made {stored} jobs");
    Ok(())
}

async fn put_under_load(pool: &PgPool, asked: &Asked) -> Result<Load> {
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::try_from_secs_f64(asked.seconds)?;
    let mut producers = JoinSet::new();
    for _ in 0..asked.clients {
        producers.spawn(produce(storage(pool), begin, end));
    }
    let mut all = Load::default();
    while let Some(produced) = producers.join_next().await {
        let produced = produced??;
        all.acknowledged += produced.acknowledged;
        all.latencies.extend(produced.latencies);
    }
    Ok(all)
}

async fn produce(mut storage: PostgresStorage<Order>, begin: Instant, end: Instant) -> Result<Load> {
    let mut load = Load::default();
    while Instant::now() < end {
        let key = Uuid::new_v4().to_string();
        let sent = Instant::now();
        insert(&mut storage, key).await?;
        let answered = Instant::now();
        load.acknowledged += 1;
        if (begin..end).contains(&answered) {
            load.latencies.push(answered - sent);
        }
    }
    Ok(load)
}

fn storage(pool: &PgPool) -> PostgresStorage<Order> {
    PostgresStorage::new(pool).with_config(Config::default().queue(QUEUE))
}

async fn insert(storage: &mut PostgresStorage<Order>, key: String) -> Result<()> {
    let order = Order { order: key.clone(), text: SENTENCE.repeat(6) };
    storage.push_task(TaskBuilder::new(order).idempotency_key(key).build()).await?;
    Ok(())
}

fn at_share(sorted: &[Duration], share: f64) -> u128 {
    sorted[(share * sorted.len() as f64).ceil() as usize - 1].as_micros()
}

/// Cargo tells a program its own version alone.
fn locked_version() -> Option<&'static str> {
    let (_, entry) = include_str!("../Cargo.lock").split_once("name = \"apalis-postgres\"\nversion = \"")?;
    entry.split('"').next()
}
