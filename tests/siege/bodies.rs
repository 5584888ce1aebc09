use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::time::{sleep, timeout};

use crate::Row;
use crate::memory::Memory;
use crate::neighbour::{self, Call, statuses};
use crate::target::Target;

/// `POST /jobs` without a token, with a chunked body that stops in its first chunk.
pub async fn chunked(target: &Target) -> Row {
    const OPEN_AFTER: Duration = Duration::from_secs(15);
    let count = target.count(50, 10);
    let head = "POST /jobs HTTP/1.1\r\nhost: siege\r\ncontent-type: application/json\r\nidempotency-key: k\r\n\
                transfer-encoding: chunked\r\n\r\n32\r\nabc";
    let mut connections = Vec::new();
    for _ in 0..count {
        let address = target.server.address;
        connections.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let is_open = timeout(OPEN_AFTER, stream.read_to_end(&mut answer)).await.is_err();
            (status(&answer), is_open)
        }));
    }
    let (mut answers, mut open) = (BTreeMap::new(), 0);
    for connection in connections {
        let (status, is_open) = connection.await.unwrap();
        *answers.entry(status).or_default() += 1;
        open += usize::from(is_open);
    }
    Row {
        attack: format!("{count} connections"),
        result: format!("open after {} s: {open} of {count}; answers: {}", OPEN_AFTER.as_secs(), statuses(&answers)),
        neighbour: None,
    }
}

/// Batches of 1000 lines of 16 kB. Each sends all but its last byte, waits for the others (at most 6 s), then ends.
pub async fn large_batches(target: &Target) -> Row {
    const AFTER: Duration = Duration::from_secs(10);
    let count = target.count(46, 6);
    let before = neighbour::before(&target.neighbour, &Call::SmallPost).await;
    let memory = Memory::of(target.server.process());
    let all_arrived = Arc::new(Barrier::new(count));
    let attack = async {
        let batches: Vec<_> = (0..count)
            .map(|n| {
                let token = target.ledger.token.clone();
                tokio::spawn(send_batch(target.server.address, token, n, Arc::clone(&all_arrived)))
            })
            .collect();
        let mut answers = BTreeMap::new();
        for batch in batches {
            *answers.entry(batch.await.unwrap()).or_default() += 1;
        }
        answers
    };
    let (during, answers) = neighbour::during(&target.neighbour, &Call::SmallPost, attack).await;
    let growth = memory.growth();
    sleep(AFTER).await;
    Row {
        attack: format!("{count} batches of 16 MB"),
        result: format!(
            "{growth} more than {}, {} more {} s later; batches: {}",
            memory.before(),
            memory.kept(),
            AFTER.as_secs(),
            statuses(&answers)
        ),
        neighbour: Some([before.text(), during.text()]),
    }
}

const LINES: usize = 1000;
const PAYLOAD_BYTES: usize = 16_000;
const ALL_ARRIVED_WITHIN: Duration = Duration::from_secs(6);
const ANSWERED: Duration = Duration::from_secs(40);

/// The status of the answer, or 0.
async fn send_batch(address: SocketAddr, token: String, number: usize, all_arrived: Arc<Barrier>) -> u16 {
    let payload = "x".repeat(PAYLOAD_BYTES);
    let line = move |n: usize| {
        format!("{{\"idempotency_key\":\"{number:04}-{n:04}\",\"job\":{{\"type\":\"t\",\"payload\":\"{payload}\"}}}}\n")
    };
    let length = line(0).len() * LINES;
    let Ok(stream) = TcpStream::connect(address).await else { return 0 };
    let (mut from, mut to) = stream.into_split();
    let write = async move {
        let head = format!(
            "POST /jobs/batch HTTP/1.1\r\nhost: siege\r\nauthorization: Bearer {token}\r\n\
             content-type: application/x-ndjson\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        );
        to.write_all(head.as_bytes()).await?;
        for n in 0..LINES - 1 {
            to.write_all(line(n).as_bytes()).await?;
        }
        let last = line(LINES - 1);
        to.write_all(&last.as_bytes()[..last.len() - 1]).await?;
        let _not_all = timeout(ALL_ARRIVED_WITHIN, all_arrived.wait()).await;
        to.write_all(b"\n").await?;
        // Keeps the connection open until the answer has come.
        Ok::<_, std::io::Error>(to)
    };
    let writing = tokio::spawn(write);
    let status = timeout(ANSWERED, read_status(&mut from)).await.unwrap_or(0);
    // Reads the rest of the answer.
    let mut rest = vec![0; 65536];
    while let Ok(Ok(1..)) = timeout(Duration::from_secs(5), from.read(&mut rest)).await {}
    writing.abort();
    status
}

/// The status of the next answer, or 0.
pub async fn read_status(stream: &mut (impl AsyncRead + Unpin)) -> u16 {
    let (mut answer, mut part) = (Vec::new(), vec![0; 4096]);
    while answer.len() < 16 {
        match stream.read(&mut part).await {
            Ok(length @ 1..) => answer.extend_from_slice(&part[..length]),
            _ => break,
        }
    }
    status(&answer)
}

fn status(answer: &[u8]) -> u16 {
    let digits = answer.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
