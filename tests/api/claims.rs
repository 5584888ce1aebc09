//! Claims: which jobs a worker gets, for how long, and what a repeated request returns.

use hapax::access::Scope;
use serde_json::{Value, json};

use crate::harness::{Claim, Ledger, NO_QUOTAS, Server, job, new_id};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_QUOTAS).await;
    (ledger, server)
}

fn one() -> Value {
    json!({ "queues": ["default"] })
}

async fn rows(ledger: &Ledger, tables: [&str; 3]) -> [i64; 3] {
    let mut counts = [0; 3];
    for (count, table) in counts.iter_mut().zip(tables) {
        *count = ledger.number(&format!("select count(*) from {table}")).await;
    }
    counts
}

#[tokio::test]
async fn a_claim_gets_jobs_and_its_repetition_the_same_ones() {
    let (_ledger, server) = serve().await;
    for n in 0..3 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let id = new_id();
    let first = server.claim(&id, json!({ "queues": ["default"], "max_jobs": 2, "worker": "w" })).await;
    assert_eq!((first.status, first.header("location")), (201, format!("/claims/{id}").as_str()));
    let claim = Claim::of(&first);
    assert_eq!((claim.jobs.len(), &first.json()["worker"]), (2, &json!("w")));
    for got in &claim.jobs {
        assert_eq!((&got["attempt"], &got["token"]), (&json!(1), &json!(2)));
        let shown = server.job(got["id"].as_str().unwrap()).await;
        assert_eq!(
            (&shown["state"], &shown["claim_id"], &shown["attempt"]),
            (&json!("running"), &json!(id), &json!(1))
        );
    }
    let again = json!({ "worker": "w", "max_jobs": 2, "queues": ["default"], "wait_seconds": 30, "lease_seconds": 60 });
    let again = server.claim(&id, again).await;
    assert_eq!((again.status, again.json()), (200, first.json()));
    // What the claim no longer holds is not returned.
    assert_eq!(server.settle(&id, claim.job_ids()[0], "succeeded").await.0, "recorded");
    let rest = Claim::of(&server.claim(&id, json!({ "queues": ["default"], "max_jobs": 2, "worker": "w" })).await);
    assert_eq!(rest.jobs, claim.jobs[1..]);
}

#[tokio::test]
async fn a_claim_id_with_another_request_is_refused_and_an_ended_claim_is_gone() {
    let (ledger, server) = serve().await;
    server.submit("a", job(1)).await;
    server.submit("b", job(2)).await;
    let claim = server.take().await;
    for other in [
        json!({ "queues": ["other"] }),
        json!({ "queues": ["default", "other"] }),
        json!({ "queues": ["default"], "max_jobs": 2 }),
        json!({ "queues": ["default"], "lease_seconds": 61 }),
        json!({ "queues": ["default"], "worker": "w" }),
    ] {
        server.claim(&claim.id, other).await.is_problem(409, "claim-exists-with-other-content");
    }
    server.settle(&claim.id, claim.job(), "succeeded").await;
    server.claim(&claim.id, one()).await.is_problem(410, "claim-ended");
    server.heartbeat(&claim.id).await.is_problem(410, "claim-ended");
    assert_eq!(ledger.number("select count(*) from job_queue").await, 1, "an ended claim takes no other job");
}

#[tokio::test]
async fn a_claim_that_finds_nothing_stores_nothing_and_its_id_can_be_used() {
    let (ledger, server) = serve().await;
    let id = new_id();
    let nothing = server.claim(&id, one()).await;
    assert_eq!((nothing.status, nothing.json()), (200, json!({ "id": id, "jobs": [] })));
    assert_eq!(rows(&ledger, ["claims", "job_leases", "job_attempts"]).await, [0, 0, 0]);
    server.get(&format!("/claims/{id}")).await.is_problem(404, "claim-not-found");
    server.submit("k", job(1)).await;
    // With other content, because nothing was stored.
    let found = server.claim(&id, json!({ "queues": ["other", "default"] })).await;
    assert_eq!((found.status, Claim::of(&found).jobs.len()), (201, 1));
}

#[tokio::test]
async fn jobs_are_claimed_by_priority_then_time_then_id_and_never_before_their_time() {
    let (ledger, server) = serve().await;
    let jobs = [
        ("00000000-0000-7000-8000-000000000006", 4, "2020-01-01T00:00:00Z"),
        ("00000000-0000-7000-8000-000000000005", 2, "2021-01-01T00:00:00Z"),
        ("00000000-0000-7000-8000-000000000003", 2, "2022-01-01T00:00:00Z"),
        ("00000000-0000-7000-8000-000000000004", 2, "2022-01-01T00:00:00Z"),
        ("00000000-0000-7000-8000-000000000007", 1, "2023-01-01T00:00:00Z"),
        ("00000000-0000-7000-8000-000000000001", 1, "9999-01-01T00:00:00Z"),
        ("00000000-0000-7000-8000-000000000002", 3, "9999-01-01T00:00:00Z"),
    ];
    for (id, priority, run_at) in jobs {
        let body = json!({ "type": "t", "payload": 1, "priority": priority, "run_at": run_at });
        assert_eq!(server.put(id, body).await.status, 201);
    }
    let mut claimed = Vec::new();
    for max_jobs in [1, 1, 2, 100] {
        claimed.extend(server.take_up_to(max_jobs).await.job_ids().iter().map(|id| id[35..].to_owned()));
    }
    assert_eq!(claimed, ["7", "5", "3", "4", "6"]);
    assert_eq!(Claim::of(&server.claim(&new_id(), one()).await).jobs.len(), 0);
    ledger.execute("update job_queue set run_at = now() where priority = 3").await;
    assert_eq!(&server.take_up_to(100).await.job()[35..], "2");
}

#[tokio::test]
async fn several_queues_are_served_in_turn_so_that_none_starves() {
    let (ledger, server) = serve().await;
    ledger.fill_queue_with("busy", 1, "now() - interval '1 day'", 5000).await;
    ledger.fill_queue("a", 6).await;
    ledger.fill_queue_with("b", 4, "now()", 6).await;
    ledger.fill_queue("not-asked-for", 1).await;
    let queues = ["busy", "a", "b", "empty"];
    let of = |claim: &Claim, queue: &str| claim.jobs.iter().filter(|job| job["queue"] == queue).count();
    // A quarter for each queue, then what is missing.
    let twelve = Claim::of(&server.claim(&new_id(), json!({ "queues": queues, "max_jobs": 12 })).await);
    assert_eq!((of(&twelve, "a") >= 3, of(&twelve, "b") >= 3, twelve.jobs.len()), (true, true, 12));
    // Each claim begins with another queue. The probability that 80 claims miss one is below 1e-9.
    for _ in 0..80 {
        let claim = server.claim(&new_id(), json!({ "queues": queues })).await;
        assert_eq!((claim.status, Claim::of(&claim).jobs.len()), (201, 1));
    }
    assert_eq!(ledger.number("select count(*) from job_queue where queue in ('a', 'b')").await, 0);
    let rest = Claim::of(&server.claim(&new_id(), json!({ "queues": queues, "max_jobs": 100 })).await);
    assert_eq!(of(&rest, "busy"), 100);
    assert_eq!(ledger.number("select count(*) from job_queue where queue = 'not-asked-for'").await, 1);
}

#[tokio::test]
async fn the_payload_arrives_byte_for_byte() {
    let (_ledger, server) = serve().await;
    let payload = r#"{"b" : 1.50, "a":"\u0041 é 😀", "big":123456789012345678901234567890, "n":[ ],"e":1E400}"#;
    server.submit("k", format!(r#"{{"type":"t", "payload" : {payload} }}"#)).await;
    let id = new_id();
    for status in [201, 200] {
        let answer = server.claim(&id, one()).await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(answer.status, status);
        assert!(text.contains(&format!(r#""payload":{payload}"#)), "{text}");
    }
}

#[tokio::test]
async fn workers_need_the_scope_work_and_readers_the_scope_read() {
    let (ledger, server) = serve().await;
    server.submit("k", job(1)).await;
    let without = server.as_caller(&ledger.token_for("acme", &[Scope::Submit, Scope::Read, Scope::Manage]).await);
    let worker = server.as_caller(&ledger.token_for("acme", &[Scope::Work]).await);
    let id = new_id();
    without.claim(&id, one()).await.is_problem(403, "missing-scope");
    let claim = Claim::of(&worker.claim(&id, one()).await);
    without.heartbeat(&id).await.is_problem(403, "missing-scope");
    without.report(&id, json!([{ "job_id": claim.job(), "outcome": "failed" }])).await.is_problem(403, "missing-scope");
    without.release(&id).await.is_problem(403, "missing-scope");
    assert_eq!(without.get(&format!("/claims/{id}")).await.json()["jobs"][0]["id"], claim.job());
    worker.get("/claims").await.is_problem(403, "missing-scope");
    worker.get(&format!("/claims/{id}")).await.is_problem(403, "missing-scope");
    assert_eq!(worker.heartbeat(&id).await.status, 200);
    assert_eq!(worker.settle(&id, claim.job(), "succeeded").await.0, "recorded");
}

#[tokio::test]
async fn the_same_claim_id_in_two_tenants_is_two_claims_and_neither_sees_the_other() {
    let (ledger, server) = serve().await;
    let other = server.as_caller(&ledger.token_for("globex", &Scope::ALL).await);
    let (mine, theirs) = (server.submit("k", job(1)).await.job_id(), other.submit("k", job(1)).await.job_id());
    let id = new_id();
    assert_eq!(Claim::of(&server.claim(&id, one()).await).job(), mine);
    other.get(&format!("/claims/{id}")).await.is_problem(404, "claim-not-found");
    assert_eq!(other.get("/claims").await.json(), json!({ "claims": [] }));
    other.heartbeat(&id).await.is_problem(410, "claim-ended");
    assert_eq!(other.settle(&id, &mine, "failed").await, ("lease-lost".to_owned(), None));
    assert_eq!(Claim::of(&other.claim(&id, one()).await).job(), theirs);
    assert_eq!(other.settle(&id, &mine, "failed").await, ("lease-lost".to_owned(), None));
    assert_eq!(other.release(&id).await.status, 204);
    assert_eq!((server.state(&mine).await, other.state(&theirs).await), ("running".to_owned(), "queued".to_owned()));
    assert_eq!(server.settle(&id, &mine, "succeeded").await.0, "recorded");
    other.get(&format!("/jobs/{mine}/attempts")).await.is_problem(404, "job-not-found");
    other.retry(&mine, "r").await.is_problem(404, "job-not-found");
}

#[tokio::test]
async fn an_invalid_claim_names_the_member_and_takes_nothing() {
    let (ledger, server) = serve().await;
    server.submit("k", job(1)).await;
    for (body, pointer) in [
        ("{}", "/queues"),
        (r#"{"queues":[]}"#, "/queues"),
        (r#"{"queues":["default","default"]}"#, "/queues/1"),
        (r#"{"queues":["default",1]}"#, "/queues/1"),
        (r#"{"queues":["default"],"max_jobs":0}"#, "/max_jobs"),
        (r#"{"queues":["default"],"max_jobs":101}"#, "/max_jobs"),
        (r#"{"queues":["default"],"max_jobs":1.5}"#, "/max_jobs"),
        (r#"{"queues":["default"],"lease_seconds":4}"#, "/lease_seconds"),
        (r#"{"queues":["default"],"lease_seconds":901}"#, "/lease_seconds"),
        (r#"{"queues":["default"],"wait_seconds":31}"#, "/wait_seconds"),
        (r#"{"queues":["default"],"worker":""}"#, "/worker"),
        (r#"{"queues":["default"],"worker":"a\u0001"}"#, "/worker"),
        (r#"{"queues":["default"],"lease":5}"#, "/lease"),
    ] {
        let refused = server.claim(&new_id(), body).await;
        refused.is_problem(400, "invalid-claim");
        assert_eq!(refused.json()["pointers"], json!([pointer]), "{body}");
    }
    server.claim("42", one()).await.is_problem(400, "invalid-claim-id");
    server.claim(&new_id(), "{").await.is_problem(400, "invalid-json");
    assert_eq!(rows(&ledger, ["claims", "job_leases", "job_queue"]).await, [0, 0, 1]);
}

#[tokio::test]
async fn a_heartbeat_extends_the_claim_also_after_its_expiry() {
    let (ledger, server) = serve().await;
    for n in 0..2 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let id = new_id();
    let body = json!({ "queues": ["default"], "max_jobs": 2, "lease_seconds": 30 });
    let first = server.claim(&id, &body).await;
    let claim = Claim::of(&first);
    assert_eq!(first.json()["heartbeat_after_seconds"], 10);
    let left = "select extract(epoch from expires_at - clock_timestamp())::bigint from claims";
    for (age, expected) in [("interval '20 seconds'", 28..=30), ("interval '1 hour'", 28..=30)] {
        ledger.execute(&format!("update claims set expires_at = expires_at - {age}")).await;
        let extended = server.heartbeat(&id).await;
        assert_eq!((extended.status, &extended.json()["draining"]), (200, &json!(false)));
        assert!(expected.contains(&ledger.number(left).await));
        let held = extended.json()["jobs"].as_array().unwrap().len();
        assert_eq!((held, &extended.json()["heartbeat_after_seconds"]), (2, &json!(10)));
        let shown = server.get(&format!("/claims/{id}")).await.json();
        assert_eq!(shown["expires_at"], extended.json()["expires_at"]);
        assert_eq!(server.claim(&id, &body).await.json()["expires_at"], extended.json()["expires_at"]);
    }
    server.settle(&id, claim.job_ids()[0], "succeeded").await;
    let rest = json!([{ "id": claim.job_ids()[1], "cancel_requested": false }]);
    assert_eq!(server.heartbeat(&id).await.json()["jobs"], rest);
    server.settle(&id, claim.job_ids()[1], "succeeded").await;
    server.heartbeat(&id).await.is_problem(410, "claim-ended");
    server.heartbeat(&new_id()).await.is_problem(410, "claim-ended");
}

#[tokio::test]
async fn a_longer_lease_is_not_shortened_and_each_claim_has_its_own() {
    let (ledger, server) = serve().await;
    for n in 0..2 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let (short, long) = (new_id(), new_id());
    server.claim(&short, json!({ "queues": ["default"], "lease_seconds": 5 })).await;
    server.claim(&long, json!({ "queues": ["default"], "lease_seconds": 900 })).await;
    let seconds = "select extract(epoch from expires_at - created_at)::bigint from claims where lease_seconds =";
    assert_eq!(ledger.number(&format!("{seconds} 5")).await, 5);
    assert_eq!(ledger.number(&format!("{seconds} 900")).await, 900);
    let before = server.get(&format!("/claims/{short}")).await.json();
    server.heartbeat(&long).await;
    assert_eq!(server.get(&format!("/claims/{short}")).await.json(), before);
}

#[tokio::test]
async fn claims_that_hold_jobs_are_listed_in_pages() {
    let (_ledger, server) = serve().await;
    let mut held = Vec::new();
    for n in 0..5 {
        server.submit(&format!("k{n}"), job(n)).await;
        held.push(server.take().await);
    }
    let ended = held.pop().unwrap();
    server.settle(&ended.id, ended.job(), "succeeded").await;
    held.sort_by(|one, another| one.id.cmp(&another.id));
    let (mut path, mut listed) = ("/claims?limit=2".to_owned(), Vec::new());
    for more in [true, false] {
        let page = server.get(&path).await;
        listed.extend(page.json()["claims"].as_array().unwrap().clone());
        assert_eq!(page.headers.contains_key("link"), more, "{page:?}");
        if more {
            let link = page.header("link").to_owned();
            path = link[link.find('/').unwrap()..link.find('>').unwrap()].to_owned();
        }
    }
    assert_eq!(listed.len(), 4);
    for (claim, shown) in held.iter().zip(&listed) {
        assert_eq!((&shown["id"], &shown["jobs"][0]["id"]), (&json!(claim.id), &json!(claim.job())));
        assert_eq!(shown, &server.get(&format!("/claims/{}", claim.id)).await.json());
    }
    let shown = server.get(&format!("/claims/{}", ended.id)).await.json();
    assert_eq!(shown["jobs"], json!([]));
}

/// As in awa's ADR-013: a release refunds the attempt, so the attempt cannot be the token.
#[tokio::test]
async fn a_release_gives_the_attempt_back_and_delays_the_job_longer_each_time() {
    let (ledger, server) = serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    let delay = "select extract(epoch from run_at - (select max(ended_at) from job_attempts))::bigint from job_queue";
    let mut token = 0;
    for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
        ledger.make_due().await;
        let claim = server.take().await;
        assert!(claim.token() > token);
        token = claim.token();
        assert_eq!(claim.jobs[0]["attempt"], 1);
        assert_eq!((server.release(&claim.id).await.status, server.release(&claim.id).await.status), (204, 204));
        assert_eq!(ledger.number(delay).await, expected);
        let shown = server.job(&id).await;
        assert_eq!((&shown["state"], &shown["attempt"]), (&json!("queued"), &json!(0)));
        server.claim(&claim.id, one()).await.is_problem(410, "claim-ended");
        server.heartbeat(&claim.id).await.is_problem(410, "claim-ended");
        assert_eq!(server.settle(&claim.id, &id, "succeeded").await.0, "recorded-otherwise");
        let shown = server.get(&format!("/claims/{}", claim.id)).await.json();
        assert!(shown["released_at"].is_string() && shown["jobs"] == json!([]), "{shown}");
    }
    assert_eq!(server.reported(&id).await, ["released"; 8]);
}

#[tokio::test]
async fn a_claim_that_arrives_after_its_release_takes_nothing() {
    let (ledger, server) = serve().await;
    server.submit("k", job(1)).await;
    let id = new_id();
    assert_eq!(server.release(&id).await.status, 204);
    server.claim(&id, one()).await.is_problem(410, "claim-ended");
    server.heartbeat(&id).await.is_problem(410, "claim-ended");
    assert_eq!(server.release(&id).await.status, 204);
    server.get(&format!("/claims/{id}")).await.is_problem(404, "claim-not-found");
    assert_eq!(rows(&ledger, ["job_leases", "job_queue", "claims"]).await, [0, 1, 1]);
    // It does not matter that another claim takes the job.
    server.take().await;
    server.claim(&id, one()).await.is_problem(410, "claim-ended");
}

#[tokio::test]
async fn a_release_returns_only_what_the_claim_still_holds() {
    let (ledger, server) = serve().await;
    for n in 0..3 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let claim = server.take_up_to(3).await;
    let [done, failed, held] = claim.job_ids()[..] else { panic!("three jobs") };
    server.settle(&claim.id, done, "succeeded").await;
    server.settle(&claim.id, failed, "failed").await;
    assert_eq!(server.release(&claim.id).await.status, 204);
    let state = async |id| server.job(id).await["state"].clone();
    assert_eq!([state(done).await, state(failed).await, state(held).await], ["succeeded", "queued", "queued"]);
    assert_eq!(
        (server.job(failed).await["attempt"].clone(), server.job(held).await["attempt"].clone()),
        (json!(1), json!(0))
    );
    ledger.assert_jobs_in_one_place().await;
}

/// The story of procrastinate 1518 and oban 862: two workers had the same name or process id.
#[tokio::test]
async fn the_name_of_a_worker_proves_nothing() {
    let (_ledger, server) = serve().await;
    for n in 0..2 {
        server.submit(&format!("k{n}"), job(n)).await;
    }
    let body = json!({ "queues": ["default"], "worker": "host-1/42" });
    let one = Claim::of(&server.claim(&new_id(), &body).await);
    let two = Claim::of(&server.claim(&new_id(), &body).await);
    for outcome in ["succeeded", "failed", "released"] {
        let refused = server.settle(&two.id, one.job(), outcome).await;
        assert_eq!(refused, ("lease-lost".to_owned(), Some("running".to_owned())));
    }
    assert_eq!(server.heartbeat(&two.id).await.json()["jobs"], json!([{ "id": two.job(), "cancel_requested": false }]));
    assert_eq!(server.settle(&one.id, one.job(), "succeeded").await.0, "recorded");
}
