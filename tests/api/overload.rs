//! More than one replica can do, and more connections than it can hold.

use std::process::Command;

use crate::harness::{Client, Ledger, Server, hapax, hapax_through, job};

/// A server that the system allows no more open files than these.
fn serve_with_descriptors(limit: u32, ledger: &Ledger) -> Command {
    let mut command = hapax_through("sh");
    let program = hapax().get_program().to_owned();
    command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" serve --bind 127.0.0.1:0")]).arg(program);
    command.env("DATABASE_URL", &ledger.url).env("HAPAX__METRICS__BIND", "127.0.0.1:0");
    command.env("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "true");
    command
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_the_probes_answer_all_the_same() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__CONNECTIONS", "4")]).await;
    let operations: Client = server.operations();
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(server.raw().await);
    }
    server.until_metric("hapax_http_connections", 4.0).await;
    let waiting = server.submit_meanwhile("k", job(1));
    assert_eq!(operations.get("/healthz").await.status, 200);
    assert_eq!(operations.get("/readyz").await.status, 200);
    assert_eq!(server.metric("hapax_http_connections_limit").await, 4.0);
    assert!(!waiting.is_finished());
    drop(idle);
    assert_eq!(waiting.await.unwrap().status, 201);
}

#[tokio::test]
async fn with_few_file_descriptors_the_server_holds_fewer_connections_and_lives() {
    let ledger = Ledger::new().await;
    let server = Server::spawn(serve_with_descriptors(200, &ledger), &ledger.token).await;
    let limit = server.metric("hapax_http_connections_limit").await;
    assert!((1.0..200.0).contains(&limit), "{limit}");
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(server.raw().await);
    }
    server.until_metric("hapax_http_connections", limit).await;
    assert_eq!(server.operations().get("/healthz").await.status, 200);
    drop(idle);
    assert_eq!(server.submit("k", job(1)).await.status, 201);
}

#[tokio::test]
async fn a_descriptor_limit_that_leaves_no_room_is_refused_at_the_start() {
    let ledger = Ledger::new().await;
    let mut command = serve_with_descriptors(100, &ledger);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("server.connections"), "{said}");
}

#[tokio::test]
async fn a_tenant_whose_requests_take_their_time_leaves_room_for_others() {
    let ledger = Ledger::new().await;
    let share = [("HAPAX__SERVER__REQUESTS_IN_FLIGHT", "4"), ("HAPAX__SERVER__REQUESTS_IN_FLIGHT_PER_TENANT", "2")];
    let server = ledger.serve_with(&share).await;
    let mut slow = Vec::new();
    for n in 0..2 {
        let mut connection = server.raw().await;
        let key = format!("idempotency-key: slow-{n}");
        let head: [&[u8]; 3] = [key.as_bytes(), b"content-type: application/json", b"content-length: 1000"];
        connection.write_head("POST /jobs", &head).await;
        slow.push(connection);
    }
    server.until_metric("hapax_http_requests_in_flight", 2.0).await;
    server.submit("one-more", job(1)).await.is_problem(503, "overloaded");
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="tenant_in_flight"}"#).await, 1.0);
    let other = server.as_caller(&ledger.token_for("another-tenant", &hapax::access::Scope::ALL).await);
    assert_eq!(other.submit("key", job(1)).await.status, 201);
}
