//! Idempotency keys: their syntax, and which requests count as equal.

use serde_json::json;

use crate::harness::{Ledger, job};

#[tokio::test]
async fn a_quoted_and_a_bare_key_are_equal() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    assert_eq!(server.submit("8e03978e-40d5", job(1)).await.status, 201);
    for same in ["\"8e03978e-40d5\"", "\"8e03978e-40d5\";v=1;x=\"a,b\"", " 8e03978e-40d5 "] {
        assert_eq!(server.submit(same, job(1)).await.status, 200, "{same}");
    }
    for other in ["8E03978E-40D5", "8e03978e-40d5;v=1", "8e03978e-40d5\""] {
        assert_eq!(server.submit(other, job(1)).await.status, 201, "{other}");
    }
}

#[tokio::test]
async fn an_invalid_key_is_refused_and_nothing_is_written() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let long = "k".repeat(256);
    let lines: [&[&[u8]]; 14] = [
        &[b"idempotency-key:"],
        &[b"idempotency-key:   "],
        &[b"idempotency-key: \"\""],
        &[b"idempotency-key: two words"],
        &[b"idempotency-key: a\tb"],
        &[b"idempotency-key: \"two words\""],
        &[b"idempotency-key: a,b"],
        &[b"idempotency-key: \"a\", \"b\""],
        &[b"idempotency-key: \"open"],
        &[b"idempotency-key: \"a\"b"],
        &[b"idempotency-key: caf\xc3\xa9"],
        &[b"idempotency-key: \xff"],
        &[b"idempotency-key: a", b"idempotency-key: b"],
        &[b"idempotency-key: a", b"Idempotency-Key: a"],
    ];
    let body = job(1).to_string();
    let length = format!("content-length: {}", body.len());
    let common: [&[u8]; 2] = [b"content-type: application/json", length.as_bytes()];
    for key in lines {
        let headers = [&common[..], key].concat();
        let answer = server.raw().await.post_jobs(&headers, body.as_bytes()).await;
        answer.is_problem(400, "invalid-idempotency-key");
    }
    server.submit(&long, job(1)).await.is_problem(400, "invalid-idempotency-key");
    let missing = server.raw().await.post_jobs(&common, body.as_bytes()).await;
    missing.is_problem(400, "idempotency-key-required");
    ledger.assert_consistent(0).await;
    assert_eq!(server.submit(&long[1..], job(1)).await.status, 201);
}

#[tokio::test]
async fn differently_spelled_json_is_the_same_request() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", r#"{"type":"t","payload":{"a":1,"b":"é/"},"queue":"q"}"#).await;
    for same in [
        "{ \"queue\" : \"q\",\n\t\"payload\" : { \"b\" : \"\\u00e9\\/\" , \"a\" : 1 } , \"type\":\"\\u0074\" }",
        r#"{"payload":{"b":"\u00E9/","a":1},"queue":"q","type":"t"}"#,
    ] {
        let answer = server.submit("key-1", same).await;
        assert_eq!((answer.status, &answer.body), (200, &first.body), "{same}");
    }
    let body = r#"{"type":"t","payload":{"a":1,"b":"é/"},"queue":"q"}"#;
    let mut connection = server.raw().await;
    let headers: [&[u8]; 4] = [
        b"idempotency-key: key-1",
        b"content-type: Application/JSON; charset=\"UTF-8\"",
        b"transfer-encoding: chunked",
        b"accept: */*",
    ];
    let chunks: String = body.chars().map(|c| format!("{:x}\r\n{c}\r\n", c.len_utf8())).collect();
    let answer = connection.post_jobs(&headers, format!("{chunks}0\r\n\r\n").as_bytes()).await;
    assert_eq!((answer.status, &answer.body), (200, &first.body));
}

/// One client sends every member, another only the required ones, a third writes times differently.
#[tokio::test]
async fn requests_for_the_same_job_are_equal_whatever_defaults_they_send() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let at = |moment: &str, options: &str| format!(r#"{{"type":"t","payload":1,"run_at":"{moment}"{options}}}"#);
    let first = one.submit("key-1", at("2030-01-31T12:00:00+01:00", "")).await;
    let id = uuid::Uuid::new_v4();
    let put = one.put(id, at("2030-01-31T12:00:00+01:00", "")).await;
    assert_eq!((first.status, put.status), (201, 201));
    let defaults = r#","queue":"default","priority":2,"max_attempts":25"#;
    for same in [
        at("2030-01-31T11:00:00Z", defaults),
        at("2030-01-31T11:00:00.000000+00:00", r#","priority":2"#),
        at("2030-01-31T12:00:00+01:00", r#","queue":"d\u0065fault""#),
    ] {
        // From the replay cache, and from the database.
        for server in [&one, &two] {
            let replay = server.submit("key-1", &same).await;
            assert_eq!((replay.status, &replay.body), (200, &first.body), "{same}");
            let again = server.put(id, &same).await;
            assert_eq!((again.status, &again.body), (200, &put.body), "{same}");
            let line = format!(r#"{{"idempotency_key":"key-1","job":{same}}}"#);
            assert_eq!(server.submit_batch(line).await.items()[0].body, first.body, "{same}");
        }
    }
    // An invalid body is refused under a used key, too.
    let twice = at("2030-01-31T12:00:00+01:00", r#","priority":2,"priority":2"#);
    one.submit("key-1", twice).await.is_problem(400, "invalid-job");
}

#[tokio::test]
async fn a_key_reused_for_another_request_gets_422_with_the_differences() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", r#"{"type":"t","payload":{"n":9007199254740993,"o":{"p":[1,2]}}}"#).await;
    for (other, pointers) in [
        (r#"{"type":"t","payload":{"n":9007199254740992,"o":{"p":[1,2]}}}"#, json!(["/payload/n"])),
        (r#"{"type":"t","payload":{"n":9007199254740993.0,"o":{"p":[1,2]}}}"#, json!(["/payload/n"])),
        (r#"{"type":"u","payload":{"n":9007199254740993,"o":{"p":[1,3]}}}"#, json!(["/type", "/payload/o/p/1"])),
        (r#"{"type":"t","queue":"q","payload":{"n":9007199254740993,"o":{"p":[1,2]}}}"#, json!(["/queue"])),
        (r#"{"type":"t","priority":1,"payload":{"n":9007199254740993,"o":{"p":[1,2]}}}"#, json!(["/priority"])),
    ] {
        let answer = server.submit("key-1", other).await;
        answer.is_problem(422, "idempotency-key-reused");
        let problem = answer.json();
        assert_eq!(problem["pointers"], pointers, "{other}");
        assert_eq!(problem["job_id"], first.json()["id"]);
        assert_eq!(problem["retryable"], false);
        assert!(!problem.to_string().contains("900719925474099"));
    }
    let replay = server.submit("key-1", r#"{"type":"t","payload":{"n":9007199254740993,"o":{"p":[1,2]}}}"#).await;
    assert_eq!((replay.status, replay.body), (200, first.body));
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn one_key_in_two_tenants_is_two_keys() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let other = ledger.token_for("other", &hapax::access::Scope::ALL).await;
    let ours = server.submit("key-1", job(1)).await;
    let theirs = server.as_caller(&other).submit("key-1", job(2)).await;
    assert_eq!((ours.status, theirs.status), (201, 201));
    assert_ne!(ours.job_id(), theirs.job_id());
    ledger.assert_consistent(2).await;

    let foreign = server.as_caller(&other).get(&format!("/jobs/{}", ours.job_id())).await;
    let unknown = server.as_caller(&other).get(&format!("/jobs/{}", uuid::Uuid::now_v7())).await;
    foreign.is_problem(404, "job-not-found");
    let without_instance = |answer: &crate::harness::Answer| {
        let mut document = answer.json();
        document.as_object_mut().unwrap().remove("instance");
        document
    };
    assert_eq!(without_instance(&foreign), without_instance(&unknown));
}

#[tokio::test]
async fn any_visible_ascii_characters_make_a_key() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for (number, key) in (0..).zip(["'; drop table jobs; --", "{}[]()<>@:?=", "%00%6a", "\\\\", "~!#$^&*_+|`"]) {
        let key = key.replace(' ', "_");
        assert_eq!(server.submit(&key, job(number)).await.status, 201, "{key}");
        assert_eq!(server.submit(&key, job(number)).await.status, 200, "{key}");
    }
    ledger.assert_consistent(5).await;
}
