//! Answers that depend only on the request, from one server with default settings.

use hapax::access::{Scope, Token};

use super::examples::Answers;
use super::operations::{READS, READS_OF_A_TENANT, WRITES, no_job, of_claims};
use super::{claims, lists};
use crate::harness::{Ledger, Server, request_examples};

const FIRST_SENT: &str = "repeatability-first-sent";
const LONG_AGO: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

pub async fn all() -> Answers {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let mut answers = Answers::default();
    service(&server, &mut answers).await;
    submissions(&server, &mut answers).await;
    named_jobs(&server, &mut answers).await;
    changes(&server, &mut answers).await;
    ends(&server, &mut answers).await;
    batches(&server, &mut answers).await;
    paths(&server, &mut answers).await;
    lists::all(&ledger, &server, &mut answers).await;
    claims::all(&ledger, &server, &mut answers).await;
    malformed(&server, &mut answers).await;
    bodies(&server, &mut answers).await;
    callers(&ledger, &server, &mut answers).await;
    answers
}

async fn service(server: &Server, answers: &mut Answers) {
    answers.got("about 200", server.get("/").await);
    answers.got("health 200", server.get("/healthz").await);
    answers.got("readiness 200", server.until_status("/readyz", 200).await);
    answers.got("contract 200 excerpt", server.get("/openapi.yaml").await);
    answers.got("page 200 excerpt", server.get("/docs").await);
    answers.got("problem 200", server.get("/problems/job-not-found").await);
    answers.got("problem 404", server.get("/problems/other").await);
}

async fn submissions(server: &Server, answers: &mut Answers) {
    let requests = request_examples("submitJob");
    for request in &requests {
        let made = server.submit(&request.name, request.text()).await;
        answers.got(format!("showJob 200 {}", request.name), server.get(made.header("location")).await);
        answers.got(format!("submitJob 201 {}", request.name), made);
    }
    let example = |name| requests.iter().find(|request| request.name == name).unwrap();
    let shortest = example("shortest");
    answers.got("submitJob 200 replayed", server.submit(&shortest.name, shortest.text()).await);
    answers.got("submitJob 200 deduplicated", server.submit("another", example("full").text()).await);
    let another = r#"{"type":"mail.send","payload":{"to":"grace@example.com","x":1}}"#;
    let late = server.post_jobs("late", example("shortest").text()).header(FIRST_SENT, LONG_AGO);
    answers.got("submitJob 412", server.send(late).await);
    answers.got("submitJob 422", server.submit(&shortest.name, another).await);
}

async fn named_jobs(server: &Server, answers: &mut Answers) {
    let (id, request) = (no_job(), &request_examples("putJob")[0]);
    answers.got("putJob 201", server.put(&id, request.text()).await);
    answers.got("putJob 200", server.put(&id, request.text()).await);
    let other = r#"{"type":"mail.send","queue":"q","payload":{"to":"grace@example.com"}}"#;
    answers.got("putJob 409 job-exists-with-other-content", server.put(&id, other).await);
    server.delete(&id).await;
    answers.got("putJob 410", server.put(&id, request.text()).await);
    answers.got("putJob 400 invalid-job-id", server.put("42", request.text()).await);
    let unique = r#"{"type":"t","payload":1,"unique":{"by":["/payload"]}}"#;
    answers.got("putJob 400 invalid-job", server.put(no_job(), unique).await);
}

async fn changes(server: &Server, answers: &mut Answers) {
    let (id, change) = (no_job(), request_examples("changeJob")[0].text());
    server.put(&id, request_examples("putJob")[0].text()).await;
    let keyed = |body: &str| server.patch_job(&id, "*", body).header("idempotency-key", "k");
    answers.got("changeJob 200", server.send(keyed(&change)).await);
    answers.got("changeJob 422", server.send(keyed("{}")).await);
    answers.got("changeJob 412 precondition-failed", server.patch(&id, "\"1\"", &change).await);
    let late = server.patch_job(&id, "*", &change).header("idempotency-key", "late").header(FIRST_SENT, LONG_AGO);
    answers.got("changeJob 412 first-sent-too-old", server.send(late).await);
    answers.got("changeJob 400 invalid-if-match", server.patch(&id, "2", &change).await);
    let twice = keyed(&change).header("idempotency-key", "b");
    answers.got("changeJob 400 invalid-idempotency-key", server.send(twice).await);
    answers.got("changeJob 400 invalid-job", server.patch(&id, "*", r#"{"payload":1}"#).await);
    let unconditional = server.request("PATCH", &format!("/jobs/{id}"));
    answers.got("changeJob 428", server.send(unconditional).await);
    server.cancel(&id).await;
    answers.got("changeJob 409 job-not-waiting", server.patch(&id, "*", &change).await);
    server.delete(&id).await;
    answers.got("changeJob 410", server.patch(&id, "*", &change).await);
}

async fn ends(server: &Server, answers: &mut Answers) {
    let id = server.submit("to-be-deleted", request_examples("submitJob")[0].text()).await.job_id();
    let known = server.request("GET", &format!("/jobs/{id}")).header("if-none-match", "\"1\"");
    answers.got("showJob 304", server.send(known).await);
    answers.got("cancelJob 200 cancelled", server.cancel(&id).await);
    answers.got("deleteJob 204", server.delete(&id).await);
    answers.got("cancelJob 410", server.cancel(&id).await);
    answers.got("showJob 410", server.get(&format!("/jobs/{id}")).await);
    answers.got("listAttempts 410", server.get(&format!("/jobs/{id}/attempts")).await);
    answers.got("retryJob 410", server.send(claims::retry(server, &id, "of-a-deleted-job")).await);
}

async fn batches(server: &Server, answers: &mut Answers) {
    let one = request_examples("submitBatch")[0].text();
    answers.got("submitBatch 200 made", server.submit_batch(one).await);
    answers.got("submitBatch 200 refused", server.submit_batch("[]").await);
    answers.got("submitBatch 400 invalid-batch", server.submit_batch("\n\n").await);
    answers.got("submitBatch 405", server.send(server.request("PUT", "/jobs/batch")).await);
}

async fn paths(server: &Server, answers: &mut Answers) {
    for (operation, path) in READS {
        answers.got(format!("{operation} 400"), server.get(&format!("{path}?x")).await);
        answers.got(format!("{operation} 405"), server.send(server.request("POST", path)).await);
    }
    for write in WRITES.iter().filter(|write| write.method == "POST" && write.template.contains("{id}")) {
        answers.got(format!("{} 405", write.name), server.get(&write.path(&no_job())).await);
    }
    let one_job = format!("/jobs/{}", no_job());
    answers.got("showJob 405", server.send(server.request("POST", &one_job)).await);
    answers.got("showJob 400 unknown-parameter", server.get(&format!("{one_job}?x")).await);
    answers.got("showJob 400 invalid-parameter", server.get(&format!("{one_job}?wait_seconds=31")).await);
    for (operation, rest) in [("showJob", ""), ("listAttempts", "/attempts")] {
        answers.got(format!("{operation} 404 job-not-found"), server.get(&format!("{one_job}{rest}")).await);
        answers.got(format!("{operation} 404 route-not-found"), server.get(&format!("/jobs/%30{rest}")).await);
    }
    let without_conditions = ["putJob", "deleteJob", "cancelJob", "retryJob"];
    for write in WRITES.into_iter().filter(|write| without_conditions.contains(&write.name)).chain(of_claims()) {
        let conditional = write.request(server, &write.path(&no_job())).header("if-match", "\"1\"");
        answers.got(format!("{} 400 unsupported-condition", write.name), server.send(conditional).await);
    }
    answers.got("putJob 404", server.put("%30", "").await);
    for write in of_claims() {
        answers.got(format!("{} 404", write.name), write.send(server, "%30").await);
        answers.got(format!("{} 400 invalid-claim-id", write.name), write.send(server, "42").await);
    }
    let of_jobs = ["changeJob", "deleteJob", "cancelJob", "retryJob"];
    for write in WRITES.iter().filter(|write| of_jobs.contains(&write.name)) {
        answers.got(format!("{} 404 route-not-found", write.name), write.send(server, "%30").await);
        // Deleting a missing job succeeds, but this id is invalid.
        answers.got(format!("{} 404 job-not-found", write.name), write.send(server, "42").await);
    }
}

async fn malformed(server: &Server, answers: &mut Answers) {
    let dated = ["submitJob", "submitBatch", "changeJob", "retryJob"];
    for write in WRITES.iter().filter(|write| dated.contains(&write.name)) {
        let dated = write.request(server, &write.path(&no_job())).header(FIRST_SENT, "yesterday");
        answers.got(format!("{} 400 invalid-first-sent", write.name), server.send(dated).await);
    }
    for write in WRITES {
        let (name, path) = (write.name, write.path(&no_job()));
        if !write.takes_body() {
            let asked = server.send(write.request(server, &format!("{path}?dry=1"))).await;
            answers.got(format!("{name} 400 unknown-parameter"), asked);
            continue;
        }
        let asked = server.send(write.request(server, &format!("{path}?dry=1"))).await;
        answers.got(format!("{name} 400 unknown-parameter"), asked);
        if write.by_item {
            continue;
        }
        let unfit = write.request(server, &path).body(r#"{"type":"t","payload":"\u0000"}"#);
        answers.got(format!("{name} 400 invalid-json"), server.send(unfit).await);
    }
    answers.got("submitJob 400 idempotency-key-required", server.send(server.request("POST", "/jobs")).await);
    let twice = server.post_jobs("a", "").header("idempotency-key", "b");
    answers.got("submitJob 400 invalid-idempotency-key", server.send(twice).await);
    let without_key = server.request("POST", &format!("/jobs/{}/retry", no_job()));
    answers.got("retryJob 400 idempotency-key-required", server.send(without_key).await);
    let twice = claims::retry(server, &no_job(), "a").header("idempotency-key", "b");
    answers.got("retryJob 400 invalid-idempotency-key", server.send(twice).await);
    for (example, body) in [
        ("invalid-job", r#"{"type":"t","payload":1,"priority":5}"#),
        ("unknown-member", r#"{"type":"t","payload":1,"prio":1}"#),
    ] {
        answers.got(format!("submitJob 400 {example}"), server.submit("k", body).await);
    }
}

async fn bodies(server: &Server, answers: &mut Answers) {
    for write in WRITES.iter().filter(|write| write.takes_body()) {
        for (example, lines, body) in [
            ("400 broken-body", ["transfer-encoding: chunked", "x: y"], "no length\r\n"),
            ("413", ["content-length: 16777217", "x: y"], ""),
            ("415 unsupported-media-type", ["content-type: text/plain", "content-length: 2"], "{}"),
            ("415 unsupported-content-encoding", ["content-encoding: gzip", "content-length: 2"], "{}"),
        ] {
            let answer = write.send_raw(server, &no_job(), &lines, body).await;
            let one_of_several = if (write.name, example) == ("reportResults", "413") { " body-too-large" } else { "" };
            answers.got(format!("{} {example}{one_of_several}", write.name), answer);
        }
    }
}

async fn callers(ledger: &Ledger, server: &Server, answers: &mut Answers) {
    let unknown = Token::mint();
    let reader = ledger.token_for("acme", &[Scope::Read]).await;
    let submitter = ledger.token_for("acme", &[Scope::Submit]).await;
    for write in WRITES {
        for (example, token) in [("401 missing", ""), ("401 unknown", unknown.expose()), ("403", &reader)] {
            let answer = write.send(&server.as_caller(token), &no_job()).await;
            answers.got(format!("{} {example}", write.name), answer);
        }
    }
    for (example, token) in [("401 missing", ""), ("401 unknown", unknown.expose()), ("403", &submitter)] {
        for (operation, path) in READS_OF_A_TENANT {
            answers.got(format!("{operation} {example}"), server.as_caller(token).get(path).await);
        }
    }
}
