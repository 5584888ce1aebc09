use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hapax::access::Token;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::Row;
use crate::bodies::read_status;
use crate::harness::{Client, job};
use crate::memory::Memory;
use crate::neighbour::{self, Call, statuses};
use crate::target::Target;

/// Duration of an attack.
const DURATION: Duration = Duration::from_secs(8);
/// Slightly below the maximum body size.
const BODY_BYTES: usize = 1_040_000;

/// Batch heads with unseen tokens, while another transaction locks the table of tokens. The neighbour's token is
/// cached.
pub async fn unknown_tokens(target: &Target) -> Vec<Row> {
    const LOCKED: Duration = Duration::from_millis(1800);
    let mut rows = Vec::new();
    for count in [63, target.count(1000, 100)] {
        let before = neighbour::before(&target.neighbour, &Call::SmallPost).await;
        let attack = async {
            let locked = target.ledger.lock_table("access_tokens", "access exclusive").await;
            let until = Instant::now() + LOCKED;
            let heads: Vec<_> = (0..count).map(|_| tokio::spawn(send_head(target.server.address, until))).collect();
            tokio::time::sleep_until(until).await;
            locked.roll_back().await;
            collect(heads).await
        };
        let (during, answers) = neighbour::during(&target.neighbour, &Call::SmallPost, attack).await;
        rows.push(Row {
            attack: format!("{count} heads, {} ms", LOCKED.as_millis()),
            result: format!("heads: {}", statuses(&answers)),
            neighbour: Some([before.text(), during.text()]),
        });
    }
    rows
}

async fn send_head(address: std::net::SocketAddr, until: Instant) -> BTreeMap<u16, usize> {
    let head = format!(
        "POST /jobs/batch HTTP/1.1\r\nhost: siege\r\nauthorization: Bearer {}\r\n\
         content-type: application/x-ndjson\r\ncontent-length: 100\r\n\r\n",
        Token::mint().expose()
    );
    let answered = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(head.as_bytes()).await.ok()?;
        Some(read_status(&mut stream).await)
    };
    BTreeMap::from([(timeout_at(until, answered).await.ok().flatten().unwrap_or(0), 1)])
}

const BUSY: &str = "select count(*) from pg_stat_activity where datname = current_database() \
                    and application_name = 'hapax' and state = 'active'";

/// `GET /queues?limit=200`, where every queue has more jobs than are counted.
pub async fn queues(target: &Target) -> Vec<Row> {
    let (queues, jobs) = (target.count(200, 20), 10_001);
    let made = target.neighbour.post_jobs("the-job", job(1)).send().await.unwrap();
    let path = made.headers()["location"].to_str().unwrap().to_owned();
    let fill = format!(
        "insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at) \
         select id, gen_random_uuid(), 'queue-' || lpad(queue::text, 3, '0'), 2, now(), 25, now() \
         from tenants, generate_series(1, {queues}) queue, generate_series(1, {jobs}) where name = 'acme'; \
         analyze job_queue"
    );
    target.ledger.execute(&fill).await;
    let call = Call::Get(path);
    let mut rows = Vec::new();
    for clients in [4, 16] {
        // Waits for statements that the previous attack left behind.
        target.ledger.until(BUSY, |statements| statements == 0).await;
        let before = neighbour::before(&target.neighbour, &call).await;
        let request = |client: &Client, _| client.request("GET", "/queues?limit=200");
        let attack = send_all_the_time(&target.server, clients, request);
        let (during, answers) = neighbour::during(&target.neighbour, &call, attack).await;
        rows.push(Row {
            attack: format!("{clients} clients, {queues} queues"),
            result: format!("attacker: {}", statuses(&answers)),
            neighbour: Some([before.text(), during.text()]),
        });
    }
    rows
}

/// Bodies of the maximum size, with many small numbers.
pub async fn parsing(target: &Target) -> Row {
    let body: Arc<str> = format!(r#"{{"type":"t","payload":[{}0]}}"#, "1,".repeat(BODY_BYTES / 2)).into();
    posts(target, move |client, n| client.post_jobs(&format!("numbers-{n}"), &body)).await
}

/// Bodies of the maximum size, with only empty lines.
pub async fn empty_lines(target: &Target) -> Row {
    let body: Arc<str> = "\n".repeat(BODY_BYTES).into();
    posts(target, move |client, _| client.post_jobs("empty-lines", &body)).await
}

/// Batches of short lines whose idempotency keys stand for jobs of the maximum size.
pub async fn taken_keys(target: &Target) -> Row {
    const KEYS: usize = 40;
    let large = json!({ "type": "t", "payload": "x".repeat(BODY_BYTES) });
    let mut lines = String::new();
    for key in (0..KEYS).map(|n| format!("taken-{n}")) {
        assert_eq!(target.server.submit(&key, &large).await.status, 201);
        let item = json!({ "idempotency_key": key, "job": { "type": "t", "payload": 1 } });
        lines += &format!("{item}\n").repeat(4);
    }
    posts(target, move |client, _| {
        let request = client.request("POST", "/jobs/batch").header("content-type", "application/x-ndjson");
        request.body(lines.clone())
    })
    .await
}

/// A few clients that each send these requests one after the other.
async fn posts(
    target: &Target,
    request: impl Fn(&Client, u64) -> reqwest::RequestBuilder + Clone + Send + Sync + 'static,
) -> Row {
    const CLIENTS: usize = 8;
    let before = neighbour::before(&target.neighbour, &Call::SmallPost).await;
    let memory = Memory::of(target.server.process());
    let attack = send_all_the_time(&target.server, CLIENTS, request);
    let (during, answers) = neighbour::during(&target.neighbour, &Call::SmallPost, attack).await;
    Row {
        attack: format!("{CLIENTS} clients, {} s", DURATION.as_secs()),
        result: format!("{} more than {}; attacker: {}", memory.growth(), memory.before(), statuses(&answers)),
        neighbour: Some([before.text(), during.text()]),
    }
}

/// Clients that send one request after the other, and pause only if there is no answer.
async fn send_all_the_time(
    client: &Client,
    clients: usize,
    request: impl Fn(&Client, u64) -> reqwest::RequestBuilder + Clone + Send + Sync + 'static,
) -> BTreeMap<u16, usize> {
    let (until, next) = (Instant::now() + DURATION, Arc::<AtomicU64>::default());
    let run = |_| {
        let (client, request, next) = (client.clone(), request.clone(), Arc::clone(&next));
        tokio::spawn(async move {
            let mut answers = BTreeMap::new();
            while Instant::now() < until {
                let sending = async {
                    let answer = request(&client, next.fetch_add(1, Ordering::Relaxed)).send().await.ok()?;
                    let status = answer.status().as_u16();
                    answer.bytes().await.ok().map(|_| status)
                };
                let Ok(status) = timeout_at(until, sending).await else { break };
                if status.is_none() {
                    sleep(Duration::from_millis(10)).await;
                }
                *answers.entry(status.unwrap_or(0)).or_default() += 1;
            }
            answers
        })
    };
    collect((0..clients).map(run).collect()).await
}

async fn collect(tasks: Vec<tokio::task::JoinHandle<BTreeMap<u16, usize>>>) -> BTreeMap<u16, usize> {
    let mut sum = BTreeMap::new();
    for task in tasks {
        for (status, count) in task.await.unwrap() {
            *sum.entry(status).or_default() += count;
        }
    }
    sum
}
