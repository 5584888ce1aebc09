//! What the service says of itself, and that its document says no more and no less than it does.

mod circumstances;
mod examples;
mod operations;
mod requests;

use std::collections::BTreeSet;

use crate::harness::{Answer, Ledger, Server, job, key_examples, paths};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "48h")]).await;
    (ledger, server)
}

#[tokio::test]
async fn the_root_says_what_this_is_and_what_may_be_relied_on() {
    let (_ledger, server) = serve().await;
    let about = server.get("/").await;
    assert_eq!(about.header("content-type"), "application/json");
    let about = about.json();
    assert_eq!((&about["name"], &about["version"]), (&"hapax".into(), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(about["idempotency"]["header"], "Idempotency-Key");
    assert_eq!(about["idempotency"]["required_on"], serde_json::json!(["POST /jobs"]));
    assert_eq!(about["idempotency"]["time_to_live_seconds"], 48 * 60 * 60);
    let documents = about["documents"].as_object().unwrap();
    for path in documents.values() {
        assert_eq!(server.get(path.as_str().unwrap()).await.status, 200);
    }
}

#[tokio::test]
async fn the_contract_that_is_served_is_the_one_in_the_repository() {
    let (_ledger, server) = serve().await;
    let served = server.get("/openapi.yaml").await;
    assert_eq!(served.header("content-type"), "application/yaml");
    assert_eq!(served.body, &include_bytes!("../../api-design/jobs-api.yaml")[..]);
}

#[tokio::test]
async fn a_path_takes_the_methods_that_are_documented_and_names_them_to_every_other() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for path in paths() {
        let concrete = path.template.replace("{id}", &uuid::Uuid::now_v7().to_string());
        let documented: BTreeSet<&str> = path.methods.iter().map(String::as_str).collect();
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            // Not held against the contract: the answer to HEAD has no body that could be.
            let answer = Answer::of(server.request(method, &concrete).send().await.unwrap()).await;
            if documented.contains(method) {
                assert_ne!(answer.status, 405, "{method} {concrete}");
            } else {
                assert_eq!(answer.status, 405, "{method} {concrete}");
                let allowed: BTreeSet<&str> = answer.header("allow").split(", ").collect();
                assert_eq!(allowed, documented, "{method} {concrete}");
            }
        }
    }
}

#[tokio::test]
async fn the_keys_that_are_shown_are_taken_and_the_first_three_are_one() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let mut statuses = Vec::new();
    for key in key_examples() {
        statuses.push(server.submit(&key, job(1)).await.status);
    }
    assert_eq!(statuses, [201, 200, 200, 201]);
}
