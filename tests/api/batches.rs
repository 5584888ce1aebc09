//! `POST /jobs/batch`: many submissions in one request.

use serde_json::{Value, json};

use crate::harness::{Answer, Fault, Ledger, NO_QUOTAS, Proxy, job};

fn item(key: impl ToString, job: Value) -> String {
    format!("{}\n", json!({ "idempotency_key": key.to_string(), "job": job }))
}

fn statuses(answers: &[Answer]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status).collect()
}

#[tokio::test]
async fn batch_items_and_single_submissions_share_idempotency_keys() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let alone = one.submit("alone", job(1)).await;
    let batch = [item("alone", job(1)), item("new", job(2)), item("alone", job(3))].concat();
    let answers = one.submit_batch(&batch).await.items();
    assert_eq!(statuses(&answers), [200, 201, 422]);
    assert_eq!((&answers[0].body, answers[0].header("location")), (&alone.body, alone.header("location")));
    let again = two.submit_batch(&batch).await.items();
    assert_eq!(statuses(&again), [200, 200, 422]);
    let alone_again = two.submit("new", job(2)).await;
    assert_eq!((alone_again.status, &alone_again.body), (200, &answers[1].body));
    assert_eq!(again[1].body, answers[1].body);
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn the_media_type_application_ndjson_is_accepted() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let send = async |media_type: &str| {
        let request = server.request("POST", "/jobs/batch").header("content-type", media_type);
        server.send(request.body([item("a", job(1)), item("b", job(2))].concat())).await
    };
    assert_eq!(statuses(&send("application/ndjson").await.items()), [201, 201]);
    assert_eq!(statuses(&send("application/x-ndjson; charset=utf8").await.items()), [200, 200]);
    let refused = send("application/json").await;
    refused.is_problem(415, "unsupported-media-type");
    assert_eq!(refused.header("accept"), "application/x-ndjson, application/ndjson");
}

#[tokio::test]
async fn an_invalid_item_does_not_affect_the_others() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__BODY_LIMIT_BYTES", "1024")]).await;
    let large = item("large", json!({ "type": "t", "payload": "x".repeat(1024) }));
    let lines = [
        item("good-1", job(1)),
        "{\"idempotency_key\":\"broken\",\"job\":{\n".to_owned(),
        "\r\n".to_owned(),
        "[]\n".to_owned(),
        "{\"job\":{\"type\":\"t\",\"payload\":1}}\n".to_owned(),
        item("two words", job(1)),
        "{\"idempotency_key\":7,\"job\":{}}\n".to_owned(),
        "{\"idempotency_key\":\"k\",\"job\":{},\"job\":{}}\n".to_owned(),
        "{\"idempotency_key\":\"k\",\"job\":{},\"x\":{}}\n".to_owned(),
        item("wrong", json!({ "type": "t", "payload": 1, "priority": 9 })),
        large,
        item("NUL", json!({ "type": "t", "payload": "\0" })),
        item("good-2", job(2)).trim_end().to_owned(),
    ];
    let answers = server.submit_batch(lines.concat()).await.items();
    assert_eq!(answers.len(), lines.len() - 1, "an empty line is not an item");
    let codes: Vec<String> =
        answers.iter().map(|a| if a.status < 300 { "made".to_owned() } else { a.problem() }).collect();
    let (required, invalid) = ("idempotency-key-required", "invalid-idempotency-key");
    let wanted =
        ["made", "invalid-json", "invalid-item", required, invalid, "invalid-item", "invalid-item", "invalid-item"];
    assert_eq!(codes, [&wanted[..], &["invalid-job", "body-too-large", "invalid-json", "made"]].concat());
    assert_eq!(answers[8].json()["pointers"], json!(["/priority"]));
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn every_valid_submission_is_a_valid_batch_item() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__BODY_LIMIT_BYTES", "1024")]).await;
    let deepest = format!(r#"{{"type":"t","payload":{}{}}}"#, "[".repeat(63), "]".repeat(63));
    let largest = format!(r#"{{"type":"t","payload":"{}"}}"#, "x".repeat(1024 - 25));
    let line = |key: &str, job: &str| format!("{{\"idempotency_key\":\"{key}\",\"job\":{job}}}\n");
    for (key, job) in [("deepest", &deepest), ("largest", &largest)] {
        assert_eq!(server.submit(key, job).await.status, 201, "{key}");
        assert_eq!(statuses(&server.submit_batch(line(key, job)).await.items()), [200], "{key}");
    }
    let (deeper, larger) = (deepest.replace("[[", "[[[").replace("]]", "]]]"), largest.replace("xx", "xxx"));
    for (key, job, code) in [("deeper", deeper, "invalid-json"), ("larger", larger, "body-too-large")] {
        let refused = server.submit_batch(line(key, &job)).await.items().remove(0);
        assert_eq!((refused.problem().as_str(), server.submit(key, job).await.problem().as_str()), (code, code));
    }
}

#[tokio::test]
async fn a_stored_answer_that_is_not_json_is_an_error_of_its_item_only() {
    let ledger = Ledger::new().await;
    let first = ledger.serve().await.submit("broken", job(1)).await;
    ledger.execute("update idempotency_keys set body = '{\"id\":'").await;
    // Its replay cache is empty.
    let server = ledger.serve().await;
    let answers = server.submit_batch([item("broken", job(1)), item("whole", job(2))].concat()).await.items();
    answers[0].is_problem(500, "internal-error");
    assert_eq!(answers[1].status, 201);
    let row = format!("job_id {} and request_id {}", first.job_id(), first.header("x-request-id"));
    server.until_logged(&row).await;
}

#[tokio::test]
async fn items_with_the_same_key_are_executed_in_order() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let batch: String = (0..50).map(|n| item(format!("key-{}", n % 10), job(n % 10))).collect();
    let answers = server.submit_batch(batch).await.items();
    assert_eq!(statuses(&answers), [vec![201; 10], vec![200; 40]].concat());
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.body, answers[number % 10].body);
    }
    for round in 0..20 {
        let batch: String = (0..8).map(|n| item(format!("round-{round}"), job(n))).collect();
        let answers = server.submit_batch(batch).await.items();
        assert_eq!(statuses(&answers), [vec![201], vec![422; 7]].concat());
    }
    ledger.assert_consistent(30).await;
}

#[tokio::test]
async fn a_batch_has_at_most_a_thousand_items() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_QUOTAS).await;
    let batch: String = (0..1000).map(|n| item(n, job(n))).collect();
    server.submit_batch(format!("{batch}{}", item(1000, job(0)))).await.is_problem(400, "invalid-batch");
    assert_eq!(ledger.jobs().await, 0);
    let answers = server.submit_batch(&batch).await.items();
    assert_eq!(statuses(&answers), [201; 1000]);
    assert_eq!(answers[700].json()["type"], "demo.count");
    let again = server.submit_batch(&batch).await.items();
    assert!(again.iter().zip(&answers).all(|(again, first)| again.status == 200 && again.body == first.body));
    ledger.assert_consistent(1000).await;
}

#[tokio::test]
async fn two_concurrent_copies_of_a_batch_create_each_job_once() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let batch: String = (0..100).map(|n| item(n, job(n))).collect();
    let (first, second) = tokio::join!(one.submit_batch(&batch), two.submit_batch(&batch));
    for (first, second) in first.items().iter().zip(second.items()) {
        let mut both = [first.status, second.status];
        both.sort_unstable();
        assert_eq!((both, &first.body), ([200, 201], &second.body));
    }
    ledger.assert_consistent(100).await;
}

#[tokio::test]
async fn database_connections_cut_during_a_batch_are_invisible_to_the_client() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &[]).await;
    proxy.fail_next("key-17", Fault::CutAfter);
    proxy.then_fail_after(0, "key-17", Fault::CutBefore);
    let batch: String = (0..40).map(|n| item(format!("key-{n}"), job(n))).collect();
    let answers = server.submit_batch(&batch).await.items();
    assert!(proxy.is_done());
    assert_eq!(statuses(&answers), [201; 40]);
    ledger.assert_consistent(40).await;
    assert_eq!(statuses(&server.submit_batch(&batch).await.items()), [200; 40]);
}

#[tokio::test]
async fn during_an_outage_each_item_gets_503_and_a_retry_completes_the_batch() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&crate::harness::SHORT_DEADLINES).await;
    server.get("/jobs/x").await.is_problem(404, "job-not-found");
    let batch: String = (0..10).map(|n| item(n, job(n))).collect();
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    for answer in server.submit_batch(&batch).await.items() {
        answer.is_problem(503, "database-unavailable");
        answer.assert_retry_after();
    }
    ledger.rename_back_from(&away).await;
    while statuses(&server.submit_batch(&batch).await.items()).contains(&503) {}
    ledger.assert_consistent(10).await;
}

#[tokio::test]
async fn each_item_counts_against_the_quotas() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__CREATIONS_PER_SECOND", "1"), ("HAPAX__QUOTA__CREATIONS_BURST", "20")];
    let server = ledger.serve_with(&settings).await;
    let batch: String = (0..100).map(|n| item(n, job(n))).collect();
    let answers = server.submit_batch(&batch).await.items();
    let made: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 201).collect();
    assert!((20..60).contains(&made.len()), "{}", made.len());
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        answer.is_problem(429, "quota-exceeded");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    // Jobs that exist are still replayed.
    let again = server.submit_batch(&batch).await.items();
    let replayed = again.iter().zip(&answers).filter(|(again, first)| again.status == 200 && first.status == 201);
    assert_eq!(replayed.count(), made.len());
}

#[tokio::test]
async fn one_log_line_counts_the_outcomes_of_the_items() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let batch = [item("a-secret-key", job(1)), item("a-secret-key", job(1)), item("two words", job(1))].concat();
    let answer = server.submit_batch(batch).await;
    let lines = server.log_until(answer.header("x-request-id")).await;
    let answered = lines.iter().find(|line| line["span"]["request_id"] == answer.header("x-request-id")).unwrap();
    assert_eq!(answered["span"]["items.outcomes"], "created=1 refused=1 replayed=1");
    assert_eq!(answered["span"]["items.codes"], "invalid-idempotency-key=1");
    assert!(!server.log_text().contains("a-secret-key"));
    for outcome in ["created", "replayed", "refused"] {
        let name = format!(r#"hapax_idempotency_outcomes_total{{route="POST /jobs",outcome="{outcome}"}}"#);
        assert_eq!(server.metric(&name).await, 1.0, "{outcome}");
    }
}

#[tokio::test]
async fn items_with_the_same_unique_content_create_one_job() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let unique = json!({ "type": "render", "payload": { "size": 1 }, "unique": { "by": ["/payload/size"] } });
    let batch: String = (0..30).map(|n| item(format!("key-{n}"), unique.clone())).collect();
    let answers = server.submit_batch(&batch).await.items();
    let (made, met): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), met.len(), ledger.jobs().await, ledger.keys().await), (1, 29, 1, 30));
    for answer in met {
        assert_eq!((answer.header("deduplicated-by"), &answer.body), ("content", &made[0].body));
    }
    let alone = server.submit("alone", unique).await;
    assert_eq!((alone.header("deduplicated-by"), &alone.body), ("content", &made[0].body));
    let again = server.submit_batch(&batch).await.items();
    assert!(again.iter().all(|answer| answer.status == 200 && answer.header("idempotent-replayed") == "true"));
}
