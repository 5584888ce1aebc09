//! Answers that depend on the request alone: one server, with its defaults, gives them all.

use hapax::access::{Scope, Token};

use super::examples::Answers;
use crate::harness::{Ledger, Server, request_examples};

/// The operations that read, with a path of each.
const READS: [(&str, &str); 5] = [
    ("about", "/"),
    ("health", "/healthz"),
    ("readiness", "/readyz"),
    ("contract", "/openapi.yaml"),
    ("showJob", "/jobs/01a20053-d957-7108-af22-b2e931e75377"),
];
const JSON: &str = "content-type: application/json";

pub async fn all() -> Answers {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let mut answers = Answers::default();
    service(&server, &mut answers).await;
    jobs(&server, &mut answers).await;
    malformed(&server, &mut answers).await;
    bodies(&server, &mut answers).await;
    callers(&ledger, &server, &mut answers).await;
    answers
}

async fn service(server: &Server, answers: &mut Answers) {
    answers.got("about 200", server.get("/").await);
    answers.got("health 200", server.get("/healthz").await);
    answers.got("readiness 200", server.get("/readyz").await);
    answers.got("contract 200 excerpt", server.get("/openapi.yaml").await);
    for (operation, path) in READS {
        answers.got(format!("{operation} 400"), server.get(&format!("{path}?x")).await);
        answers.got(format!("{operation} 405"), server.send(server.request("DELETE", path)).await);
    }
    answers.got("submitJob 405", server.get("/jobs").await);
}

async fn jobs(server: &Server, answers: &mut Answers) {
    let requests = request_examples("submitJob");
    for request in &requests {
        let made = server.submit(&request.name, request.text()).await;
        answers.got(format!("showJob 200 {}", request.name), server.get(made.header("location")).await);
        answers.got(format!("submitJob 201 {}", request.name), made);
    }
    let shortest = requests.iter().find(|request| request.name == "shortest").unwrap();
    answers.got("submitJob 200", server.submit(&shortest.name, shortest.text()).await);
    let another = r#"{"type":"mail.send","payload":{"to":"grace@example.com","x":1}}"#;
    answers.got("submitJob 422", server.submit(&shortest.name, another).await);
    answers.got("showJob 404 job-not-found", server.get("/jobs/01a20053-d957-7108-af22-b2e931e75377").await);
    answers.got("showJob 404 route-not-found", server.get("/jobs/%30").await);
}

async fn malformed(server: &Server, answers: &mut Answers) {
    answers.got("submitJob 400 unknown-parameter", server.send(server.request("POST", "/jobs?dry=1")).await);
    answers.got("submitJob 400 idempotency-key-required", server.send(server.request("POST", "/jobs")).await);
    let twice = server.post_jobs("a", "").header("idempotency-key", "b");
    answers.got("submitJob 400 invalid-idempotency-key", server.send(twice).await);
    for (example, body) in [
        ("invalid-json", r#"{"type":"t","payload":"\u0000"}"#),
        ("invalid-job", r#"{"type":"t","payload":1,"priority":5}"#),
        ("unknown-member", r#"{"type":"t","payload":1,"prio":1}"#),
    ] {
        answers.got(format!("submitJob 400 {example}"), server.submit("k", body).await);
    }
}

async fn bodies(server: &Server, answers: &mut Answers) {
    for (example, headers, body) in [
        ("400 broken-body", [JSON, "transfer-encoding: chunked"], "no length\r\n"),
        ("413", [JSON, "content-length: 1048577"], ""),
        ("415 unsupported-media-type", ["content-type: text/plain", "content-length: 2"], "{}"),
        ("415 unsupported-content-encoding", [JSON, "content-encoding: gzip\r\ncontent-length: 2"], "{}"),
    ] {
        let headers = [b"idempotency-key: k", headers[0].as_bytes(), headers[1].as_bytes()];
        let answer = server.raw().await.post_jobs(&headers, body.as_bytes()).await;
        answers.got(format!("submitJob {example}"), answer);
    }
}

async fn callers(ledger: &Ledger, server: &Server, answers: &mut Answers) {
    let unknown = Token::mint();
    let reader = ledger.token_for("acme", &[Scope::Read]).await;
    let submitter = ledger.token_for("acme", &[Scope::Submit]).await;
    for (example, token) in [("401 missing", ""), ("401 unknown", unknown.expose()), ("403", &reader)] {
        answers.got(format!("submitJob {example}"), server.as_caller(token).submit("k", "{}").await);
    }
    for (example, token) in [("401 missing", ""), ("401 unknown", unknown.expose()), ("403", &submitter)] {
        answers.got(format!("showJob {example}"), server.as_caller(token).get("/jobs/x").await);
    }
}
