//! Clients that submit every job twice at once, and repeat each request until it has an answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::workers::QUEUE;
use crate::harness::Client;

/// Few enough that two workers keep up.
pub const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// A job for the workers, which sleep so long for it.
pub fn work(n: u64, milliseconds: u64) -> Value {
    json!({ "type": "demo.work", "queue": QUEUE, "payload": { "n": n, "milliseconds": milliseconds } })
}

pub struct Clients {
    tasks: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    next: AtomicU64,
    tally: Mutex<Tally>,
}

#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Of all attempts, by status; 0: no answer.
    pub answers: BTreeMap<u16, usize>,
    pub jobs: usize,
    /// Jobs whose two requests got different bytes.
    pub differing: usize,
}

impl Clients {
    pub fn start(client: &Client) -> Self {
        let shared = Arc::<Shared>::default();
        let run = |_| tokio::spawn(submit_until_stopped(client.clone(), Arc::clone(&shared)));
        Self { tasks: (0..CLIENTS).map(run).collect(), shared }
    }

    pub fn tally(&self) -> Tally {
        self.shared.tally.lock().unwrap().clone()
    }

    /// Lets every client finish its current job.
    pub async fn stop(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        std::mem::take(&mut *self.shared.tally.lock().unwrap())
    }
}

impl Tally {
    pub fn count(&self, status: u16) -> usize {
        self.answers.get(&status).copied().unwrap_or_default()
    }

    /// Attempts that were repeated.
    pub fn failed(&self) -> usize {
        self.answers.values().sum::<usize>() - self.count(200) - self.count(201)
    }
}

async fn submit_until_stopped(client: Client, shared: Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        let n = shared.next.fetch_add(1, Ordering::Relaxed);
        let (first, second) = tokio::join!(shared.submit(&client, n), shared.submit(&client, n));
        {
            let mut tally = shared.tally.lock().unwrap();
            tally.jobs += 1;
            tally.differing += usize::from(first != second);
        }
        sleep(PAUSE).await;
    }
}

impl Shared {
    /// Repeats a request until it is answered by 2xx. Returns the body.
    async fn submit(&self, client: &Client, n: u64) -> Bytes {
        loop {
            let sent = client.post_jobs(&format!("paced-{n}"), work(n, 30)).send().await;
            let (status, body) = match sent {
                Ok(response) => (response.status().as_u16(), response.bytes().await.unwrap_or_default()),
                Err(_) => (0, Bytes::new()),
            };
            *self.tally.lock().unwrap().answers.entry(status).or_default() += 1;
            if [200, 201].contains(&status) {
                return body;
            }
            assert!(status == 0 || status == 409 || status >= 500, "{status}: {body:?}");
            sleep(PAUSE).await;
        }
    }
}
