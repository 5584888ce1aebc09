//! K: how soon a waiting worker gets a job that was submitted to an idle service.

use std::thread::sleep;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::ledger::{Ledger, WAIT_SECONDS, fresh_seed};
use crate::load::Dialogue;
use crate::measurement::Measurement;
use crate::replica::Replica;
use crate::requests::{Payload, mix};
use crate::results::{Results, Row};
use crate::rows::found;
use crate::run::Setting;
use crate::workers::claimed_jobs;

/// Jobs before the measurement.
const WARM_UP: u64 = 5;

pub fn measure(setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
    let Setting { postgres, release, plan } = setting;
    let ledger = Ledger::with_workers(postgres, release, "workers")?;
    let (one, other) = (ledger.serve(&[])?, ledger.serve(&[])?);
    for (replicas, submitted_to) in [(1, &one), (2, &other)] {
        let measurement = wake(&ledger, &one, submitted_to, plan.wake_ups)?;
        found(results, Row::WakeUp { replicas }, measurement);
    }
    Ok(())
}

/// Submits jobs, one after the other, each while a worker waits for it at another connection.
fn wake(ledger: &Ledger<'_>, waits_at: &Replica, submitted_to: &Replica, jobs: u64) -> anyhow::Result<Measurement> {
    let seed = fresh_seed()?;
    let claims = ledger.claims(waits_at, 1, WAIT_SECONDS)?;
    let submissions = ledger.requests(submitted_to, Payload::Mail, seed);
    let (mut worker, mut client) = (Dialogue::open(waits_at.address)?, Dialogue::open(submitted_to.address)?);
    let (mut request, mut latency, began) = (Vec::new(), Histogram::<u64>::new(3)?, Instant::now());
    for number in 0..WARM_UP + jobs {
        claims.claim(number, &mut request);
        worker.send(&request)?;
        sleep(pause(mix(seed ^ number)));
        submissions.write(number, &mut request);
        client.send(&request)?;
        client.expect(201)?;
        let acknowledged = Instant::now();
        let claim = worker.expect(201)?;
        let waited = acknowledged.elapsed();
        claims.report(number, &claimed_jobs(&claim)?, &mut request);
        worker.send(&request)?;
        worker.expect(200)?;
        if number >= WARM_UP {
            latency.record(u64::try_from(waited.as_nanos())?)?;
        }
    }
    let quantile = |quantile: f64| Some(latency.value_at_quantile(quantile) as f64 / 1e3);
    Ok(Measurement {
        per_second: (WARM_UP + jobs) as f64 / began.elapsed().as_secs_f64(),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        ..Measurement::default()
    })
}

/// A random time, long enough for the claim to begin its wait.
fn pause(random: u64) -> Duration {
    Duration::from_millis(20 + random % 250)
}
