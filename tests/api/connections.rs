//! What a single client can consume: connections, memory, CPU and log lines.

use hapax::access::Scope;
use serde_json::{Map, Value, json};

use crate::harness::{Ledger, NO_QUOTAS, RawConnection, Server, job, until};

const ENDLESS: [&[u8]; 2] = [b"content-type: application/json", b"transfer-encoding: chunked"];

#[tokio::test]
async fn an_answer_before_the_end_of_a_chunked_body_closes_the_connection() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let stranger = format!("hpx_{}", "0".repeat(64));
    let key: &[u8] = b"idempotency-key: k";
    for (token, request, headers, status) in [
        (&stranger, "POST /jobs", [key, ENDLESS[0], ENDLESS[1]], 401),
        (&ledger.token, "POST /nothing", [key, ENDLESS[0], ENDLESS[1]], 404),
        (&ledger.token, "PUT /jobs", [key, ENDLESS[0], ENDLESS[1]], 405),
        (&ledger.token, "POST /jobs", [key, b"content-type: text/plain", ENDLESS[1]], 415),
        (&ledger.token, "GET /healthz", [key, ENDLESS[0], ENDLESS[1]], 200),
        (&ledger.token, "DELETE /jobs/7d0b8d9a-0000-7000-8000-000000000000", [key, ENDLESS[0], ENDLESS[1]], 204),
    ] {
        let mut connection = RawConnection::open(server.address, token).await;
        connection.write_head(request, &headers).await;
        connection.write(b"32\r\nabc").await;
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (status, "close"), "{request}");
        assert_eq!(connection.until_closed().await, 0, "{request}");
    }
}

#[tokio::test]
async fn a_chunked_body_that_does_not_end_is_408_and_closes_the_connection() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__BODY_DEADLINE", "500ms")]).await;
    let mut connection = server.raw().await;
    connection.write_head("POST /jobs", &[b"idempotency-key: k", ENDLESS[0], ENDLESS[1]]).await;
    connection.write(b"32\r\nabc").await;
    connection.answer().await.is_problem(408, "request-timeout");
    assert_eq!(connection.until_closed().await, 0);
}

#[tokio::test]
async fn a_chunked_body_that_ends_keeps_the_connection() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let mut connection = server.raw().await;
    let body = job(1).to_string();
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for status in [201, 200] {
        connection.write_head("POST /jobs", &[b"idempotency-key: k", ENDLESS[0], ENDLESS[1]]).await;
        connection.write(chunks.as_bytes()).await;
        assert_eq!(connection.answer().await.status, status);
    }
    connection.write_head("POST /nothing", &ENDLESS).await;
    connection.write(chunks.as_bytes()).await;
    assert_eq!(connection.answer().await.status, 404);
    connection.write_head("GET /healthz", &[]).await;
    assert_eq!(connection.answer().await.status, 200);
}

#[tokio::test]
async fn a_malformed_chunk_is_answered_during_a_token_look_up() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let head = format!(
        "POST /jobs HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {}\r\nidempotency-key: k\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        ledger.token
    );
    let mut connection = server.raw().await;
    connection.write(format!("{head}no size\r\n").as_bytes()).await;
    connection.answer().await.is_problem(400, "broken-body");
}

#[tokio::test]
async fn pipelined_requests_behind_a_body_are_all_answered() {
    const BEHIND: usize = 3000;
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let body = job(1).to_string();
    for (framing, body) in [
        (format!("content-length: {}", body.len()), body.clone()),
        ("transfer-encoding: chunked".to_owned(), format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())),
    ] {
        let mut connection = server.raw().await;
        connection.write_head("POST /jobs", &[b"idempotency-key: k", ENDLESS[0], framing.as_bytes()]).await;
        let heads = "GET /healthz HTTP/1.1\r\nhost: a-name-that-makes-it-longer\r\n\r\n".repeat(BEHIND);
        connection.write_while_reading((body + &heads).into_bytes());
        assert!([200, 201].contains(&connection.answer().await.status), "{framing}");
        for _ in 0..BEHIND {
            assert_eq!(connection.answer().await.status, 200, "{framing}");
        }
    }
}

#[tokio::test]
async fn a_request_pipelined_behind_connection_close_is_not_executed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let body = job(1).to_string();
    let head = |key: &str, more: &str| {
        format!(
            "POST /jobs HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {}\r\nidempotency-key: {key}\r\n{more}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            ledger.token,
            body.len()
        )
    };
    let mut connection = server.raw().await;
    let both = head("last", "connection: close\r\n") + &head("behind", "");
    connection.write(both.as_bytes()).await;
    let last = connection.answer().await;
    assert_eq!((last.status, last.header("connection")), (201, "close"));
    connection.until_closed().await;
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn an_unfinished_head_on_a_kept_connection_has_a_deadline() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let mut connection = server.raw().await;
    connection.write_head("GET /healthz", &[]).await;
    assert_eq!(connection.answer().await.status, 200);
    connection.write(b"GET /he").await;
    assert_eq!(connection.until_closed().await, 0);
}

/// The script that `/docs` loads: 1.5 MB, without a token.
const LARGE: &str = "GET /docs/swagger-ui-bundle.js";
const LARGE_ANSWERED: &str =
    r#"hapax_http_requests_total{method="GET",route="/docs/swagger-ui-bundle.js",status="200"}"#;

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_disconnected() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__WRITE_DEADLINE", "500ms")]).await;
    let mut connection = RawConnection::open_with_small_buffer(server.address, "none").await;
    connection.write_head(LARGE, &[]).await;
    server.until_metric(LARGE_ANSWERED, 1.0).await;
    server.until_metric_is("hapax_http_connections", 0.0).await;
    assert!(connection.is_reset(), "the system does not keep unread bytes");
    assert!(connection.until_closed().await < 1_000_000);
}

#[tokio::test]
async fn clients_that_do_not_read_use_little_memory() {
    const CLIENTS: usize = 200;
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__WRITE_DEADLINE", "1h")]).await;
    server.get("/docs").await;
    let before = server.resident_bytes();
    let mut connections = Vec::new();
    for _ in 0..CLIENTS {
        let mut connection = RawConnection::open_with_small_buffer(server.address, "none").await;
        connection.write_head(LARGE, &[]).await;
        connections.push(connection);
    }
    server.until_metric(LARGE_ANSWERED, CLIENTS as f64).await;
    let more = server.resident_bytes().saturating_sub(before);
    assert!(more / CLIENTS < 256 * 1024, "{} bytes for each client", more / CLIENTS);
}

#[tokio::test]
async fn pipelined_requests_use_little_memory_and_are_all_answered() {
    const AHEAD: usize = 4000;
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.get("/healthz").await;
    let before = server.resident_bytes();
    let mut unread = Vec::new();
    for _ in 0..20 {
        let mut connection = RawConnection::open_with_small_buffer(server.address, "none").await;
        // As much as the socket buffers on both sides hold.
        let heads = "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n".repeat(AHEAD);
        connection.write_some(heads.as_bytes()).await;
        unread.push(connection);
    }
    let mut reader = server.raw().await;
    for _ in 0..100 {
        reader.write_head("GET /nothing", &[]).await;
    }
    for _ in 0..100 {
        assert_eq!(reader.answer().await.status, 404);
    }
    let more = server.resident_bytes().saturating_sub(before);
    assert!(more < 20 * 1024 * 1024, "{more} bytes more");
}

fn large_job(bytes: usize) -> Value {
    json!({ "type": "t", "payload": "x".repeat(bytes) })
}

/// Two bodies of 40 KB exceed a tenant's limit, and three exceed the total limit.
const LITTLE_MEMORY: [(&str, &str); 3] = [
    ("HAPAX__SERVER__BODY_LIMIT_BYTES", "65536"),
    ("HAPAX__SERVER__BODY_BYTES_IN_FLIGHT", "100000"),
    ("HAPAX__SERVER__BODY_BYTES_IN_FLIGHT_PER_TENANT", "70000"),
];

/// Sends the head of a request with a large body, and most of the body.
async fn start_upload(server: &Server, token: &str, key: &str) -> (RawConnection, Vec<u8>) {
    let body = large_job(40_000).to_string().into_bytes();
    let (length, key) = (format!("content-length: {}", body.len()), format!("idempotency-key: {key}"));
    let mut connection = RawConnection::open(server.address, token).await;
    let head: [&[u8]; 3] = [key.as_bytes(), length.as_bytes(), b"content-type: application/json"];
    connection.write_head("POST /jobs", &head).await;
    connection.write(&body[..39_000]).await;
    (connection, body[39_000..].to_vec())
}

#[tokio::test]
async fn bodies_stay_within_the_memory_limits_per_tenant_and_in_total() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&LITTLE_MEMORY).await;
    let (mut first, rest) = start_upload(&server, &ledger.token, "first").await;
    server.until_metric("hapax_http_body_bytes", 39_000.0).await;
    server.submit("second", large_job(40_000)).await.is_problem(503, "overloaded");
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="tenant_body_bytes"}"#).await, 1.0);
    assert_eq!(server.submit("small", job(1)).await.status, 201);

    let other_token = ledger.token_for("another-tenant", &Scope::ALL).await;
    let (mut other, other_rest) = start_upload(&server, &other_token, "other").await;
    server.until_metric("hapax_http_body_bytes", 78_000.0).await;
    let third = server.as_caller(&ledger.token_for("third-tenant", &Scope::ALL).await);
    third.submit("third", large_job(40_000)).await.is_problem(503, "overloaded");
    assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="body_bytes"}"#).await, 1.0);

    for (connection, rest) in [(&mut first, rest), (&mut other, other_rest)] {
        connection.write(&rest).await;
        assert_eq!(connection.answer().await.status, 201);
    }
    server.until_metric_is("hapax_http_body_bytes", 0.0).await;
    assert_eq!(server.submit("second", large_job(40_000)).await.status, 201);
}

#[tokio::test]
async fn an_unread_answer_counts_against_its_tenant_only() {
    let ledger = Ledger::new().await;
    let settings = [
        ("HAPAX__SERVER__WRITE_DEADLINE", "1h"),
        ("HAPAX__SERVER__BODY_BYTES_IN_FLIGHT", "4000000"),
        ("HAPAX__SERVER__BODY_BYTES_IN_FLIGHT_PER_TENANT", "1500000"),
    ];
    let server = ledger.serve_with(&settings).await;
    // More than the socket buffers on both sides hold of an unread answer.
    let made = server.submit("k", large_job(1_000_000)).await;
    let other = server.as_caller(&ledger.token_for("another-tenant", &Scope::ALL).await);
    let of_other = other.submit("k", large_job(1_000_000)).await;
    let path = made.header("location");
    let mut unread = RawConnection::open_with_small_buffer(server.address, &ledger.token).await;
    unread.write_head(&format!("GET {path}"), &[]).await;
    server.until_metric("hapax_http_body_bytes", 1_000_000.0).await;
    server.get(path).await.is_problem(503, "overloaded");
    assert_eq!(other.get(of_other.header("location")).await.status, 200);
    drop(unread);
    server.until_status(path, 200).await;
}

#[tokio::test]
async fn a_large_body_counts_as_many_requests() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__REQUESTS_PER_SECOND", "1"), ("HAPAX__QUOTA__REQUESTS_BURST", "40")];
    let server = ledger.serve_with(&settings).await;
    // One unit per 16 KiB, and one for the request.
    let large = large_job(30 * 16 * 1024);
    assert_eq!(server.submit("large", &large).await.status, 201);
    let refused = server.submit("large", &large).await;
    refused.is_problem(429, "quota-exceeded");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 1, "{refused:?}");
    assert_eq!(server.submit("small", job(1)).await.status, 201);
    let mut chunked = server.raw().await;
    chunked.write_head("POST /jobs", &[b"idempotency-key: c", ENDLESS[0], ENDLESS[1]]).await;
    let body = large.to_string();
    chunked.write(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes()).await;
    chunked.answer().await.is_problem(429, "quota-exceeded");
}

#[tokio::test]
async fn an_aborted_chunked_body_counts_as_far_as_it_arrived() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__REQUESTS_PER_SECOND", "1"), ("HAPAX__QUOTA__REQUESTS_BURST", "40")];
    let server = ledger.serve_with(&settings).await;
    assert_eq!(server.submit("small", job(1)).await.status, 201);
    let mut chunked = server.raw().await;
    chunked.write_head("POST /jobs", &[b"idempotency-key: c", ENDLESS[0], ENDLESS[1]]).await;
    let part = " ".repeat(32 * 16 * 1024);
    chunked.write(format!("{:x}\r\n{part}\r\nno size\r\n", part.len()).as_bytes()).await;
    chunked.answer().await.is_problem(400, "broken-body");
    server.submit("large", large_job(10 * 16 * 1024)).await.is_problem(429, "quota-exceeded");
}

#[tokio::test]
async fn the_answer_to_a_batch_stays_within_its_reserved_memory() {
    const LINE_BYTES_MAX: usize = 2048;
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let member = |n: usize| format!("{n:02}{}", "\u{1}".repeat(200));
    let with_members = |value: &str| {
        let payload: Map<String, Value> = (0..30).map(|n| (member(n), value.into())).collect();
        json!({ "type": "\"".repeat(128), "queue": "\\".repeat(128), "payload": payload })
    };
    let made = server.submit("k", with_members("first")).await;
    assert_eq!(made.status, 201, "{made:?}");
    let line = |key: &str, job: Value| json!({ "idempotency_key": key, "job": job }).to_string();
    let mut lines: Vec<String> = (0..20).map(|_| line("k", with_members("other"))).collect();
    lines.push(line("long-names", with_members("third")));
    let answer = server.submit_batch(lines.join("\n")).await;
    let longest = answer.body.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap();
    assert!((1024..=LINE_BYTES_MAX).contains(&longest), "{longest}");
    let items = answer.items();
    let told = items.iter().filter(|item| item.status == 422 && item.json()["pointers"].is_array()).count();
    assert_eq!((told, items[20].status), (10, 201));
}

#[tokio::test]
async fn an_invalid_batch_writes_one_log_line_and_counts_one_request_per_item() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__REQUESTS_PER_SECOND", "1"), ("HAPAX__QUOTA__REQUESTS_BURST", "700")];
    let server = ledger.serve_with(&settings).await;
    let junk = "x\n".repeat(500);
    let answer = server.submit_batch(&junk).await;
    assert_eq!(answer.items().len(), 500);
    let lines = server.log_until(answer.header("x-request-id")).await;
    let of_batch: Vec<_> =
        lines.iter().filter(|line| line["span"]["request_id"] == answer.header("x-request-id")).collect();
    assert_eq!(of_batch.len(), 1);
    assert_eq!(of_batch[0]["span"]["items.outcomes"], "refused=500");
    assert_eq!(of_batch[0]["span"]["items.codes"], "invalid-json=500");
    server.submit_batch(&junk).await.is_problem(429, "quota-exceeded");
    assert_eq!(server.submit("k", job(1)).await.status, 201);
}

#[tokio::test]
async fn lines_of_a_batch_are_read_as_they_arrive() {
    let ledger = Ledger::new().await;
    let settings = [&NO_QUOTAS[..], &[("HAPAX__SERVER__BODY_LIMIT_BYTES", "65536")]].concat();
    let server = ledger.serve_with(&settings).await;
    let line = |n: usize, bytes: usize| json!({"idempotency_key": n.to_string(), "job": large_job(bytes)}).to_string();
    // Lines within one read and across many, with different line ends, and one line that is too long.
    let lines =
        [line(0, 10), line(1, 60_000), " \r".to_owned(), line(2, 100_000), line(3, 10) + " \r", line(4, 50_000)];
    let answers = server.submit_batch(lines.join("\n")).await.items();
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [201, 201, 413, 201, 201]);
    ledger.assert_consistent(4).await;
}

#[tokio::test]
async fn log_lines_of_shed_requests_are_limited_and_the_rest_counted() {
    const SENT: usize = 4000;
    const REQUEST: &[u8] = b"GET /jobs HTTP/1.1\r\nhost: test\r\n\r\n";
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let mut connection = server.raw().await;
    connection.write_while_reading(REQUEST.repeat(SENT));
    for _ in 0..SENT {
        assert_eq!(connection.answer().await.status, 401);
    }
    let mut sent = SENT;
    until("the log accounts for all", async || {
        connection.write(REQUEST).await;
        connection.answer().await;
        sent += 1;
        let log = server.log_text();
        let refused: Vec<&str> = log.lines().filter(|line| line.contains(r#""code":"unauthenticated""#)).collect();
        let left_out = refused
            .iter()
            .filter(|line| line.contains("lines_left_out"))
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["lines_left_out"].as_u64().unwrap() as usize);
        let accounted = refused.len() + left_out.sum::<usize>();
        assert!(accounted <= sent, "{accounted} of {sent}");
        (refused.len() < SENT && accounted >= SENT).then_some(())
    })
    .await;
}
