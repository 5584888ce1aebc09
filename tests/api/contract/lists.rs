//! Lists and keys: valid and invalid requests.

use hapax::access::Scope;

use super::examples::Answers;
use super::operations::LISTS;
use crate::harness::{Ledger, Server, request_examples};

pub async fn all(ledger: &Ledger, server: &Server, answers: &mut Answers) {
    let lister = server.as_caller(&ledger.token_for("lister", &Scope::ALL).await);
    answers.got("listJobs 200 empty", lister.get("/jobs").await);
    let [shortest, full] = ["shortest", "full"].map(|name| {
        let mut requests = request_examples("submitJob").into_iter();
        requests.find(|request| request.name == name).unwrap().text()
    });
    lister.submit("a", shortest).await;
    lister.cancel(&lister.submit("b", full).await.job_id()).await;
    answers.got("listJobs 200 page", lister.get("/jobs").await);
    queues(ledger, server, answers).await;
    keys(server, answers).await;
    for (operation, path) in LISTS {
        for (example, query) in
            [("invalid-parameter", "limit=201"), ("given-twice", "limit=1&limit=1"), ("unknown-parameter", "x")]
        {
            answers.got(format!("{operation} 400 {example}"), server.get(&format!("{path}?{query}")).await);
        }
        answers.got(format!("{operation} 405"), server.send(server.request("PUT", path)).await);
    }
}

async fn queues(ledger: &Ledger, server: &Server, answers: &mut Answers) {
    let lister = server.as_caller(&ledger.token_for("queuer", &Scope::ALL).await);
    let shortest = request_examples("submitJob")[0].text();
    lister.submit("a", &shortest).await;
    lister.submit("b", &shortest).await;
    let many = "insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at) \
                select id, gen_random_uuid(), 'reports', 2, now(), 25, now() \
                from tenants cross join generate_series(1, 10001) where name = 'queuer'";
    ledger.execute(many).await;
    answers.got("listQueues 200", lister.get("/queues").await);
}

async fn keys(server: &Server, answers: &mut Answers) {
    server.submit("to-be-shown", request_examples("submitJob")[0].text()).await;
    for (example, rest) in [
        ("200", "to-be-shown"),
        ("400 invalid-idempotency-key", "a%20b"),
        ("400 invalid-parameter", "to-be-shown?route=GET%20/jobs"),
        ("400 unknown-parameter", "to-be-shown?x"),
        ("404 key-not-found", "never-sent"),
        ("404 route-not-found", "%30"),
    ] {
        answers.got(format!("showKey {example}"), server.get(&format!("/idempotency-keys/{rest}")).await);
    }
    answers.got("showKey 405", server.send(server.request("PUT", "/idempotency-keys/k")).await);
}
