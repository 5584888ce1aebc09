use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::Row;
use crate::neighbour::{self, Call, Sample, statuses};
use crate::target::Target;

const DURATION: Duration = Duration::from_secs(5);
const CLIENTS: usize = 4;
/// 1000 lines in 2 kB.
const LINES: usize = 1000;
const LOST: &str = "hapax_log_lines_lost_total";

/// What one client sent and received.
#[derive(Default)]
struct Sent {
    answers: BTreeMap<u16, usize>,
    sent_bytes: usize,
    answered_bytes: usize,
}

/// Batches of invalid lines.
pub async fn lines(target: &Target) -> Row {
    let before = neighbour::before(&target.neighbour, &Call::SmallPost).await;
    quiet(target).await;
    let (lines_before, lost_before) = (lines_of(target), target.server.metric(LOST).await);
    let attack = async {
        let until = Instant::now() + DURATION;
        let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(send((*target.server).clone(), until))).collect();
        let mut all = Sent::default();
        for client in clients {
            let sent = client.await.unwrap();
            all.sent_bytes += sent.sent_bytes;
            all.answered_bytes += sent.answered_bytes;
            for (status, count) in sent.answers {
                *all.answers.entry(status).or_default() += count;
            }
        }
        all
    };
    let (during, sent) = neighbour::during(&target.neighbour, &Call::SmallPost, attack).await;
    quiet(target).await;
    let (written, lost) = (lines_of(target) - lines_before, target.server.metric(LOST).await - lost_before);
    Row {
        attack: format!("{CLIENTS} clients, {} s", DURATION.as_secs()),
        result: format!(
            "{written} log lines written, {lost:.0} lost, {} of the neighbour's; {:.1} bytes answered per byte sent; batches: {}",
            missing(target, &during),
            sent.answered_bytes as f64 / sent.sent_bytes.max(1) as f64,
            statuses(&sent.answers)
        ),
        neighbour: Some([before.text(), during.text()]),
    }
}

async fn send(client: crate::harness::Client, until: Instant) -> Sent {
    let body = "x\n".repeat(LINES);
    let mut sent = Sent::default();
    while Instant::now() < until {
        let request = client.request("POST", "/jobs/batch").header("content-type", "application/x-ndjson");
        sent.sent_bytes += body.len();
        let sending = async {
            let answer = request.body(body.clone()).send().await.ok()?;
            let status = answer.status().as_u16();
            Some((status, answer.bytes().await.ok()?.len()))
        };
        let Ok(answered) = timeout_at(until, sending).await else { break };
        if answered.is_none() {
            sleep(Duration::from_millis(10)).await;
        }
        let (status, bytes) = answered.unwrap_or_default();
        *sent.answers.entry(status).or_default() += 1;
        sent.answered_bytes += bytes;
    }
    sent
}

fn lines_of(target: &Target) -> usize {
    target.server.log_text().lines().count()
}

/// Returns once the log stops growing.
async fn quiet(target: &Target) {
    const QUIET: Duration = Duration::from_secs(1);
    loop {
        let lines = lines_of(target);
        sleep(QUIET).await;
        if lines_of(target) == lines {
            return;
        }
    }
}

/// How many of these requests have no log line.
fn missing(target: &Target, sample: &Sample) -> String {
    let log = target.server.log_text();
    let logged: HashSet<&str> = log.lines().filter_map(request_id).collect();
    let missing = sample.request_ids.iter().filter(|id| !logged.contains(id.as_str())).count();
    format!("{missing} of {}", sample.request_ids.len())
}

fn request_id(line: &str) -> Option<&str> {
    if !line.contains(r#""message":"answered""#) {
        return None;
    }
    line.split_once(r#""request_id":""#)?.1.split('"').next()
}
