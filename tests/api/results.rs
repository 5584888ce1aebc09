//! What workers report, what becomes of the jobs, and what the history of a job shows.

use serde_json::{Value, json};

use crate::harness::{Answer, Claim, Ledger, NO_QUOTAS, Server, job, new_id};

async fn serve() -> (Ledger, Server) {
    serve_with(&[]).await
}

async fn serve_with(settings: &[(&str, &str)]) -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&NO_QUOTAS, settings].concat()).await;
    (ledger, server)
}

/// A running job.
async fn running(server: &Server) -> (Claim, String) {
    let id = server.submit(&new_id(), job(1)).await.job_id();
    let claim = server.take().await;
    assert_eq!(claim.job(), id);
    (claim, id)
}

fn status(status: &str, state: &str) -> (String, Option<String>) {
    (status.to_owned(), Some(state.to_owned()))
}

/// Seconds from the end of the last attempt to the next one.
const DELAY: &str = "select (extract(epoch from run_at - (select max(ended_at) from job_attempts)) * 1000)::bigint \
                     from job_queue";

#[tokio::test]
async fn each_outcome_moves_the_job_to_its_place() {
    let (ledger, server) = serve().await;
    for (result, state, attempt) in [
        (json!({ "outcome": "succeeded" }), "succeeded", 1),
        (json!({ "outcome": "succeeded", "result": { "a": [1, null] } }), "succeeded", 1),
        (json!({ "outcome": "failed" }), "queued", 1),
        (json!({ "outcome": "failed", "error": "why" }), "queued", 1),
        (json!({ "outcome": "failed", "error": "why", "retry": true }), "queued", 1),
        (json!({ "outcome": "failed", "error": "why", "retry": false }), "failed", 1),
        (json!({ "outcome": "failed", "retry": false, "retry_in_seconds": 1 }), "failed", 1),
        (json!({ "outcome": "released", "error": "restart" }), "queued", 0),
        (json!({ "outcome": "cancelled", "error": "stopped" }), "cancelled", 1),
    ] {
        let (claim, id) = running(&server).await;
        let mut report = result.clone();
        report["job_id"] = json!(id);
        assert_eq!(server.settle_with(&claim.id, report.clone()).await, status("recorded", state), "{result}");
        let shown = server.job(&id).await;
        assert_eq!(
            (&shown["state"], &shown["attempt"], &shown["version"]),
            (&json!(state), &json!(attempt), &json!(3))
        );
        let is_over = state != "queued";
        assert_eq!(shown.get("finished_at").is_some(), is_over, "{shown}");
        assert_eq!(shown.get("result"), result.get("result"));
        assert_eq!(shown.get("error"), result.get("error").filter(|_| is_over));
        let [attempt] = &server.attempts(&id).await[..] else { panic!("one attempt") };
        assert_eq!((&attempt["reported"], &attempt["claim_id"]), (&result["outcome"], &json!(claim.id)));
        assert_eq!(attempt.get("error"), result.get("error"));
        assert!(attempt["ended_at"].is_string(), "{attempt}");
        assert_eq!(server.settle_with(&claim.id, report).await, status("already-recorded", state));
        ledger.execute("update job_queue set run_at = now() + interval '1 day'").await;
    }
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_result_and_an_error_are_kept_byte_for_byte() {
    let (_ledger, server) = serve().await;
    let text = r#"{"b" : 1.50, "a":"\u0041 é 😀", "big":123456789012345678901234567890, "n":[ ],"e":1E400}"#;
    for value in [text, "null", "false", r#""""#, "[ ]", " 1.0"] {
        for (outcome, member, more) in [("succeeded", "result", ""), ("failed", "error", r#","retry":false"#)] {
            let (claim, id) = running(&server).await;
            let report = format!(r#"[{{"job_id":"{id}","outcome":"{outcome}","{member}":{value}{more}}}]"#);
            let answer = server.report(&claim.id, report).await;
            assert_eq!(answer.json()["results"][0]["status"], "recorded", "{answer:?}");
            let expected = format!(r#""{member}":{}"#, value.trim());
            let paths: &[String] = &[format!("/jobs/{id}"), format!("/jobs/{id}/attempts")];
            for path in &paths[..if outcome == "failed" { 2 } else { 1 }] {
                let shown = String::from_utf8(server.get(path).await.body.to_vec()).unwrap();
                assert!(shown.contains(&expected), "{expected} in {shown}");
            }
        }
    }
}

#[tokio::test]
async fn a_result_that_is_too_large_is_refused_by_name_and_nothing_is_recorded() {
    let settings = [("HAPAX__CLAIMS__RESULT_BYTES", "1000"), ("HAPAX__CLAIMS__ERROR_BYTES", "100")];
    let (ledger, server) = serve_with(&settings).await;
    for n in 0..2 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let claim = server.take_up_to(2).await;
    let [one, two] = claim.job_ids()[..] else { panic!("two jobs") };
    // Two of the bytes are quotes.
    for (outcome, member, limit) in [("succeeded", "result", 1000), ("failed", "error", 100)] {
        let report = |length: usize| {
            json!([
                { "job_id": one, "outcome": "succeeded" },
                { "job_id": two, "outcome": outcome, member: "x".repeat(length - 2) },
            ])
        };
        let refused = server.report(&claim.id, report(limit + 1)).await;
        refused.is_problem(413, "result-too-large");
        assert_eq!(refused.json()["pointers"], json!([format!("/results/1/{member}")]), "{refused:?}");
        assert_eq!(ledger.number("select count(*) from job_leases").await, 2);
        if outcome == "failed" {
            assert_eq!(server.report(&claim.id, report(limit)).await.status, 200);
        }
    }
    assert_eq!(ledger.number("select count(*) from job_leases").await, 0);
}

#[tokio::test]
async fn an_invalid_result_names_the_member_and_nothing_is_recorded() {
    let (ledger, server) = serve().await;
    let (claim, id) = running(&server).await;
    let valid = json!({ "job_id": id, "outcome": "succeeded" });
    for (result, pointer) in [
        (json!({ "outcome": "failed" }), "/results/1/job_id"),
        (json!({ "job_id": new_id(), "outcome": "lost" }), "/results/1/outcome"),
        (json!({ "job_id": new_id(), "outcome": "failed", "result": 1 }), "/results/1/result"),
        (json!({ "job_id": new_id(), "outcome": "released", "retry": false }), "/results/1/retry"),
        (json!({ "job_id": new_id(), "outcome": "succeeded", "retry_in_seconds": 1 }), "/results/1/retry_in_seconds"),
        (json!({ "job_id": new_id(), "outcome": "failed", "retry_in_seconds": -1 }), "/results/1/retry_in_seconds"),
        (
            json!({ "job_id": new_id(), "outcome": "failed", "retry_in_seconds": 31_536_001 }),
            "/results/1/retry_in_seconds",
        ),
        (valid.clone(), "/results/1/job_id"),
    ] {
        let refused = server.report(&claim.id, json!([valid, result])).await;
        refused.is_problem(400, "invalid-results");
        assert_eq!(refused.json()["pointers"], json!([pointer]), "{result}");
    }
    let many: Vec<Value> = (0..101).map(|_| json!({ "job_id": new_id(), "outcome": "failed" })).collect();
    server.report(&claim.id, json!(many)).await.is_problem(400, "invalid-results");
    server.report(&claim.id, json!([])).await.is_problem(400, "invalid-results");
    assert_eq!(ledger.number("select count(*) from job_leases").await, 1);
    assert_eq!(server.report(&claim.id, json!(many[..100])).await.status, 200);
}

#[tokio::test]
async fn a_repeated_report_changes_nothing_and_tells_the_current_state() {
    let (ledger, server) = serve().await;
    let (claim, id) = running(&server).await;
    let settle = async |outcome| server.settle(&claim.id, &id, outcome).await;
    assert_eq!(settle("failed").await, status("recorded", "queued"));
    assert_eq!(settle("failed").await, status("already-recorded", "queued"));
    for other in ["succeeded", "released", "cancelled"] {
        assert_eq!(settle(other).await, status("recorded-otherwise", "queued"));
    }
    ledger.make_due().await;
    let second = server.take().await;
    assert_eq!(settle("failed").await, status("already-recorded", "running"));
    assert_eq!(settle("succeeded").await, status("recorded-otherwise", "running"));
    assert_eq!(server.settle(&second.id, &id, "succeeded").await, status("recorded", "succeeded"));
    assert_eq!(settle("failed").await, status("already-recorded", "succeeded"));
    assert_eq!(server.settle(&second.id, &id, "failed").await, status("recorded-otherwise", "succeeded"));
    assert_eq!(server.settle(&new_id(), &id, "succeeded").await, status("lease-lost", "succeeded"));
    assert_eq!(server.settle(&second.id, &new_id(), "succeeded").await, ("lease-lost".to_owned(), None));
    assert_eq!(server.reported(&id).await, ["failed", "succeeded"]);
    assert_eq!(server.job(&id).await["version"], 5);
}

#[tokio::test]
async fn results_are_answered_in_the_order_of_the_request() {
    let (_ledger, server) = serve().await;
    for n in 0..20 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let claim = server.take_up_to(10).await;
    let queued = server.get("/jobs?state=queued").await.json()["jobs"][0]["id"].as_str().unwrap().to_owned();
    server.settle(&claim.id, claim.job_ids()[3], "failed").await;
    let mut ids: Vec<String> = claim.job_ids().iter().map(|id| (*id).to_owned()).collect();
    ids.extend([queued.clone(), new_id()]);
    ids.reverse();
    let results: Vec<Value> = ids.iter().map(|id| json!({ "job_id": id, "outcome": "succeeded" })).collect();
    let answer = server.report(&claim.id, json!(results)).await.json();
    let answered: Vec<&str> =
        answer["results"].as_array().unwrap().iter().map(|r| r["job_id"].as_str().unwrap()).collect();
    assert_eq!(answered, ids);
    for result in answer["results"].as_array().unwrap() {
        let id = result["job_id"].as_str().unwrap();
        let expected = match claim.job_ids().iter().position(|held| *held == id) {
            Some(3) => ("recorded-otherwise", Some("queued")),
            Some(_) => ("recorded", Some("succeeded")),
            None if id == queued => ("lease-lost", Some("queued")),
            None => ("lease-lost", None),
        };
        assert_eq!((result["status"].as_str().unwrap(), result["state"].as_str()), expected);
    }
}

#[tokio::test]
async fn the_worker_can_choose_the_delay() {
    let (ledger, server) = serve().await;
    for (outcome, seconds) in [("failed", 0.0), ("failed", 1.5), ("failed", 31_536_000.0), ("released", 7.0)] {
        let (claim, id) = running(&server).await;
        let report = json!({ "job_id": id, "outcome": outcome, "retry_in_seconds": seconds });
        server.settle_with(&claim.id, report).await;
        assert_eq!(ledger.number(DELAY).await as f64, seconds * 1000.0);
        server.cancel(&id).await;
        ledger.execute("delete from job_attempts").await;
    }
}

#[tokio::test]
async fn a_failed_job_waits_twice_as_long_after_each_attempt_up_to_a_maximum() {
    let settings = [("HAPAX__CLAIMS__RETRY_DELAY_MIN", "10s"), ("HAPAX__CLAIMS__RETRY_DELAY_MAX", "1m")];
    let (ledger, server) = serve_with(&settings).await;
    let id = server.submit("k", job(1)).await.job_id();
    for longest in [10_000, 20_000, 40_000, 60_000, 60_000] {
        ledger.make_due().await;
        let claim = server.take().await;
        assert_eq!(server.settle(&claim.id, &id, "failed").await, status("recorded", "queued"));
        let delay = ledger.number(DELAY).await;
        assert!((longest / 2..=longest).contains(&delay), "{delay} of {longest}");
    }
}

#[tokio::test]
async fn a_job_fails_when_its_attempts_are_used_up_and_keeps_the_last_error() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", json!({ "type": "t", "payload": 1, "max_attempts": 3 })).await.job_id();
    let mut claims = Vec::new();
    for (number, state) in [(1, "queued"), (2, "queued"), (3, "failed")] {
        ledger.make_due().await;
        let claim = server.take().await;
        assert_eq!((&claim.jobs[0]["attempt"], &claim.jobs[0]["max_attempts"]), (&json!(number), &json!(3)));
        let report = json!({ "job_id": id, "outcome": "failed", "error": number });
        assert_eq!(server.settle_with(&claim.id, report).await, status("recorded", state));
        claims.push(claim);
    }
    let shown = server.job(&id).await;
    assert_eq!((&shown["state"], &shown["error"], &shown["attempt"]), (&json!("failed"), &json!(3), &json!(3)));
    let attempts = server.attempts(&id).await;
    assert_eq!(attempts.len(), 3);
    for ((number, claim), attempt) in (1..).zip(&claims).zip(&attempts) {
        let expected = (&json!(number), &json!(number), &json!(claim.id), &json!(claim.token()));
        assert_eq!((&attempt["attempt"], &attempt["error"], &attempt["claim_id"], &attempt["token"]), expected);
        assert_eq!(attempt["reported"], "failed");
    }
    assert_eq!(ledger.number("select count(*) from job_queue").await, 0);
}

#[tokio::test]
async fn the_history_shows_the_worker_and_the_attempt_in_progress() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    assert_eq!(server.attempts(&id).await, Vec::<Value>::new());
    for worker in ["first", "second"] {
        ledger.make_due().await;
        let claim = server.claim(&new_id(), json!({ "queues": ["default"], "worker": worker })).await;
        if worker == "first" {
            server.settle(&Claim::of(&claim).id, &id, "released").await;
        }
    }
    let [first, second] = &server.attempts(&id).await[..] else { panic!("two attempts") };
    assert_eq!(
        (&first["worker"], &first["reported"], &first["attempt"]),
        (&json!("first"), &json!("released"), &json!(1))
    );
    assert_eq!((&second["worker"], &second["reported"]), (&json!("second"), &json!("running")));
    assert!(second.get("ended_at").is_none() && first["token"].as_i64() < second["token"].as_i64());
    server.get(&format!("/jobs/{}/attempts", new_id())).await.is_problem(404, "job-not-found");
}

#[tokio::test]
async fn a_job_keeps_its_newest_fifty_attempts_however_they_ended() {
    let (ledger, server) = serve().await;
    let body = json!({ "type": "t", "payload": 1, "max_attempts": 1000 });
    let ids = [server.submit("a", &body).await.job_id(), server.submit("b", &body).await.job_id()];
    let mut oldest = Vec::new();
    for round in 0..64 {
        ledger.make_due().await;
        let claim = server.take_up_to(2).await;
        assert_eq!(claim.jobs.len(), 2);
        if round == 14 {
            oldest.extend(claim.jobs.iter().map(|job| (job["id"].clone(), job["token"].clone())));
        }
        let outcomes = [["failed", "released"][round % 2], "failed"];
        let results = [0, 1].map(|n| json!({ "job_id": ids[n], "outcome": outcomes[n] }));
        server.report(&claim.id, json!(results)).await;
    }
    for id in ids {
        let attempts = server.attempts(&id).await;
        assert_eq!(attempts.len(), 50);
        assert!(oldest.contains(&(json!(id), attempts[0]["token"].clone())));
    }
}

#[tokio::test]
async fn the_history_is_bounded_over_retries_too() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", json!({ "type": "t", "payload": 1, "max_attempts": 20 })).await.job_id();
    for round in 0..4 {
        for _ in 0..20 {
            ledger.make_due().await;
            server.settle(&server.take().await.id, &id, "failed").await;
        }
        // And the one that ended the job.
        assert_eq!(server.attempts(&id).await.len(), [20, 40, 51, 51][round]);
        server.retry(&id, &format!("r{round}")).await;
    }
}

#[tokio::test]
async fn a_cancelled_running_job_asks_its_worker_to_stop_and_ends_as_reported() {
    let (ledger, server) = serve().await;
    for (outcome, state) in
        [("succeeded", "succeeded"), ("failed", "cancelled"), ("released", "cancelled"), ("cancelled", "cancelled")]
    {
        let (claim, id) = running(&server).await;
        for _ in 0..2 {
            let cancelled = server.cancel(&id).await;
            assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("running")), "{cancelled:?}");
            assert!(cancelled.json()["cancel_requested_at"].is_string());
            assert_eq!(cancelled.json()["version"], 3, "a repeated request changes nothing");
        }
        let asked = json!([{ "id": id, "cancel_requested": true }]);
        assert_eq!(server.heartbeat(&claim.id).await.json()["jobs"], asked);
        assert_eq!(server.get(&format!("/claims/{}", claim.id)).await.json()["jobs"][0]["cancel_requested"], true);
        assert_eq!(server.settle(&claim.id, &id, outcome).await, status("recorded", state));
        assert_eq!(server.settle(&claim.id, &id, outcome).await, status("already-recorded", state));
        assert_eq!(server.reported(&id).await, [outcome]);
        let after = server.cancel(&id).await;
        assert_eq!((after.status, &after.json()["state"], &after.json()["version"]), (200, &json!(state), &json!(4)));
    }
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_deleted_running_job_is_nowhere_and_its_worker_loses_the_lease() {
    let (ledger, server) = serve().await;
    let unique = json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    let id = server.submit("k", &unique).await.job_id();
    let failed = server.take().await;
    server.settle(&failed.id, &id, "failed").await;
    ledger.make_due().await;
    let claim = server.take().await;
    assert_eq!((server.delete(&id).await.status, server.delete(&id).await.status), (204, 204));
    assert_eq!(server.settle(&claim.id, &id, "succeeded").await, ("lease-lost".to_owned(), None));
    server.heartbeat(&claim.id).await.is_problem(410, "claim-ended");
    server.claim(&claim.id, json!({ "queues": ["default"] })).await.is_problem(410, "claim-ended");
    for table in ["job_queue", "job_leases", "job_outcomes", "job_attempts", "job_uniques"] {
        assert_eq!(ledger.number(&format!("select count(*) from {table}")).await, 0, "{table}");
    }
    server.get(&format!("/jobs/{id}")).await.is_problem(410, "job-deleted");
    server.get(&format!("/jobs/{id}/attempts")).await.is_problem(410, "job-deleted");
    server.retry(&id, "r").await.is_problem(410, "job-deleted");
    assert_eq!(server.submit("again", &unique).await.status, 201, "its content is free");
}

#[tokio::test]
async fn a_unique_job_holds_its_content_until_it_is_over() {
    let (ledger, server) = serve().await;
    let unique = json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    for (outcome, is_over) in [("failed", false), ("released", false), ("cancelled", true), ("succeeded", true)] {
        let id = server.submit(&new_id(), &unique).await.job_id();
        ledger.make_due().await;
        let claim = server.take().await;
        assert_eq!(server.submit(&new_id(), &unique).await.job_id(), id, "it runs");
        server.settle(&claim.id, &id, outcome).await;
        let again = server.submit(&new_id(), &unique).await.job_id();
        assert_eq!(again != id, is_over, "{outcome}");
        server.cancel(&again).await;
    }
}

#[tokio::test]
async fn a_running_job_cannot_be_changed() {
    let (_ledger, server) = serve().await;
    let (_claim, id) = running(&server).await;
    for if_match in ["*", "\"2\"", "\"1\""] {
        let refused: Answer = server.patch(&id, if_match, r#"{"priority":1}"#).await;
        refused.is_problem(409, "job-not-waiting");
    }
    assert_eq!(server.job(&id).await["version"], 2);
}
