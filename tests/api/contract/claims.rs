//! Claims, results, attempts and retries: valid and invalid requests.

use hapax::access::Scope;

use super::examples::Answers;
use super::operations::no_job;
use crate::harness::{Answer, Client, Ledger, Server, request_examples};

/// The job in the examples of results.
const JOB_OF_THE_EXAMPLES: &str = "01a20053-d957-7108-af22-b2e931e75377";

pub async fn all(ledger: &Ledger, server: &Server, answers: &mut Answers) {
    let caller = async |tenant| server.as_caller(&ledger.token_for(tenant, &Scope::ALL).await);
    claims(&caller("claimer").await, answers).await;
    attempts(&caller("failer").await, answers).await;
    retries(&caller("retrier").await, answers).await;
    invalid(server, answers).await;
}

async fn claims(worker: &Client, answers: &mut Answers) {
    let (id, claim) = (no_job(), example("claimJobs", "full"));
    let none = claim.replace("\"mail\",\"default\"", "\"empty\"").replace("\"wait_seconds\":20", "\"wait_seconds\":0");
    answers.got("claimJobs 200 nothing", put(worker, &id, &none).await);
    let job = worker.submit("a", example("submitJob", "shortest")).await.job_id();
    answers.got("claimJobs 201", put(worker, &id, &claim).await);
    answers.got("claimJobs 200 again", put(worker, &id, &claim).await);
    let other = r#"{"queues":["other"]}"#;
    answers.got("claimJobs 409 claim-exists-with-other-content", put(worker, &id, other).await);
    answers.got("showClaim 200", worker.get(&format!("/claims/{id}")).await);
    answers.got("listClaims 200", worker.get("/claims").await);
    answers.got("extendClaim 200", post(worker, &id, "heartbeat", "").await);
    answers.got("cancelJob 200 running", worker.cancel(&job).await);
    let [succeeded, failed] = ["succeeded", "failed"].map(|name| result(name, &job));
    answers.got("reportResults 200 recorded", post(worker, &id, "results", &succeeded).await);
    answers.got("reportResults 200 already-recorded", post(worker, &id, "results", &succeeded).await);
    answers.got("reportResults 200 recorded-otherwise", post(worker, &id, "results", &failed).await);
    let queued = worker.submit("b", example("submitJob", "shortest")).await.job_id();
    answers.got("reportResults 200 lease-lost", post(worker, &id, "results", &result("succeeded", &queued)).await);
    answers.got("claimJobs 410", put(worker, &id, &claim).await);
    answers.got("extendClaim 410", post(worker, &id, "heartbeat", "").await);
    answers.got("releaseClaim 204", worker.send(worker.request("DELETE", &format!("/claims/{id}"))).await);
}

async fn attempts(worker: &Client, answers: &mut Answers) {
    let (first, second, claim) = (no_job(), no_job(), example("claimJobs", "full"));
    let job = worker.submit("a", example("submitJob", "shortest")).await.job_id();
    put(worker, &first, &claim).await;
    let failed = result("failed", &job).replace("\"retry_in_seconds\":30", "\"retry_in_seconds\":0");
    post(worker, &first, "results", &failed).await;
    put(worker, &second, &claim).await;
    answers.got("listAttempts 200", worker.get(&format!("/jobs/{job}/attempts")).await);
}

async fn retries(client: &Client, answers: &mut Answers) {
    let (id, another) = (no_job(), no_job());
    for id in [&id, &another] {
        client.put(id, example("putJob", "shortest")).await;
    }
    answers.got("retryJob 409 job-not-finished", client.send(retry(client, &id, "r")).await);
    client.cancel(&id).await;
    answers.got("retryJob 200", client.send(retry(client, &id, "r")).await);
    answers.got("retryJob 422", client.send(retry(client, &another, "r")).await);
    let late = retry(client, &id, "late").header("repeatability-first-sent", "Sun, 06 Nov 1994 08:49:37 GMT");
    answers.got("retryJob 412", client.send(late).await);
    let unique = client.submit("unique", example("submitJob", "full")).await.job_id();
    client.cancel(&unique).await;
    client.submit("again", example("submitJob", "full")).await;
    answers.got("retryJob 409 content-taken", client.send(retry(client, &unique, "u")).await);
}

async fn invalid(server: &Server, answers: &mut Answers) {
    let claim = format!("/claims/{}", no_job());
    answers.got("showClaim 404 claim-not-found", server.get(&claim).await);
    answers.got("showClaim 404 route-not-found", server.get("/claims/%30").await);
    answers.got("showClaim 400 invalid-claim-id", server.get("/claims/42").await);
    answers.got("showClaim 400 unknown-parameter", server.get(&format!("{claim}?x")).await);
    answers.got("showClaim 405", server.send(server.request("POST", &claim)).await);
    let too_many = r#"{"queues":["default"],"max_jobs":101}"#;
    answers.got("claimJobs 400 invalid-claim", put(server, &no_job(), too_many).await);
    let report = async |rest: &str| {
        let results = format!(r#"{{"results":[{{"job_id":"{JOB_OF_THE_EXAMPLES}",{rest}}}]}}"#);
        post(server, &no_job(), "results", &results).await
    };
    answers.got("reportResults 400 invalid-results", report(r#""outcome":"failed","result":1"#).await);
    let large = format!(r#""outcome":"succeeded","result":"{}""#, "x".repeat(65536));
    answers.got("reportResults 413 result-too-large", report(&large).await);
}

/// `POST /jobs/{id}/retry` with a key.
pub fn retry(client: &Client, id: &str, key: &str) -> reqwest::RequestBuilder {
    client.request("POST", &format!("/jobs/{id}/retry")).header("idempotency-key", key)
}

async fn put(client: &Client, id: &str, body: &str) -> Answer {
    let request = client.request("PUT", &format!("/claims/{id}")).header("content-type", "application/json");
    client.send(request.body(body.to_owned())).await
}

async fn post(client: &Client, id: &str, what: &str, body: &str) -> Answer {
    let request = client.request("POST", &format!("/claims/{id}/{what}")).header("content-type", "application/json");
    client.send(request.body(body.to_owned())).await
}

fn example(operation: &str, name: &str) -> String {
    let example = request_examples(operation).into_iter().find(|example| example.name == name);
    example.unwrap().text()
}

/// The example of a result, for this job.
fn result(name: &str, job: &str) -> String {
    example("reportResults", name).replace(JOB_OF_THE_EXAMPLES, job)
}
