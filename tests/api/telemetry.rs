//! Logs and metrics.

use hapax::access::Token;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Answer, Ledger, Server, job};

/// The log line of a request.
async fn log_line_of(server: &Server, answer: &Answer) -> Value {
    let id = answer.header("x-request-id");
    let lines = server.log_until(id).await;
    let answered = |line: &&Value| line["message"] == "answered" && line["span"]["request_id"] == id;
    let found: Vec<&Value> = lines.iter().filter(answered).collect();
    assert_eq!(found.len(), 1);
    found[0].clone()
}

#[tokio::test]
async fn one_log_line_says_whether_a_request_was_a_replay() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("the-secret-key", job(1)).await;
    let made = log_line_of(&server, &first).await;
    assert_eq!(made["span"]["idempotency.outcome"], "created");
    assert_eq!((&made["span"]["tenant"], &made["span"]["route"]), (&"acme".into(), &"/jobs".into()));
    assert_eq!(made["status"], 201);
    assert_eq!(made["span"]["job_id"], first.json()["id"]);
    assert!(made["span"].get("first.request_id").is_none());

    let replay = log_line_of(&server, &server.submit("the-secret-key", job(1)).await).await;
    assert_eq!(replay["span"]["idempotency.outcome"], "replayed");
    assert_eq!(replay["span"]["first.request_id"], first.header("x-request-id"));
    assert_eq!(replay["span"]["first.at"], first.json()["created_at"]);
    assert_eq!(replay["span"]["job_id"], first.json()["id"]);
    assert_eq!(replay["span"]["idempotency.key_digest"], made["span"]["idempotency.key_digest"]);

    let mismatch = log_line_of(&server, &server.submit("the-secret-key", job(2)).await).await;
    assert_eq!(mismatch["span"]["idempotency.outcome"], "mismatch");
    assert_eq!((&mismatch["status"], &mismatch["code"]), (&422.into(), &"idempotency-key-reused".into()));

    let refused = log_line_of(&server, &server.submit("the-secret-key", "{").await).await;
    assert_eq!(refused["span"]["idempotency.outcome"], "refused");

    let held = ledger.hold_key("another-secret-key").await;
    let short_lock_wait = ledger.serve_with(&[("HAPAX__INTAKE__LOCK_WAIT", "50ms")]).await;
    let in_flight = log_line_of(&short_lock_wait, &short_lock_wait.submit("another-secret-key", job(1)).await).await;
    assert_eq!(in_flight["span"]["idempotency.outcome"], "in_flight");
    held.roll_back().await;

    for log in [server.log_text(), short_lock_wait.log_text()] {
        assert!(!log.contains("secret-key") && !log.contains("hpx_") && !log.contains("payload"), "{log}");
    }
}

#[tokio::test]
async fn a_valid_request_id_is_kept_and_an_invalid_one_replaced() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let with = async |id: &str| server.send(server.request("GET", "/healthz").header("x-request-id", id)).await;
    assert_eq!(with("lb-7.a:B_9").await.header("x-request-id"), "lb-7.a:B_9");
    let long = "x".repeat(129);
    for insane in ["a b", "a\"b", "<script>", long.as_str(), ""] {
        let made = with(insane).await;
        assert!(uuid::Uuid::parse_str(made.header("x-request-id")).is_ok(), "{insane}");
    }
    let answered = server.send(server.post_jobs("k", job(1)).header("x-request-id", "first-one")).await;
    assert_eq!(answered.header("x-request-id"), "first-one");
    let replay = log_line_of(&server, &server.submit("k", job(1)).await).await;
    assert_eq!(replay["span"]["first.request_id"], "first-one");
}

#[tokio::test]
async fn the_log_is_complete_when_the_process_has_ended() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("k", job(1)).await;
    server.signal(Signal::TERM);
    server.until_logged(r#""message":"stopped""#).await;
    assert_eq!(server.log_text().matches(r#""message":"answered""#).count(), 1);
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for (method, path) in [("GET", "/"), ("GET", "/nothing"), ("POST", "/jobs"), ("DELETE", "/"), ("PATCH", "/jobs/x")]
    {
        let answer = server.send(server.request(method, path)).await;
        assert!(!answer.header("x-request-id").is_empty());
    }
}

#[tokio::test]
async fn metric_labels_contain_no_client_input() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("k", job(1)).await;
    server.submit("k", job(1)).await;
    server.submit("k", job(2)).await;
    server.submit("", job(1)).await;
    server.get("/a-path-that-a-client-made-up").await;
    server.send(server.request("BREW", "/jobs")).await;
    for (metric, value) in [
        (r#"hapax_http_requests_total{method="POST",route="/jobs",status="201"}"#, 1.0),
        (r#"hapax_http_requests_total{method="POST",route="/jobs",status="200"}"#, 1.0),
        (r#"hapax_http_requests_total{method="GET",route="(none)",status="404"}"#, 1.0),
        (r#"hapax_http_requests_total{method="other",route="/jobs",status="405"}"#, 1.0),
        (r#"hapax_idempotency_outcomes_total{route="POST /jobs",outcome="created"}"#, 1.0),
        (r#"hapax_idempotency_outcomes_total{route="POST /jobs",outcome="replayed"}"#, 1.0),
        (r#"hapax_idempotency_outcomes_total{route="POST /jobs",outcome="mismatch"}"#, 1.0),
        (r#"hapax_idempotency_outcomes_total{route="POST /jobs",outcome="refused"}"#, 1.0),
        (r#"hapax_http_request_duration_seconds_count{method="POST",route="/jobs"}"#, 4.0),
        (r#"hapax_database_connections_limit{pool="intake"}"#, 8.0),
    ] {
        assert_eq!(server.metric(metric).await, value, "{metric}");
    }
    let text = server.metrics_text().await;
    assert!(!text.contains("made-up") && !text.contains("BREW") && text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn failed_token_look_ups_are_not_logged_per_request() {
    let ledger = Ledger::new().await;
    let url = ledger.url_of_ordinary_user().await;
    let server = Server::start(&url, &ledger.token, &[]).await;
    ledger.execute(&format!("revoke select on access_tokens from {}", ledger.name)).await;
    let mut last = None;
    for _ in 0..50 {
        let refused = server.as_caller(Token::mint().expose()).get("/jobs").await;
        refused.is_problem(503, "database-unavailable");
        last = Some(refused);
    }
    assert_eq!(server.warnings_of_requests(&last.unwrap()).await, [0; 0]);
    server.until_logged("permission denied").await;
    let lines = server.log_text().matches("access tokens could not be looked up").count();
    assert!((1..50).contains(&lines), "{lines}");
}

#[tokio::test]
async fn failed_readiness_is_not_logged_per_probe() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "200ms")]).await;
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    let unready = server.until_status("/readyz", 503).await;
    assert_eq!(server.warnings_of_requests(&unready).await, [0; 0]);
    server.until_logged("the service is not ready").await;
    ledger.rename_back_from(&away).await;
}
