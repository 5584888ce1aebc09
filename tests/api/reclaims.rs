//! Claims that expire: their jobs come back, late workers change nothing, and nothing is taken too early.

use serde_json::{Value, json};

use crate::harness::{Claim, Client, Ledger, NO_QUOTAS, Server, job, new_id};

/// A server that reclaims at once.
async fn serve() -> (Ledger, Server) {
    serve_reclaiming("10ms").await
}

/// A server that reclaims nothing during the test.
async fn serve_without_reclaimer() -> (Ledger, Server) {
    serve_reclaiming("1h").await
}

async fn serve_reclaiming(interval: &str) -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&NO_QUOTAS[..], &[("HAPAX__CLAIMS__RECLAIM_INTERVAL", interval)]].concat()).await;
    (ledger, server)
}

/// Lets a claim expire, and returns once its jobs have been reclaimed.
async fn lose(ledger: &Ledger, claim: &Claim) {
    ledger.expire_claim(&claim.id).await;
    let held = format!("select count(*) from job_leases where claim_id = '{}'", claim.id);
    ledger.until(&held, |leases| leases == 0).await;
}

/// Reclaims up to this many claims. Returns how many jobs left their leases.
async fn reclaim(ledger: &Ledger, claims: u32) -> i64 {
    ledger.number(&format!("select requeued + failed + cancelled from reclaim({claims})")).await
}

async fn settle(worker: &Client, claim: &Claim, result: Value) -> (String, Option<String>) {
    let mut result = result;
    result["job_id"] = json!(claim.job());
    worker.settle_with(&claim.id, result).await
}

fn status(status: &str, state: &str) -> (String, Option<String>) {
    (status.to_owned(), Some(state.to_owned()))
}

#[tokio::test]
async fn a_job_of_a_dead_worker_comes_back_with_another_attempt_and_a_higher_token() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    let run_at = server.job(&id).await["run_at"].clone();
    let (mut token, mut claims) = (0, Vec::new());
    for attempt in 1..=4 {
        let claim = server.take().await;
        assert_eq!(
            (claim.job(), &claim.jobs[0]["attempt"], &claim.jobs[0]["run_at"]),
            (id.as_str(), &json!(attempt), &run_at)
        );
        assert!(claim.token() > token);
        token = claim.token();
        lose(&ledger, &claim).await;
        claims.push(claim);
    }
    let last = server.take().await;
    assert_eq!(settle(&server, &last, json!({ "outcome": "succeeded" })).await, status("recorded", "succeeded"));
    assert_eq!(server.reported(&id).await, ["lost", "lost", "lost", "lost", "succeeded"]);
    for (claim, attempt) in claims.iter().zip(server.attempts(&id).await) {
        assert_eq!((&attempt["claim_id"], &attempt["token"]), (&json!(claim.id), &json!(claim.token())));
        server.heartbeat(&claim.id).await.is_problem(410, "claim-ended");
        server.claim(&claim.id, json!({ "queues": ["default"] })).await.is_problem(410, "claim-ended");
    }
    ledger.assert_jobs_in_one_place().await;
    server.until_metric(r#"hapax_lost_leases_total{outcome="requeued"}"#, 4.0).await;
}

/// The story of conductor 322 and windmill 9214: what a late worker reports must be neither an error nor forgotten.
#[tokio::test]
async fn a_late_worker_changes_nothing_and_its_outcome_is_in_the_history() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    let zombie = server.take().await;
    lose(&ledger, &zombie).await;
    let second = server.take().await;
    let before = server.job(&id).await;
    let late = json!({ "outcome": "failed", "error": "too late" });
    assert_eq!(settle(&server, &zombie, late.clone()).await, status("lease-lost", "running"));
    // The first late outcome stays.
    assert_eq!(settle(&server, &zombie, json!({ "outcome": "succeeded" })).await, status("lease-lost", "running"));
    assert_eq!(settle(&server, &zombie, late).await, status("lease-lost", "running"));
    assert_eq!(server.job(&id).await, before);
    let report = json!({ "outcome": "succeeded", "result": "of the second" });
    assert_eq!(settle(&server, &second, report).await, status("recorded", "succeeded"));
    assert_eq!(settle(&server, &zombie, json!({ "outcome": "succeeded" })).await, status("lease-lost", "succeeded"));
    assert_eq!(server.job(&id).await["result"], "of the second");
    let [lost, kept] = &server.attempts(&id).await[..] else { panic!("two attempts") };
    assert_eq!(
        (&lost["reported"], &lost["late_outcome"], &lost["late_error"]),
        (&json!("lost"), &json!("failed"), &json!("too late"))
    );
    assert_eq!((&kept["reported"], kept.get("late_outcome")), (&json!("succeeded"), None));
}

#[tokio::test]
async fn a_late_report_can_arrive_before_the_second_worker_and_after_a_retry() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", json!({ "type": "t", "payload": 1, "max_attempts": 1 })).await.job_id();
    let zombie = server.take().await;
    lose(&ledger, &zombie).await;
    // Its attempts are used up.
    assert_eq!(settle(&server, &zombie, json!({ "outcome": "succeeded" })).await, status("lease-lost", "failed"));
    let [lost] = &server.attempts(&id).await[..] else { panic!("one attempt") };
    assert_eq!((&lost["reported"], &lost["late_outcome"]), (&json!("lost"), &json!("succeeded")));
    assert_eq!(server.retry(&id, "r").await.status, 200);
    let second = server.take().await;
    assert!(second.token() > zombie.token());
    assert_eq!(settle(&server, &zombie, json!({ "outcome": "succeeded" })).await, status("lease-lost", "running"));
    let [lost, running] = &server.attempts(&id).await[..] else { panic!("two attempts") };
    assert_eq!((&lost["late_outcome"], &running["reported"]), (&json!("succeeded"), &json!("running")));
}

/// As in Camunda's ADR 0005-810: the row decides, not the clock.
#[tokio::test]
async fn an_expired_claim_that_was_not_reclaimed_still_counts() {
    let (ledger, server) = serve_without_reclaimer().await;
    for n in 0..2 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let [settles, extends] = [server.take().await, server.take().await];
    ledger.expire_claim(&settles.id).await;
    ledger.expire_claim(&extends.id).await;
    let again = server.claim(&settles.id, json!({ "queues": ["default"] })).await;
    assert_eq!((again.status, Claim::of(&again).jobs), (200, settles.jobs.clone()));
    assert_eq!(settle(&server, &settles, json!({ "outcome": "succeeded" })).await, status("recorded", "succeeded"));
    assert_eq!(server.heartbeat(&extends.id).await.status, 200);
    assert_eq!(reclaim(&ledger, 10).await, 0);
    assert_eq!(settle(&server, &extends, json!({ "outcome": "succeeded" })).await, status("recorded", "succeeded"));
}

#[tokio::test]
async fn a_claim_that_is_extended_is_looked_at_again_when_it_expires() {
    let (ledger, server) = serve_without_reclaimer().await;
    server.submit("k", job(1)).await;
    let claim = server.take().await;
    ledger.execute("update claims set check_at = clock_timestamp() - interval '1 second'").await;
    assert_eq!(reclaim(&ledger, 10).await, 0);
    assert_eq!(ledger.number("select count(*) from claims where check_at = expires_at").await, 1);
    assert_eq!(server.heartbeat(&claim.id).await.status, 200);
    assert_eq!(ledger.number("select count(*) from claims where check_at < expires_at").await, 1);
}

#[tokio::test]
async fn only_the_jobs_that_the_claim_still_holds_come_back() {
    let (ledger, server) = serve().await;
    for n in 0..4 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let claim = server.take_up_to(4).await;
    let ids = claim.job_ids();
    server.settle(&claim.id, ids[0], "succeeded").await;
    server.settle(&claim.id, ids[1], "failed").await;
    lose(&ledger, &claim).await;
    let mut states = Vec::new();
    for id in &ids {
        states.push((server.state(id).await, server.reported(id).await.join(" ")));
    }
    let expected = [("succeeded", "succeeded"), ("queued", "failed"), ("queued", "lost"), ("queued", "lost")];
    assert_eq!(states, expected.map(|(state, reported)| (state.to_owned(), reported.to_owned())));
    ledger.assert_jobs_in_one_place().await;
}

/// The story of kestra 19722: a cancelled job must not run again because its worker died.
#[tokio::test]
async fn a_job_without_attempts_left_fails_and_one_with_a_requested_cancellation_is_cancelled() {
    let (ledger, server) = serve().await;
    for (max_attempts, cancels, state) in [(1, false, "failed"), (1, true, "cancelled"), (5, true, "cancelled")] {
        let body = json!({
            "type": "t", "payload": 1, "max_attempts": max_attempts, "unique": { "by": ["/payload"] },
        });
        let id = server.submit(&new_id(), &body).await.job_id();
        let claim = server.take().await;
        if cancels {
            server.cancel(&id).await;
        }
        lose(&ledger, &claim).await;
        let shown = server.job(&id).await;
        assert_eq!((&shown["state"], &shown["attempt"]), (&json!(state), &json!(1)));
        assert!(shown["finished_at"].is_string() && shown.get("error").is_none(), "{shown}");
        assert_eq!(server.reported(&id).await, ["lost"]);
        assert_eq!(ledger.number("select count(*) from job_uniques").await, 0, "its content is free");
        assert_eq!(settle(&server, &claim, json!({ "outcome": "failed" })).await, status("lease-lost", state));
    }
    ledger.assert_jobs_in_one_place().await;
}

/// The story of river 1318: a batch of rows that cannot be taken hid the rows behind it.
#[tokio::test]
async fn a_claim_that_cannot_be_reclaimed_does_not_hide_the_claims_behind_it() {
    let (ledger, server) = serve_without_reclaimer().await;
    let mut claims = Vec::new();
    for n in 0..5 {
        server.submit(&format!("k{n}"), job(n)).await;
        claims.push(server.take().await);
    }
    for (age, claim) in claims.iter().enumerate() {
        ledger.expire_claim(&claim.id).await;
        let older = format!(
            "update claims set check_at = check_at - interval '1 minute' * {} where id = '{}'",
            5 - age,
            claim.id
        );
        ledger.execute(&older).await;
    }
    // The two oldest cannot be taken: one has a locked lease, one is locked itself.
    let lease = format!("select from job_leases where claim_id = '{}' for update", claims[0].id);
    let row = format!("select from claims where id = '{}' for update", claims[1].id);
    let held = ledger.hold(&format!("{lease}; {row}")).await;
    let mut reclaimed = 0;
    for _ in 0..4 {
        reclaimed += reclaim(&ledger, 1).await;
    }
    assert_eq!(reclaimed, 3);
    held.roll_back().await;
    ledger.execute("update claims set check_at = least(check_at, clock_timestamp())").await;
    assert_eq!(reclaim(&ledger, 10).await, 2);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_locked_table_costs_the_reclaimer_and_the_purger_a_round_and_not_more() {
    let ledger = Ledger::new().await;
    let often = [("HAPAX__CLAIMS__RECLAIM_INTERVAL", "10ms"), ("HAPAX__PURGE__INTERVAL", "10ms")];
    let server = ledger.serve_with(&[&NO_QUOTAS[..], &often].concat()).await;
    server.submit("k", job(1)).await;
    let claim = server.take().await;
    let began = std::time::Instant::now();
    let keys = ledger.lock_table("idempotency_keys", "access exclusive").await;
    let leases = ledger.lock_table("job_leases", "access exclusive").await;
    ledger.expire_claim(&claim.id).await;
    server.until_metric("hapax_purge_failures_total", 2.0).await;
    server.until_metric("hapax_reclaim_failures_total", 2.0).await;
    // The lock timeout of the sessions is 8 minutes.
    assert!(began.elapsed().as_secs() < 120, "{:?}", began.elapsed());
    leases.roll_back().await;
    ledger.until("select count(*) from job_queue", |jobs| jobs == 1).await;
    keys.roll_back().await;
    for pool in ["purge", "reclaim"] {
        assert_eq!(server.metric(&format!("hapax_database_connections_limit{{pool=\"{pool}\"}}")).await, 1.0);
    }
}

#[tokio::test]
async fn a_claim_without_jobs_is_forgotten_an_hour_after_its_expiry() {
    let (ledger, server) = serve_without_reclaimer().await;
    server.submit("k", job(1)).await;
    let claim = server.take().await;
    let never_began = new_id();
    server.release(&never_began).await;
    server.settle(&claim.id, claim.job(), "succeeded").await;
    let claims = async || ledger.number("select count(*) from claims").await;
    for (age, left) in [("59 minutes", 2), ("2 minutes", 0)] {
        let sql = format!(
            "update claims set check_at = clock_timestamp(), expires_at = \
             least(expires_at, clock_timestamp()) - interval '{age}'"
        );
        ledger.execute(&sql).await;
        reclaim(&ledger, 10).await;
        assert_eq!(claims().await, left, "{age}");
        if left == 2 {
            assert_eq!(
                ledger.number("select count(*) from claims where check_at = expires_at + interval '1 hour'").await,
                2
            );
            server.claim(&claim.id, json!({ "queues": ["default"] })).await.is_problem(410, "claim-ended");
            server.claim(&never_began, json!({ "queues": ["default"] })).await.is_problem(410, "claim-ended");
        }
    }
    // The history of the job stays.
    assert_eq!(server.attempts(claim.job()).await[0]["claim_id"], claim.id);
    server.get(&format!("/claims/{}", claim.id)).await.is_problem(404, "claim-not-found");
}

#[tokio::test]
async fn a_claim_that_holds_jobs_is_never_forgotten() {
    let (ledger, server) = serve_without_reclaimer().await;
    server.submit("k", job(1)).await;
    let claim = server.take().await;
    let old = "update claims set check_at = clock_timestamp(), expires_at = clock_timestamp() - interval '2 hours'";
    ledger.execute(old).await;
    let held = ledger.hold("select from job_leases for update").await;
    assert_eq!(reclaim(&ledger, 10).await, 0);
    assert_eq!(ledger.number("select count(*) from claims").await, 1);
    held.roll_back().await;
    assert_eq!(server.heartbeat(&claim.id).await.status, 200);
}

#[tokio::test]
async fn reclaimers_on_two_replicas_take_each_job_once() {
    let (ledger, first) = serve().await;
    let _second = ledger.serve_with(&[("HAPAX__CLAIMS__RECLAIM_INTERVAL", "10ms")]).await;
    ledger.fill_queue("default", 200).await;
    for _ in 0..20 {
        first.take_up_to(10).await;
    }
    ledger.execute("update claims set expires_at = clock_timestamp(), check_at = clock_timestamp()").await;
    ledger.until("select count(*) from job_queue", |jobs| jobs == 200).await;
    assert_eq!(ledger.number("select count(*) from job_queue where attempt = 1 and version = 3").await, 200);
    assert_eq!(ledger.number("select count(*) from job_attempts where reported = 'lost'").await, 200);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_job_that_is_lost_again_and_again_keeps_its_newest_fifty_attempts() {
    let (ledger, server) = serve_without_reclaimer().await;
    let id = server.submit("k", json!({ "type": "t", "payload": 1, "max_attempts": 1000 })).await.job_id();
    let mut tokens = Vec::new();
    for _ in 0..54 {
        let claim = server.take().await;
        tokens.push(claim.token());
        ledger.expire_claim(&claim.id).await;
        assert_eq!(reclaim(&ledger, 1).await, 1);
    }
    let kept: Vec<i64> = server.attempts(&id).await.iter().map(|attempt| attempt["token"].as_i64().unwrap()).collect();
    assert_eq!(kept, tokens[4..]);
}
