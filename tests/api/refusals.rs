//! Invalid requests: they are refused with a clear error and leave nothing behind.

use crate::harness::{Answer, Ledger, RawConnection, Server, job};

#[tokio::test]
async fn an_invalid_job_is_refused_with_a_pointer_and_its_key_stays_unused() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let deep = |levels: usize| format!(r#"{{"type":"t","payload":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    let json: [String; 16] = [
        "".into(),
        "{".into(),
        "nothing".into(),
        r#"{"type":"t","payload":1,}"#.into(),
        r#"{"type":"t","payload":1} {}"#.into(),
        r#"{"type":"t","payload":"\u0000"}"#.into(),
        r#"{"type":"t","payload":{"\u0000":1}}"#.into(),
        r#"{"type":"t","payload":"\ud800"}"#.into(),
        r#"{"type":"t","payload":"\udc00\ud800"}"#.into(),
        r#"{"type":"t","payload":01}"#.into(),
        r#"{"type":"t","payload":NaN}"#.into(),
        "{\"type\":\"t\",\"payload\":\"a\nb\"}".into(),
        "\u{feff}{\"type\":\"t\",\"payload\":1}".into(),
        deep(64),
        deep(1000),
        deep(20_000),
    ];
    for body in &json {
        server.submit("the-key", body).await.is_problem(400, "invalid-json");
    }
    for (body, pointer) in [
        ("[]", ""),
        ("null", ""),
        (r#""type""#, ""),
        ("{}", "/type"),
        (r#"{"payload":1}"#, "/type"),
        (r#"{"type":"t"}"#, "/payload"),
        (r#"{"type":null,"payload":1}"#, "/type"),
        (r#"{"type":"","payload":1}"#, "/type"),
        (r#"{"type":"t","payload":1,"priority":9}"#, "/priority"),
        (r#"{"type":"t","payload":1,"priority":2.5}"#, "/priority"),
        (r#"{"type":"t","payload":1,"max_attempts":0}"#, "/max_attempts"),
        (r#"{"type":"t","payload":1,"max_attempts":1e400000}"#, "/max_attempts"),
        (r#"{"type":"t","payload":1,"run_at":"yesterday"}"#, "/run_at"),
        (r#"{"type":"t","payload":1,"run_at":1700000000}"#, "/run_at"),
        (r#"{"type":"t","payload":1,"queue":"a b"}"#, "/queue"),
        (r#"{"type":"t","payload":1,"delay":5}"#, "/delay"),
        (r#"{"type":"t","type":"t","payload":1}"#, "/type"),
        (r#"{"type":"t","t\u0079pe":"t","payload":1}"#, "/type"),
    ] {
        let answer = server.submit("the-key", body).await;
        answer.is_problem(400, "invalid-job");
        assert_eq!(answer.json()["pointers"], serde_json::json!([pointer]), "{body}");
    }
    ledger.assert_consistent(0).await;
    assert_eq!(server.submit("the-key", deep(63)).await.status, 201);
}

fn detail(answer: &Answer) -> String {
    answer.json()["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_error_says_what_is_wrong_and_what_to_send() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for (body, words) in [
        ("", "The body is empty; send a JSON object."),
        ("\u{feff}{}", "byte order mark"),
        (r#"{"type":"t","payload":1,"run_at":"2030-01-31T12:00:00"}"#, "/run_at: the time has no offset from UTC;"),
        (
            r#"{"type":"t","payload":1,"priority":null}"#,
            "null is not accepted here; send an integer from 1 to 4, or leave",
        ),
        (r#"{"type":"t","payload":1,"unique":null}"#, "or leave the member out"),
        (r#"{"type":null,"payload":1}"#, "/type: null is not accepted here; send a string"),
    ] {
        let answer = server.submit("k", body).await;
        assert!(detail(&answer).contains(words), "{answer:?}");
    }
    let keyless = server.send(server.request("POST", "/jobs").body(job(1).to_string())).await;
    let missing = "header is missing. Send a unique value, for example a UUID, and reuse it when you retry.";
    assert!(detail(&keyless).ends_with(missing), "{keyless:?}");
    let item = server.submit_batch(serde_json::json!({ "job": job(1) })).await.items().remove(0);
    assert!(detail(&item).starts_with("The member `idempotency_key` is missing."), "{item:?}");
    let raw_plus = server.get("/jobs?created_after=2030-01-31T12:00:00+01:00").await;
    assert!(detail(&raw_plus).contains("%2B"), "{raw_plus:?}");
}

#[tokio::test]
async fn a_failed_precondition_tells_a_weak_tag_from_an_old_one() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = server.submit("k", job(1)).await.job_id();
    for (if_match, weak) in [("W/\"1\"", true), ("\"7\"", false), ("W/\"1\", \"7\"", false)] {
        let stale = server.patch(&id, if_match, r#"{"priority":1}"#).await;
        stale.is_problem(412, "precondition-failed");
        assert_eq!(detail(&stale).contains("weak"), weak, "{if_match}: {stale:?}");
        let keyed = server.patch_job(&id, if_match, r#"{"priority":1}"#).header("idempotency-key", "p");
        assert_eq!(server.send(keyed).await.json()["detail"], stale.json()["detail"], "{if_match}");
    }
}

#[tokio::test]
async fn a_key_of_another_path_is_refused_with_the_first_path() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let (first, second) = (server.submit("a", job(1)).await.job_id(), server.submit("b", job(2)).await.job_id());
    let change = async |id: &str, priority: u8| {
        let request = server.patch_job(id, "*", serde_json::json!({ "priority": priority }));
        server.send(request.header("idempotency-key", "p")).await
    };
    assert_eq!(change(&first, 1).await.status, 200);
    let elsewhere = change(&second, 1).await;
    elsewhere.is_problem(422, "idempotency-key-reused");
    assert!(detail(&elsewhere).contains(&format!("another path, /jobs/{first}.")), "{elsewhere:?}");
    assert!(!detail(&change(&first, 3).await).contains("path"));
}

#[tokio::test]
async fn bytes_that_are_not_utf_8_are_refused() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let body = b"{\"type\":\"t\",\"payload\":\"\xff\"}";
    let length = format!("content-length: {}", body.len());
    let headers: [&[u8]; 3] = [b"idempotency-key: k", b"content-type: application/json", length.as_bytes()];
    server.raw().await.post_jobs(&headers, body).await.is_problem(400, "invalid-json");
    ledger.assert_consistent(0).await;
}

#[tokio::test]
async fn an_unsupported_media_type_or_encoding_is_415() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let body = job(1).to_string();
    let length = format!("content-length: {}", body.len());
    for (header, code) in [
        ("content-type: text/plain", "unsupported-media-type"),
        ("content-type: application/x-www-form-urlencoded", "unsupported-media-type"),
        ("content-type: application/json; charset=iso-8859-1", "unsupported-media-type"),
        ("content-type: application/json; charset=utf-16", "unsupported-media-type"),
        ("content-type: application/merge-patch+json", "unsupported-media-type"),
        ("x-no-content-type: 1", "unsupported-media-type"),
        ("content-type: application/json\r\ncontent-encoding: gzip", "unsupported-content-encoding"),
        ("content-type: application/json\r\ncontent-encoding: identity", "unsupported-content-encoding"),
        ("content-type: application/json\r\ncontent-type: application/json", "unsupported-media-type"),
    ] {
        let headers: [&[u8]; 3] = [b"idempotency-key: k", length.as_bytes(), header.as_bytes()];
        let answer = server.raw().await.post_jobs(&headers, body.as_bytes()).await;
        answer.is_problem(415, code);
        match code {
            "unsupported-media-type" => assert_eq!(answer.header("accept"), "application/json"),
            _ => assert_eq!(answer.header("accept-encoding"), "identity"),
        }
    }
    ledger.assert_consistent(0).await;
}

#[tokio::test]
async fn a_too_large_body_is_refused_early() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__BODY_LIMIT_BYTES", "2048")]).await;
    let mut announced = server.raw().await;
    let common: [&[u8]; 2] = [b"idempotency-key: k", b"content-type: application/json"];
    announced.write_head("POST /jobs", &[&common[..], &[b"content-length: 99999999999"]].concat()).await;
    announced.answer().await.is_problem(413, "body-too-large");

    let mut chunked = server.raw().await;
    chunked.write_head("POST /jobs", &[&common[..], &[b"transfer-encoding: chunked"]].concat()).await;
    chunked.write(format!("1000\r\n{}\r\n", " ".repeat(0x1000)).as_bytes()).await;
    chunked.answer().await.is_problem(413, "body-too-large");
    ledger.assert_consistent(0).await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_408_and_the_next_client_is_served() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__SERVER__BODY_DEADLINE", "1s")]).await;
    let common: [&[u8]; 3] = [b"idempotency-key: k", b"content-type: application/json", b"content-length: 100"];
    let mut slow = server.raw().await;
    slow.write_head("POST /jobs", &common).await;
    slow.write(br#"{"type":"#).await;
    let answer = slow.answer().await;
    answer.is_problem(408, "request-timeout");
    assert_eq!(answer.header("connection"), "close");
    assert_eq!(server.submit("k", job(1)).await.status, 201);
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn charset_utf_8_and_ascii_are_accepted() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let body = r#"{"type":"t","payload":"é"}"#;
    let length = format!("content-length: {}", body.len());
    for (number, charset) in ["utf-8", "utf8", "UTF8", "\"UTF-8\"", "us-ascii", "ascii"].into_iter().enumerate() {
        let media_type = format!("content-type: application/json; charset={charset}");
        let headers: [&[u8]; 3] = [b"idempotency-key: k", length.as_bytes(), media_type.as_bytes()];
        let answer = server.raw().await.post_jobs(&headers, body.as_bytes()).await;
        assert_eq!(answer.status, if number == 0 { 201 } else { 200 }, "{charset}");
    }
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn second_60_is_accepted_only_where_utc_may_have_a_leap_second() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let at = |moment: &str| format!(r#"{{"type":"t","payload":1,"run_at":"{moment}"}}"#);
    let leap = server.submit("leap", at("2016-12-31T18:59:60-05:00")).await;
    assert_eq!((leap.status, &leap.json()["run_at"]), (201, &"2017-01-01T00:00:00.000000Z".into()));
    for (number, never) in ["2030-01-31T12:00:60Z", "2016-12-31T23:59:60+01:00"].into_iter().enumerate() {
        let refused = server.submit(&format!("key-{number}"), at(never)).await;
        refused.is_problem(400, "invalid-job");
        assert_eq!(refused.json()["pointers"], serde_json::json!(["/run_at"]));
        server.patch(&leap.job_id(), "*", format!(r#"{{"run_at":"{never}"}}"#)).await.is_problem(400, "invalid-job");
        for parameter in ["created_after", "created_before"] {
            let path = format!("/jobs?{parameter}={}", never.replace('+', "%2B"));
            server.get(&path).await.is_problem(400, "invalid-parameter");
        }
    }
}

async fn raw_request(server: &Server, request: &str) -> (RawConnection, Answer) {
    let mut connection = server.raw().await;
    connection.write_head(request, &[b"content-length: 0"]).await;
    let answer = connection.answer().await;
    (connection, answer)
}

#[tokio::test]
async fn an_unknown_or_misspelled_path_is_404() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for path in [
        "/nothing",
        "/jobs/",
        "//jobs",
        "/Jobs",
        "/%6aobs",
        "/%6Aobs?x",
        "/jobs/%2e",
        "/jobs/a/b",
        "/docs/",
        "/docs/x",
        "/metrics",
    ] {
        raw_request(&server, &format!("POST {path}")).await.1.is_problem(404, "route-not-found");
    }
}

#[tokio::test]
async fn an_unsupported_method_is_405_with_an_allow_header() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for (request, allow) in [
        ("PUT /jobs", "GET, HEAD, POST"),
        ("DELETE /jobs", "GET, HEAD, POST"),
        ("OPTIONS /jobs", "GET, HEAD, POST"),
        ("BREW /jobs", "GET, HEAD, POST"),
        ("POST /jobs/7d0b8d9a-0000-7000-8000-000000000000", "DELETE, GET, HEAD, PATCH, PUT"),
        ("GET /jobs/7d0b8d9a-0000-7000-8000-000000000000/cancel", "POST"),
        ("POST /", "GET, HEAD"),
        ("POST /healthz", "GET, HEAD"),
        ("PUT /openapi.yaml", "GET, HEAD"),
    ] {
        let (_, answer) = raw_request(&server, request).await;
        answer.is_problem(405, "method-not-allowed");
        assert_eq!(answer.header("allow"), allow);
    }
}

#[tokio::test]
async fn an_unknown_query_parameter_is_refused() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let answer = server.send(server.request("POST", "/jobs?dry=1").header("idempotency-key", "k")).await;
    answer.is_problem(400, "unknown-parameter");
    for path in ["/?a", "/healthz?b=1", "/readyz?c", "/openapi.yaml?d=", "/docs?e", "/jobs/x?f=g"] {
        server.get(path).await.is_problem(400, "unknown-parameter");
    }
    assert_eq!(server.get("/?").await.status, 200);
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_usable() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let body = job(1).to_string();
    let length = format!("content-length: {}", body.len());
    let bad: [&[u8]; 3] = [b"idempotency-key: a b", b"content-type: application/json", length.as_bytes()];
    let good: [&[u8]; 3] = [b"idempotency-key: ab", b"content-type: application/json", length.as_bytes()];
    let mut connection = server.raw().await;
    connection.post_jobs(&bad, body.as_bytes()).await.is_problem(400, "invalid-idempotency-key");
    assert_eq!(connection.post_jobs(&good, body.as_bytes()).await.status, 201);
    connection.post_jobs(&bad, body.as_bytes()).await.is_problem(400, "invalid-idempotency-key");
    assert_eq!(connection.post_jobs(&good, body.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn hostile_payloads_are_stored_as_text() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for (n, payload) in [
        r#""'; drop table jobs; --""#,
        r#""\\x00\\u0000""#,
        r#"{"__proto__":{"a":1},"$where":"1"}"#,
        "1e400000",
        "-0.00000000000000000000000000000000000000000000000001",
        r#""\ud83d\ude00 😀 \uffff""#,
        "[1e131071]",
    ]
    .into_iter()
    .enumerate()
    {
        let body = format!(r#"{{"type":"t","payload":{payload}}}"#);
        let answer = server.submit(&format!("key-{n}"), &body).await;
        assert_eq!(answer.status, 201, "{body}");
        let shown = server.get(answer.header("location")).await;
        assert!(String::from_utf8_lossy(&shown.body).contains(payload), "{shown:?}");
    }
    ledger.assert_consistent(7).await;
}

#[tokio::test]
async fn an_upgrade_header_is_ignored() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let body = job(1).to_string();
    let length = format!("content-length: {}", body.len());
    let common: [&[u8]; 3] = [b"idempotency-key: k", b"content-type: application/json", length.as_bytes()];
    for upgrade in [&b"upgrade: websocket"[..], b"upgrade: h2c", b"connection: upgrade\r\nupgrade: websocket"] {
        let answer = server.raw().await.post_jobs(&[&common[..], &[upgrade]].concat(), body.as_bytes()).await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
    }
    ledger.assert_consistent(1).await;
}
