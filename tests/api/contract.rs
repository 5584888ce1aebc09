//! What the service says of itself.

use crate::harness::{Ledger, Server};

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
