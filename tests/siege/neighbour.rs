use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::harness::{Client, job};

/// The request that the neighbour repeats.
#[derive(Clone)]
pub enum Call {
    SmallPost,
    Get(String),
}

/// The neighbour's requests during an attack: a few clients that pause between requests.
pub struct Requests {
    clients: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    sample: Arc<Mutex<Sample>>,
}

#[derive(Clone, Default)]
pub struct Sample {
    /// By status; 0: no answer.
    answers: BTreeMap<u16, usize>,
    latencies: Vec<Duration>,
    pub request_ids: Vec<String>,
}

const CLIENTS: usize = 16;
/// Far below every quota.
const PAUSE: Duration = Duration::from_millis(30);
/// Timeout of a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the neighbour is measured before an attack.
const BEFORE: Duration = Duration::from_secs(3);

impl Requests {
    pub fn start(client: &Client, call: &Call) -> Self {
        let (stop, sample) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Sample>>::default());
        let run = |_| {
            let (client, call, stop, sample) = (client.clone(), call.clone(), Arc::clone(&stop), Arc::clone(&sample));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    send(&client, &call, &sample).await;
                    sleep(PAUSE).await;
                }
            })
        };
        Self { clients: (0..CLIENTS).map(run).collect(), stop: Arc::clone(&stop), sample: Arc::clone(&sample) }
    }

    /// Lets every client finish its current request.
    pub async fn stop(self) -> Sample {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut *self.sample.lock().unwrap())
    }
}

/// Measures the neighbour without an attack.
pub async fn before(client: &Client, call: &Call) -> Sample {
    during(client, call, sleep(BEFORE)).await.0
}

/// Measures the neighbour during an attack.
pub async fn during<T>(client: &Client, call: &Call, attack: impl Future<Output = T>) -> (Sample, T) {
    let requests = Requests::start(client, call);
    let result = attack.await;
    (requests.stop().await, result)
}

async fn send(client: &Client, call: &Call, sample: &Mutex<Sample>) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let request = match call {
        Call::SmallPost => {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            client.post_jobs(&format!("neighbour-{n}"), job(n))
        }
        Call::Get(path) => client.request("GET", path),
    };
    let began = Instant::now();
    let answered = async {
        let response = request.timeout(ANSWER_TIMEOUT).send().await.ok()?;
        let id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let status = response.status().as_u16();
        response.bytes().await.ok()?;
        Some((status, id))
    };
    let (status, id) = answered.await.unwrap_or((0, None));
    let mut sample = sample.lock().unwrap();
    *sample.answers.entry(status).or_default() += 1;
    sample.latencies.push(began.elapsed());
    sample.request_ids.extend(id);
}

impl Sample {
    pub fn text(mut self) -> String {
        self.latencies.sort_unstable();
        let count = self.latencies.len();
        let percentile = |percent: usize| {
            let latency = self.latencies.get(count.saturating_sub(1) * percent / 100).copied().unwrap_or_default();
            latency.as_secs_f64() * 1000.0
        };
        let failed: usize =
            self.answers.iter().filter(|(status, _)| !(200..300).contains(*status)).map(|(_, n)| n).sum();
        let mut share = format!("{failed} of {count} failed");
        if failed > 0 {
            share = format!("{share} ({:.1} %, {})", 100.0 * failed as f64 / count as f64, statuses(&self.answers));
        }
        format!("{share}; p50 {:.1} ms, p99 {:.1} ms", percentile(50), percentile(99))
    }
}

/// Answers by status, as text.
pub fn statuses(answers: &BTreeMap<u16, usize>) -> String {
    let word = |(status, count): (&u16, &usize)| match status {
        0 => format!("{count} × no answer"),
        status => format!("{count} × {status}"),
    };
    answers.iter().map(word).collect::<Vec<_>>().join(", ")
}
