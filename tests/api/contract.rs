//! The service's description of itself, and that the contract describes exactly what the service does.

mod circumstances;
mod claims;
mod examples;
mod lists;
mod operations;
mod requests;

use std::collections::BTreeSet;

use crate::harness::{Answer, Client, Ledger, Server, job, key_examples, paths, until};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "48h")]).await;
    (ledger, server)
}

#[tokio::test]
async fn the_root_describes_the_service_and_its_guarantees() {
    let (_ledger, server) = serve().await;
    let about = server.get("/").await;
    assert_eq!(about.header("content-type"), "application/json");
    let about = about.json();
    assert_eq!((&about["name"], &about["version"]), (&"hapax".into(), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(about["idempotency"]["header"], "Idempotency-Key");
    assert_eq!(about["idempotency"]["required_on"], serde_json::json!(["POST /jobs", "POST /jobs/{id}/retry"]));
    assert_eq!(about["idempotency"]["time_to_live_seconds"], 48 * 60 * 60);
    let documents = about["documents"].as_object().unwrap();
    for path in documents.values() {
        assert_eq!(server.get(path.as_str().unwrap()).await.status, 200);
    }
}

#[tokio::test]
async fn the_served_contract_is_the_one_in_the_repository() {
    let (_ledger, server) = serve().await;
    let served = server.get("/openapi.yaml").await;
    assert_eq!(served.header("content-type"), "application/yaml");
    assert_eq!(served.body, &include_bytes!("../../api-design/jobs-api.yaml")[..]);
}

/// The Cache-Control of documents that are the same for every client.
fn kept(path: &str) -> &'static str {
    match path {
        "/" | "/docs" => "no-cache",
        "/openapi.yaml" | "/problems/job-not-found" => "max-age=300",
        _ if path.starts_with("/docs/") => "max-age=3600",
        _ => "no-store",
    }
}

#[tokio::test]
async fn every_answer_has_cache_control_and_nosniff() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let (id, nobody) = (server.submit("k", job(1)).await.job_id(), server.as_caller(""));
    let documented = paths().into_iter().flat_map(|path| [path.concrete(&id), path.concrete("other")]);
    let others = ["/docs/page.css", "/docs/page.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"];
    let others = others.into_iter().chain(["/problems/job-not-found"]);
    let others = others.into_iter().chain(["/nothing", "/jobs/%30", "/?x", "/docs?x"]).map(str::to_owned);
    let mut statuses = BTreeSet::new();
    for path in documented.chain(others) {
        // DELETE comes last, because the job does not exist afterwards.
        for method in ["HEAD", "GET", "OPTIONS", "TRACE", "BREW", "PUT", "PATCH", "POST", "DELETE", "GET"] {
            for client in [&nobody, &*server] {
                let request = client.request(method, &path);
                let request = if method == "GET" { request.header("if-none-match", "\"1\"") } else { request };
                let answer = Answer::of(request.send().await.unwrap()).await;
                let expected = if answer.status < 400 { kept(&path) } else { "no-store" };
                assert_eq!(answer.header("cache-control"), expected, "{method} {path}: {answer:?}");
                assert_eq!(answer.header("x-content-type-options"), "nosniff", "{method} {path}");
                statuses.insert(answer.status);
            }
        }
    }
    let expected = [200, 204, 304, 400, 401, 404, 405, 410];
    assert!(statuses.is_superset(&expected.into()), "{statuses:?}");
}

#[tokio::test]
async fn a_path_accepts_the_documented_methods_and_lists_them_in_405() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for path in paths() {
        let concrete = path.concrete(&uuid::Uuid::now_v7().to_string());
        let documented: BTreeSet<&str> = path.methods.iter().map(String::as_str).collect();
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            // Not checked against the contract, because the answer to HEAD has no body.
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

/// Sends HEAD and then GET on one connection. A body after the first answer would be read as the second answer.
async fn head_and_get(client: &Client, path: &str) -> [Answer; 2] {
    /// Headers that differ in each answer.
    const VARYING_HEADERS: [&str; 4] = ["date", "x-request-id", "ratelimit", "retry-after"];
    let mut connection = client.raw().await;
    connection.write_head(&format!("HEAD {path}"), &[]).await;
    let by_head = connection.answer_to_head().await;
    connection.write_head(&format!("GET {path}"), &[]).await;
    let by_get = connection.answer().await;
    [by_head, by_get].map(|mut answer| {
        for name in VARYING_HEADERS {
            answer.headers.remove(name);
        }
        answer
    })
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let (job, nobody) = (server.submit("k", job(1)).await.job_id(), server.as_caller(""));
    let read: Vec<_> = paths().into_iter().filter(|path| path.methods.contains("GET")).collect();
    let cases = read.iter().flat_map(|path| {
        let (found, other) = (path.concrete(&job), path.concrete("other"));
        let with_query = format!("{found}?x");
        [(&*server, found.clone()), (&nobody, found), (&*server, other), (&*server, with_query)]
    });
    let aliases = ["/nothing", "/jobs/%30"].map(|path| (&*server, path.to_owned()));
    let mut statuses = BTreeSet::new();
    for (client, path) in cases.chain(aliases) {
        if path == "/readyz" {
            client.until_status(&path, 200).await;
        }
        let [mut by_head, mut by_get] = until(format!("{path} has the same status twice"), async || {
            let answers = head_and_get(client, &path).await;
            (answers[0].status == answers[1].status).then_some(answers)
        })
        .await;
        if path.starts_with("/queues") {
            // The body contains an age, which may grow by a digit.
            for answer in [&mut by_head, &mut by_get] {
                answer.headers.remove("content-length");
            }
        }
        assert_eq!((by_head.status, by_head.headers), (by_get.status, by_get.headers), "{path}");
        assert!(!by_get.body.is_empty(), "{path}");
        statuses.insert(by_get.status);
    }
    assert_eq!(statuses, [200, 400, 401, 404].into());
}

#[tokio::test]
async fn the_documented_keys_are_accepted_and_the_first_three_are_equal() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let mut statuses = Vec::new();
    for key in key_examples() {
        statuses.push(server.submit(&key, job(1)).await.status);
    }
    assert_eq!(statuses, [201, 200, 200, 201]);
}
