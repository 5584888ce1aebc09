//! examples/worker.py, which docs/workers.md shows, against a server. Without python3, `make test` skips this file.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Client, Ledger, in_time, until};

/// Killed with the test.
struct Worker(Child);

impl Worker {
    /// With the shortest lease, so that the first heartbeat comes after a second.
    fn start(server: SocketAddr, token: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/worker.py");
        let base = format!("http://{server}");
        let mut command = Command::new("python3");
        command.args([script, "--base", &base, "--queue", "work", "--lease-seconds", "5", "--name", "the example"]);
        Self(command.env("HAPAX_TOKEN", token).stdin(Stdio::null()).spawn().unwrap())
    }

    /// Sends SIGTERM. Returns whether the worker exited with success.
    async fn stop(mut self) -> bool {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        until("the worker ends", async || self.0.try_wait().unwrap()).await.success()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// A server whose answers the test gives.
struct Answering(TcpListener);

impl Answering {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn start_worker(&self) -> Worker {
        Worker::start(self.0.local_addr().unwrap(), "hpx_none")
    }

    /// Waits for a request with this method and a path that ends like this.
    async fn request(&self, method: &str, path_end: &str) -> TcpStream {
        let receiving = async {
            let (mut stream, _) = self.0.accept().await.unwrap();
            let mut bytes = Vec::new();
            while !is_whole(&bytes) {
                assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "a part of a request");
            }
            (stream, String::from_utf8(bytes).unwrap())
        };
        let (stream, request) = in_time("a request", receiving).await;
        let mut words = request.split(' ');
        let (sent_method, path) = (words.next().unwrap(), words.next().unwrap());
        assert!(sent_method == method && path.ends_with(path_end), "{request}");
        stream
    }
}

/// Whether a request has arrived, with its body.
fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

async fn answer(mut stream: TcpStream, body: Value) {
    let body = body.to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
}

async fn submit(server: &Client, key: &str, payload: Value) -> String {
    server.submit(key, json!({ "type": "t", "queue": "work", "payload": payload })).await.job_id()
}

async fn until_state(server: &Client, id: &str, state: &str) -> Value {
    until(format!("job {id} is {state}"), async || {
        let job = server.get(&format!("/jobs/{id}")).await.json();
        (job["state"] == state).then_some(job)
    })
    .await
}

#[tokio::test]
async fn the_example_worker_runs_stops_and_releases_jobs() {
    let ledger = Ledger::new().await;
    // No lease is lost, however slow the machine is.
    let settings = [("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h"), ("HAPAX__CLAIMS__RETRY_DELAY_MIN", "1ms")];
    let server = ledger.serve_with(&settings).await;
    let failing = submit(&server, "failing", json!({ "fail_once": true })).await;
    let worker = Worker::start(server.address, &ledger.token);
    let done = until_state(&server, &failing, "succeeded").await;
    assert_eq!((&done["attempt"], &done["result"]), (&json!(2), &json!({ "attempt": 2 })));

    let endless = json!({ "milliseconds": 3_600_000 });
    let cancelled = submit(&server, "cancelled", endless.clone()).await;
    until_state(&server, &cancelled, "running").await;
    server.cancel(&cancelled).await;
    until_state(&server, &cancelled, "cancelled").await;

    let released = submit(&server, "released", endless).await;
    let running = until_state(&server, &released, "running").await;
    assert_eq!(running["attempt"], 1);
    assert!(worker.stop().await);
    let job = server.get(&format!("/jobs/{released}")).await.json();
    assert_eq!((&job["state"], &job["attempt"]), (&json!("queued"), &json!(0)));
}

#[tokio::test]
async fn the_example_worker_pauses_after_an_empty_answer_that_comes_early() {
    let server = Answering::start().await;
    let _worker = server.start_worker();
    answer(server.request("PUT", "").await, json!({ "jobs": [] })).await;
    let began = Instant::now();
    for _ in 0..3 {
        answer(server.request("PUT", "").await, json!({ "jobs": [] })).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_example_worker_repeats_a_heartbeat_without_an_answer_within_the_lease() {
    let server = Answering::start().await;
    let _worker = server.start_worker();
    let endless = json!({ "id": "a", "attempt": 1, "payload": { "milliseconds": 3_600_000 } });
    answer(server.request("PUT", "").await, json!({ "heartbeat_after_seconds": 1, "jobs": [endless] })).await;
    let _unanswered = server.request("POST", "/heartbeat").await;
    let began = Instant::now();
    let _again = server.request("POST", "/heartbeat").await;
    // Within 2 s and what the machine needs, and not the minute of other requests.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
