//! Lists, and what they are answered with when something is wrong with the request.

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
    for (operation, path) in LISTS {
        for (example, query) in
            [("invalid-parameter", "limit=201"), ("given-twice", "limit=1&limit=1"), ("unknown-parameter", "x")]
        {
            answers.got(format!("{operation} 400 {example}"), server.get(&format!("{path}?{query}")).await);
        }
        answers.got(format!("{operation} 405"), server.send(server.request("PUT", path)).await);
    }
}
