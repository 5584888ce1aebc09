//! The tally: what the database holds when all jobs have ended, compared with what the clients did.

use std::time::Duration;

use super::clients::Tally;
use super::workers::{QUEUE, Workers};
use super::{failures, replicas, verdict};
use crate::harness::{Balancer, Ledger, run_hapax};

/// How long the workers may need for the jobs that wait when the clients stop. They need a few seconds.
const REST: Duration = Duration::from_secs(120);

/// Each time that a worker held a job, and how that ended.
const ATTEMPTS: &str = "(select tenant_id, job_id, claim_id, reported from job_attempts union all \
    select tenant_id, job_id, claim_id, reported from job_outcomes where reported <> 'lost') as made";

pub async fn show(balancer: &Balancer, ledger: &Ledger, workers: Workers, clients: Tally) -> bool {
    println!("\nThe clients stop, and the workers finish what is left:");
    let left = format!(
        "select (select count(*) from job_queue where queue = '{QUEUE}') + \
         (select count(*) from job_leases where queue = '{QUEUE}')"
    );
    let emptied = tokio::time::timeout(REST, ledger.until(&left, |jobs| jobs == 0)).await.is_ok();
    let kept = verdict(emptied, &format!("{} jobs wait or run", ledger.number(&left).await));
    let (count, successes) = workers.stop().await;
    let kept =
        kept & verdict(count == successes, &format!("{successes} of {count} workers end with success on SIGTERM"));
    let held = balancer.get("/claims").await.json()["claims"].as_array().unwrap().len();
    let kept = kept & verdict(held == 0, &format!("{held} claims hold jobs"));

    println!("\nThe tally, from the database:");
    let kept = kept & submitted(&clients);
    let kept = kept & finished(ledger, replicas::JOBS + failures::JOBS + clients.jobs).await;
    attempts(ledger).await;
    kept & audited(ledger).await
}

fn submitted(clients: &Tally) -> bool {
    let told = format!(
        "{} jobs submitted twice: {} × 201, {} × 200, {} with other bytes; failed attempts, repeated: {}",
        clients.jobs,
        clients.count(201),
        clients.count(200),
        clients.differing,
        clients.failed()
    );
    // Fewer 201 if an answer was lost: the repeated request got 200.
    let answered = clients.count(200) + clients.count(201) == 2 * clients.jobs && clients.count(201) <= clients.jobs;
    verdict(answered && clients.differing == 0, &told)
}

async fn finished(ledger: &Ledger, submitted: usize) -> bool {
    let ended = async |state: &str| {
        let sql = format!("select count(*) from job_outcomes where queue = '{QUEUE}' and state = '{state}'");
        ledger.number(&sql).await
    };
    let (succeeded, cancelled, failed) = (ended("succeeded").await, ended("cancelled").await, ended("failed").await);
    let all = succeeded + cancelled + failed;
    let told = format!(
        "{submitted} jobs submitted to the workers' queue, {all} finished: {succeeded} succeeded, {cancelled} cancelled, \
         {failed} failed"
    );
    let kept = verdict((all, cancelled, failed) == (i64::try_from(submitted).unwrap(), 1, 0), &told);
    let successes = ledger.number(&format!("select count(*) from {ATTEMPTS} where reported = 'succeeded'")).await;
    let jobs =
        ledger.number(&format!("select count(distinct job_id) from {ATTEMPTS} where reported = 'succeeded'")).await;
    let told = format!("{successes} results of success were recorded, for {jobs} jobs: each finished once");
    kept & verdict(successes == jobs && jobs == succeeded, &told)
}

/// Prints how many attempts the jobs needed, and what each worker did.
async fn attempts(ledger: &Ledger) {
    let by_number = format!(
        "select string_agg(format('%s: %s', attempts, jobs), ', ' order by attempts) from (select attempts, \
         count(*) as jobs from (select count(*) as attempts from {ATTEMPTS} group by job_id) as of_jobs group by attempts) \
         as by_number"
    );
    println!("  jobs by number of attempts: {}", ledger.text(&by_number).await);
    println!("  worker     attempts  succeeded  failed  cancelled  lease lost");
    let by_worker = format!(
        "select string_agg(format('  %-10s %8s  %9s  %6s  %9s  %10s', worker, attempts, succeeded, failed, cancelled, lost), \
         E'\\n' order by worker) from (select worker, count(*) as attempts, \
         count(*) filter (where reported = 'succeeded') as succeeded, count(*) filter (where reported = 'failed') as failed, \
         count(*) filter (where reported = 'cancelled') as cancelled, count(*) filter (where reported = 'lost') as lost \
         from {ATTEMPTS} join claims on claims.tenant_id = made.tenant_id and claims.id = made.claim_id group by worker) \
         as by_worker"
    );
    println!("{}", ledger.text(&by_worker).await);
}

/// `hapax audit`, while the replicas serve.
async fn audited(ledger: &Ledger) -> bool {
    let audit = run_hapax(&["audit"], &[("DATABASE_URL", &ledger.url)]).await;
    let printed = String::from_utf8_lossy(&audit.stdout);
    if !audit.status.success() {
        println!("{printed}{}", String::from_utf8_lossy(&audit.stderr));
    }
    let result = printed.lines().last().unwrap_or("nothing printed");
    verdict(audit.status.success(), &format!("hapax audit: {result}"))
}
