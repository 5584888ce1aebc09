//! Answers that depend on a server's configuration or on failures around it.

use hapax::access::Scope;
use rustix::process::Signal;

use super::claims;
use super::examples::Answers;
use super::operations::{READS_OF_A_TENANT, WRITES, no_job, wholes};
use crate::harness::{Answer, Fault, Ledger, OwnPostgres, Proxy, SHORT_DEADLINES, job, until};

/// Limits that are set so low that they are reached.
pub async fn limits() -> Answers {
    let ledger = Ledger::new().await;
    let mut answers = Answers::default();
    quotas(&ledger, &mut answers).await;
    crowd(&ledger, &mut answers).await;
    slowness(&mut answers).await;
    answers
}

/// Failures of the database or the server.
pub async fn troubles() -> Answers {
    let mut answers = Answers::default();
    database_away(&mut answers).await;
    outcome_unknown(&mut answers).await;
    database_unfit(&mut answers).await;
    database_forgetful(&mut answers).await;
    shutdown(&mut answers).await;
    statements_cancelled(&mut answers).await;
    answers
}

async fn quotas(ledger: &Ledger, answers: &mut Answers) {
    let rates = ["REQUESTS", "CREATIONS", "REPLAYS"].map(|name| format!("HAPAX__QUOTA__{name}_PER_SECOND"));
    let bursts = ["REQUESTS", "CREATIONS", "REPLAYS"].map(|name| format!("HAPAX__QUOTA__{name}_BURST"));
    let settings = rates.iter().map(|name| (name.as_str(), "1"));
    let settings: Vec<_> = settings.chain(bursts.iter().map(String::as_str).zip(["60", "40", "20"])).collect();
    let server = ledger.serve_with(&settings).await;
    // A separate tenant for each case, so that only one quota is used up.
    let caller = async |tenant| server.as_caller(&ledger.token_for(tenant, &Scope::ALL).await);
    let (one, two, three) = (caller("one").await, caller("two").await, caller("three").await);
    let four = caller("four").await;
    let of_a_key = until_refused(async |_| one.submit("the-key", job(0)).await).await;
    answers.got("submitJob 429 replays", of_a_key);
    let of_creations = until_refused(async |n| two.submit(&format!("key-{n}"), job(n)).await).await;
    answers.got("submitJob 429 creations", of_creations);
    // An invalid body uses up no other quota.
    answers.got("submitJob 429 requests", until_refused(async |_| three.submit("k", "").await).await);
    for (operation, path) in READS_OF_A_TENANT {
        answers.got(format!("{operation} 429"), until_refused(async |_| three.get(path).await).await);
    }
    let id = no_job();
    for write in WRITES.iter().filter(|write| write.name != "submitJob") {
        let refused = until_refused(async |_| write.send(&three, &id).await).await;
        let several = ["putJob", "changeJob", "retryJob"];
        let one_of_several = if several.contains(&write.name) { " requests" } else { "" };
        answers.got(format!("{} 429{one_of_several}", write.name), refused);
    }
    let of_names = until_refused(async |n| two.put(no_job(), job(n)).await).await;
    answers.got("putJob 429 creations", of_names);
    let keyed = async |_| one.send(one.patch_job(&id, "*", "{}").header("idempotency-key", "k")).await;
    answers.got("changeJob 429 replays", until_refused(keyed).await);
    let retried = async |_| four.send(claims::retry(&four, &id, "r")).await;
    answers.got("retryJob 429 replays", until_refused(retried).await);
}

/// The quota refills once a second, and far more requests fit into a second, so one is refused.
async fn until_refused(request: impl AsyncFn(u64) -> Answer) -> Answer {
    let mut n = 0;
    loop {
        let answer = request(n).await;
        if answer.status == 429 {
            return answer;
        }
        n += 1;
    }
}

async fn crowd(ledger: &Ledger, answers: &mut Answers) {
    let settings = [("HAPAX__SERVER__REQUESTS_IN_FLIGHT", "1"), ("HAPAX__SERVER__BODY_DEADLINE", "1h")];
    let server = ledger.serve_with(&settings).await;
    let mut waiting = server.raw().await;
    waiting.write_head("POST /jobs", &UNFINISHED).await;
    server.until_metric("hapax_http_requests_in_flight", 1.0).await;
    for write in WRITES {
        answers.got(format!("{} 503 overloaded", write.name), write.send(&server, &no_job()).await);
    }
    for (operation, path) in READS_OF_A_TENANT {
        answers.got(format!("{operation} 503 overloaded"), server.get(path).await);
    }
}

/// Headers of a request whose body does not arrive.
const UNFINISHED: [&[u8]; 3] = [b"idempotency-key: k", b"content-type: application/json", b"content-length: 100"];

async fn slowness(answers: &mut Answers) {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__SERVER__BODY_DEADLINE", "1s"), ("HAPAX__INTAKE__LOCK_WAIT", "100ms")];
    let server = ledger.serve_with(&settings).await;
    for write in WRITES.iter().filter(|write| write.takes_body()) {
        let slow = write.send_raw(&server, &no_job(), &["content-length: 100"], "").await;
        answers.got(format!("{} 408", write.name), slow);
    }
    let id = no_job();
    server.put(&id, job(1)).await;
    let ended = no_job();
    server.put(&ended, job(1)).await;
    server.cancel(&ended).await;
    let (key, jobs) = (ledger.hold_key("the-key").await, ledger.hold_jobs().await);
    let outcomes = ledger.hold("select from job_outcomes for update").await;
    let new = no_job();
    let new_job = ledger.hold_new_job(&new).await;
    // A change reads where the job is, so the tables of claims are locked only for the calls of workers.
    let (for_workers, others): (Vec<_>, Vec<_>) = wholes().partition(|write| write.template.starts_with("/claims"));
    for write in others {
        let id = match write.name {
            "putJob" => &new,
            "retryJob" => &ended,
            _ => &id,
        };
        let several = ["putJob", "changeJob", "retryJob"];
        let one_of_several = if several.contains(&write.name) { " request-in-flight" } else { "" };
        answers.got(format!("{} 409{one_of_several}", write.name), write.send(&server, id).await);
    }
    let claims = ledger.hold("lock table claims, job_leases in access exclusive mode").await;
    for write in for_workers {
        let one_of_several = if write.name == "claimJobs" { " request-in-flight" } else { "" };
        answers.got(format!("{} 409{one_of_several}", write.name), write.send(&server, &id).await);
    }
    for held in [key, jobs, outcomes, claims, new_job] {
        held.roll_back().await;
    }
}

async fn database_away(answers: &mut Answers) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&SHORT_DEADLINES).await;
    // The token is cached from now on, and no connection is open that could be lost during a submission.
    server.get("/jobs/x").await.is_problem(404, "job-not-found");
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    for write in wholes() {
        answers.got(format!("{} 503 database-unavailable", write.name), write.send(&server, &no_job()).await);
    }
    // An unseen token cannot be looked up.
    let batch = WRITES.iter().find(|write| write.by_item).unwrap();
    let another = server.as_caller(hapax::access::Token::mint().expose());
    answers.got("submitBatch 503 database-unavailable", batch.send(&another, "").await);
    for (operation, path) in READS_OF_A_TENANT {
        answers.got(format!("{operation} 503 database-unavailable"), server.get(path).await);
    }
    answers.got("readiness 503 database", server.until_status("/readyz", 503).await);
    ledger.rename_back_from(&away).await;
}

/// Each statement waits for a lock and is cancelled, as by `statement_timeout`.
async fn statements_cancelled(answers: &mut Answers) {
    let ledger = Ledger::new().await;
    let long_deadlines = [
        ("HAPAX__INTAKE__LOCK_WAIT", "60s"),
        ("HAPAX__DATABASE__STATEMENT_TIMEOUT", "90s"),
        ("HAPAX__SERVER__REQUEST_DEADLINE", "120s"),
        SHORT_DEADLINES[3],
        // No statement of the reclaimer waits for the lock.
        ("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h"),
    ];
    let server = ledger.serve_with(&long_deadlines).await;
    server.get("/jobs/x").await.is_problem(404, "job-not-found");
    let tables = "jobs, job_queue, claims, job_leases, idempotency_keys";
    let locked = ledger.hold(&format!("lock table {tables} in access exclusive mode")).await;
    let cancelled = async |asking: tokio::task::JoinHandle<Answer>| {
        ledger.until_waiting_long().await;
        assert_eq!(ledger.cancel_waiting().await, 1);
        asking.await.unwrap()
    };
    for write in wholes() {
        let client = server.as_caller(&ledger.token);
        let asking = tokio::spawn(async move { write.send(&client, &no_job()).await });
        answers.got(format!("{} 503 statement-timeout", write.name), cancelled(asking).await);
    }
    for (operation, path) in READS_OF_A_TENANT {
        let client = server.as_caller(&ledger.token);
        let asking = tokio::spawn(async move { client.get(path).await });
        answers.got(format!("{operation} 503 statement-timeout"), cancelled(asking).await);
    }
    locked.roll_back().await;
}

async fn outcome_unknown(answers: &mut Answers) {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &SHORT_DEADLINES).await;
    for write in wholes() {
        // Replaces the connections that the last fault ended. Without one, nothing would be sent by the deadline.
        until("a write succeeds", async || (server.put(no_job(), job(1)).await.status == 201).then_some(())).await;
        let id = no_job();
        if ["changeJob", "retryJob"].contains(&write.name) {
            assert_eq!(server.put(&id, job(1)).await.status, 201);
        }
        if write.name == "retryJob" {
            assert_eq!(server.cancel(&id).await.status, 200);
        }
        proxy.fail_next(write.marker, Fault::BlackHole);
        proxy.then_fail_after(0, write.marker, Fault::BlackHole);
        answers.got(format!("{} 503 outcome-unknown", write.name), write.send(&server, &id).await);
    }
}

async fn database_unfit(answers: &mut Answers) {
    let ledger = Ledger::new().await;
    let (server, other) = (ledger.serve().await, ledger.serve().await);
    // Each table is replaced by a view that fails.
    let replace = async |table: &str| {
        let failing = format!(
            "alter table {table} rename to real_{table}; \
             create view {table} as select * from real_{table} where 1 / 0 = 1 with check option"
        );
        ledger.execute(&failing).await;
    };
    // Results and heartbeats find rows of one table by ctid, which a view does not have. Another table fails for them.
    let by_ctid = ["reportResults", "extendClaim"];
    for (name, table) in by_ctid.into_iter().zip(["job_queue", "job_leases"]) {
        replace(table).await;
        let write = wholes().find(|write| write.name == name).unwrap();
        answers.got(format!("{name} 500"), write.send(&server, &no_job()).await);
    }
    for table in ["jobs", "claims", "idempotency_keys"] {
        replace(table).await;
    }
    for write in wholes().filter(|write| !by_ctid.contains(&write.name)) {
        answers.got(format!("{} 500", write.name), write.send(&server, &no_job()).await);
    }
    for (operation, path) in READS_OF_A_TENANT {
        answers.got(format!("{operation} 500"), server.get(path).await);
    }
    ledger.execute("alter table _sqlx_migrations rename to gone").await;
    answers.got("readiness 503 schema", server.until_not_ready("schema").await);
    ledger.execute("alter table gone rename to _sqlx_migrations").await;
    // As after a failover, when we are still connected to the old primary, now a standby.
    ledger.set("default_transaction_read_only", "on").await;
    answers.got("readiness 503 read-only", other.until_not_ready("read-only").await);
}

async fn database_forgetful(answers: &mut Answers) {
    let postgres = OwnPostgres::start().await;
    let ledger = postgres.ledger().await;
    let server = ledger.serve_with(&[("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "false")]).await;
    ledger.set("synchronous_commit", "off").await;
    answers.got("readiness 503 durability", server.until_not_ready("may lose").await);
}

async fn shutdown(answers: &mut Answers) {
    let ledger = Ledger::new().await;
    let long_drain = [("HAPAX__SERVER__DRAIN_DELAY", "10m"), ("HAPAX__SERVER__SHUTDOWN_DEADLINE", "20m")];
    let server = ledger.serve_with(&long_drain).await;
    server.signal(Signal::TERM);
    answers.got("readiness 503 shutdown", server.until_status("/readyz", 503).await);
}
