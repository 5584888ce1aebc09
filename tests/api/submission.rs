//! `POST /jobs` and `GET /jobs/{id}` without failures.

use serde_json::json;

use crate::harness::{Ledger, job};

#[tokio::test]
async fn the_first_answer_is_201_and_replays_are_200_with_the_same_bytes() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", job(1)).await;
    assert_eq!(first.status, 201);
    assert_eq!(first.header("idempotent-replayed"), "false");
    assert_eq!(first.header("content-type"), "application/json");
    assert_eq!(first.header("cache-control"), "no-store");
    assert_eq!(first.header("location"), format!("/jobs/{}", first.job_id()));
    for _ in 0..3 {
        let again = server.submit("key-1", job(1)).await;
        assert_eq!(again.status, 200);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.body, first.body);
        for same in ["location", "content-type", "idempotency-expires", "cache-control"] {
            assert_eq!(again.header(same), first.header(same));
        }
        assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
    }
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn an_answer_has_the_defaults_but_not_the_payload() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let answer = server.submit("key-1", r#"{"type":"mail.send","payload":{"secret":"x"}}"#).await.json();
    assert_eq!(answer["type"], "mail.send");
    assert_eq!(answer["queue"], "default");
    assert_eq!(answer["priority"], 2);
    assert_eq!(answer["max_attempts"], 25);
    assert_eq!(answer["state"], "queued");
    assert_eq!(answer["attempt"], 0);
    assert_eq!(answer["run_at"], answer["created_at"]);
    assert!(answer.get("payload").is_none());
    assert_eq!(ledger.number("select count(*) from idempotency_keys where body::text like '%secret%'").await, 0);
}

#[tokio::test]
async fn every_submitted_member_is_stored() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let body = json!({
        "type": "train", "queue": "gpu", "priority": 1, "run_at": "2031-05-06T07:08:09.123456+02:00",
        "max_attempts": 3, "payload": null,
    });
    let answer = server.submit("key-1", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let shown = server.get(answer.header("location")).await.json();
    let expected = [
        ("type", json!("train")),
        ("queue", json!("gpu")),
        ("priority", json!(1)),
        ("run_at", json!("2031-05-06T05:08:09.123456Z")),
        ("max_attempts", json!(3)),
        ("payload", json!(null)),
    ];
    for (member, value) in expected {
        assert_eq!(shown[member], value, "{member}");
    }
}

#[tokio::test]
async fn a_job_is_shown_with_its_payload_byte_for_byte() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let payload = "{ \"b\" : 9007199254740993, \"a\":1.0,\t\"a\" : 1e400000, \"é\\u00e9\\/\": [ ] }";
    let answer = server.submit("key-1", format!("{{\"type\":\"t\",\"payload\":  {payload}  }}")).await;
    let shown = server.get(answer.header("location")).await;
    assert_eq!(shown.status, 200);
    let text = String::from_utf8(shown.body.to_vec()).unwrap();
    assert!(text.contains(payload), "{text}");
    // All other members are as they were when the job was created.
    let made = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(text.starts_with(made.trim_end_matches("}\n")), "{text} does not begin with {made}");
}

#[tokio::test]
async fn a_missing_job_is_404_whatever_its_id_looks_like() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = server.submit("key-1", job(1)).await.job_id();
    for unknown in
        [uuid::Uuid::now_v7().to_string(), "x".into(), id.replace('-', ""), format!("{{{id}}}"), "%20".into()]
    {
        server.get(&format!("/jobs/{unknown}")).await.is_problem(404, "job-not-found");
    }
    assert_eq!(server.get(&format!("/jobs/{}", id.to_uppercase())).await.status, 200);
}

#[tokio::test]
async fn a_body_of_the_limit_is_accepted_and_a_larger_one_is_not() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__BODY_LIMIT_BYTES", "4096")]).await;
    let body = |length: usize| {
        let frame = r#"{"type":"t","payload":""}"#;
        frame.replace("\"\"", &format!("\"{}\"", "x".repeat(length - frame.len())))
    };
    assert_eq!(server.submit("key-1", body(4096)).await.status, 201);
    server.submit("key-2", body(4097)).await.is_problem(413, "body-too-large");
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn a_server_killed_after_its_answer_loses_no_job() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", job(1)).await;
    drop(server);
    let again = ledger.serve().await.submit("key-1", job(1)).await;
    assert_eq!((again.status, again.body), (200, first.body));
}
