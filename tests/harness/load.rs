use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::{Client, job, until};

/// Clients in the background. Each submits one job after the other, each job with a new idempotency key.
pub struct Load {
    clients: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    stop: AtomicBool,
    next: AtomicU64,
    tally: Mutex<Tally>,
}

/// The outcomes of all attempts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By status; 0: no answer.
    pub answers: BTreeMap<u16, usize>,
    /// The job ids in 2xx answers.
    pub jobs: Vec<String>,
    pub slowest: Duration,
}

/// What a client does after an answer that is not 2xx.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Continues with the next job, so that every failure is counted.
    NextJob,
    /// Retries until the job is accepted, as a client should.
    Retry,
}

impl Load {
    pub fn start(client: &Client, clients: usize, on_failure: OnFailure) -> Self {
        let shared =
            Arc::new(Shared { stop: AtomicBool::new(false), next: AtomicU64::new(0), tally: Mutex::default() });
        let run = |_| tokio::spawn(submit_until_stopped(client.clone(), Arc::clone(&shared), on_failure));
        Self { clients: (0..clients).map(run).collect(), shared }
    }

    pub fn tally(&self) -> Tally {
        self.shared.tally.lock().unwrap().clone()
    }

    /// Returns once this many more attempts have got this status.
    pub async fn until_more(&self, status: u16, more: usize) {
        let count = || self.shared.tally.lock().unwrap().answers.get(&status).copied().unwrap_or_default();
        let reached = count() + more;
        let what = format!("{more} more answers {status}, after {:?}", self.tally().answers);
        until(what, async || (count() >= reached).then_some(())).await;
    }

    /// Lets every client finish its current job.
    pub async fn stop(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut *self.shared.tally.lock().unwrap())
    }
}

async fn submit_until_stopped(client: Client, shared: Arc<Shared>, on_failure: OnFailure) {
    while !shared.stop.load(Ordering::Relaxed) {
        let n = shared.next.fetch_add(1, Ordering::Relaxed);
        while !shared.attempt(&client, n).await && on_failure == OnFailure::Retry {}
    }
}

impl Shared {
    /// Returns whether the answer was 2xx.
    async fn attempt(&self, client: &Client, n: u64) -> bool {
        let began = Instant::now();
        let sent = client.post_jobs(&format!("load-{n}"), job(n)).send().await;
        let (status, body) = match sent {
            Ok(response) => (response.status().as_u16(), response.bytes().await.unwrap_or_default()),
            Err(_) => (0, bytes::Bytes::new()),
        };
        let mut tally = self.tally.lock().unwrap();
        *tally.answers.entry(status).or_default() += 1;
        tally.slowest = tally.slowest.max(began.elapsed());
        let done = [200, 201].contains(&status);
        if done {
            let job: serde_json::Value = serde_json::from_slice(&body).unwrap();
            tally.jobs.push(job["id"].as_str().unwrap().to_owned());
        }
        done
    }
}

impl Tally {
    pub fn created(&self) -> usize {
        self.answers.get(&201).copied().unwrap_or_default()
    }

    /// Attempts without a 2xx answer.
    pub fn failed(&self) -> usize {
        self.answers.iter().filter(|(status, _)| ![200, 201].contains(*status)).map(|(_, count)| count).sum()
    }
}
