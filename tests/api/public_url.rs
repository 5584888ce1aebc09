//! URLs in answers, if a gateway publishes the service under another host or below a path.

use serde_json::json;

use crate::harness::{Ledger, Server, job};

const PUBLIC: &str = "https://api.example.com/hapax";

async fn serve(ledger: &Ledger) -> Server {
    ledger.serve_with(&[("HAPAX__SERVER__PUBLIC_URL", "https://api.example.com/hapax/")]).await
}

#[tokio::test]
async fn every_url_in_an_answer_starts_with_the_public_url() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger).await;
    let made = server.submit("k", job(1)).await;
    assert_eq!(made.header("location"), format!("{PUBLIC}/jobs/{}", made.job_id()));
    let unique = json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    server.submit("a", &unique).await;
    let id = uuid::Uuid::now_v7().to_string();
    let batch = server.submit_batch(json!({ "idempotency_key": "k", "job": job(1) })).await.items().remove(0);
    let again = server.submit("k", job(1)).await;
    for answer in
        [server.submit("b", &unique).await, server.put(&id, job(2)).await, server.put(&id, job(2)).await, batch, again]
    {
        assert_eq!(answer.header("location"), format!("{PUBLIC}/jobs/{}", answer.job_id()), "{answer:?}");
    }
    let page = server.get("/jobs?limit=1").await;
    assert!(page.header("link").starts_with(&format!("<{PUBLIC}/jobs?limit=1&cursor=")), "{page:?}");
    let submission = json!({ "type": "t", "queue": "q", "payload": 1 });
    server.submit("q", &submission).await;
    let page = server.get("/queues?limit=1").await;
    assert!(page.header("link").starts_with(&format!("<{PUBLIC}/queues?limit=1&cursor=")), "{page:?}");
    let unknown = server.get("/jobs/x").await;
    assert_eq!(unknown.json()["type"], format!("{PUBLIC}/problems/job-not-found"), "{unknown:?}");
    let item = server.submit_batch("{}").await.items().remove(0);
    assert_eq!(item.json()["type"], format!("{PUBLIC}/problems/invalid-item"), "{item:?}");
    let documents = server.get("/").await.json()["documents"].clone();
    assert_eq!(documents, json!({ "docs": format!("{PUBLIC}/docs"), "openapi": format!("{PUBLIC}/openapi.yaml") }));
}

#[tokio::test]
async fn the_contract_names_the_public_url_as_its_server() {
    let ledger = Ledger::new().await;
    let served = serve(&ledger).await.get("/openapi.yaml").await;
    let contract: serde_json::Value = yaml_serde::from_slice(&served.body).unwrap();
    assert_eq!(contract["servers"][0]["url"], PUBLIC);
}

#[tokio::test]
async fn a_replay_has_the_public_url_of_the_answering_replica() {
    let ledger = Ledger::new().await;
    let (public, plain) = (serve(&ledger).await, ledger.serve().await);
    let path = |id: &str| format!("/jobs/{id}");
    let first = public.submit("k-1", job(1)).await;
    assert_eq!(plain.submit("k-1", job(1)).await.header("location"), path(&first.job_id()));
    let second = plain.submit("k-2", job(2)).await;
    let replayed = public.submit("k-2", job(2)).await;
    assert_eq!(replayed.header("location"), format!("{PUBLIC}{}", path(&second.job_id())));
    assert_eq!(replayed.body, second.body);
}
