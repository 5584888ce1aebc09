//! `GET /idempotency-keys/{key}` and `hapax key show`.

use hapax::access::Scope;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

use crate::harness::{Ledger, Server, job, run_hapax};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    (ledger, server)
}

#[tokio::test]
async fn a_key_look_up_describes_the_first_request_without_key_or_answer() {
    let (ledger, server) = serve().await;
    let body = json!({ "type": "mail.send", "payload": { "secret": "x" } });
    let first = server.send(server.post_jobs("the-key", &body).header("x-request-id", "first-1")).await;
    server.send(server.post_jobs("the-key", &body).header("x-request-id", "again-1")).await;
    let shown = server.get("/idempotency-keys/the-key").await;
    assert_eq!((shown.status, shown.header("content-type")), (200, "application/json"));
    let text = String::from_utf8(shown.body.to_vec()).unwrap();
    assert!(!text.contains("the-key") && !text.contains("secret") && !text.contains("mail.send"), "{text}");
    let mut connection = ledger.connect().await;
    let stored = "select left(encode(fingerprint, 'hex'), 16), \
                  to_char(expires_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from idempotency_keys";
    let stored = sqlx::raw_sql(AssertSqlSafe(stored)).fetch_one(&mut connection).await.unwrap();
    let wanted = json!({
        "route": "POST /jobs",
        "status": 201,
        "job_id": first.job_id(),
        "first_request": { "id": "first-1", "at": first.json()["created_at"] },
        "expires_at": stored.get::<String, _>(1),
        "fingerprint_prefix": stored.get::<String, _>(0),
    });
    assert_eq!(shown.json(), wanted);
}

#[tokio::test]
async fn a_key_of_every_visible_character_is_found_however_it_was_sent() {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let (_ledger, server) = serve().await;
    let every: String = (0x21..=0x7e_u8).map(char::from).collect();
    for key in [every.as_str(), "a/b", "%41", "%", "100%25", "a+b", "?", "#", "\"quoted\"", "..", "{key}"] {
        let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
        let id = server.submit(&quoted, job(1)).await.job_id();
        let encoded = utf8_percent_encode(key, RESERVED);
        // Written by hand, because a client library would resolve the dots as a path.
        let mut connection = server.raw().await;
        connection.write_head(&format!("GET /idempotency-keys/{encoded}"), &[]).await;
        assert_eq!(connection.answer().await.json()["job_id"], id, "{key}");
        if key != ".." {
            assert_eq!(server.get(&format!("/idempotency-keys/{encoded}")).await.json()["job_id"], id, "{key}");
        }
    }
}

#[tokio::test]
async fn an_invalid_key_in_the_path_is_refused() {
    let (_ledger, server) = serve().await;
    server.submit("abc", job(1)).await;
    for bad in ["a%20b", "%00", "%7F", "%C3%A9", "%FF", &"k".repeat(256)] {
        server.get(&format!("/idempotency-keys/{bad}")).await.is_problem(400, "invalid-idempotency-key");
    }
    for elsewhere in ["%61bc", "abc/", "", "a/b", "abc%2", "abc%zz", "abc%"] {
        server.get(&format!("/idempotency-keys/{elsewhere}")).await.is_problem(404, "route-not-found");
    }
    server.get("/idempotency-keys/ABC").await.is_problem(404, "key-not-found");
}

#[tokio::test]
async fn a_key_belongs_to_one_route() {
    let (_ledger, server) = serve().await;
    let id = server.submit("submitted", job(1)).await.job_id();
    let change = server.patch_job(&id, "*", r#"{"priority":1}"#).header("idempotency-key", "changed");
    assert_eq!(server.send(change).await.status, 200);
    let at = async |key: &str, route: &str| server.get(&format!("/idempotency-keys/{key}{route}")).await;
    let changed = at("changed", "?route=PATCH+/jobs/%7Bid%7D").await.json();
    assert_eq!((&changed["status"], &changed["job_id"]), (&json!(200), &json!(id)));
    assert_eq!(at("submitted", "?route=POST%20/jobs").await.json(), at("submitted", "").await.json());
    at("changed", "").await.is_problem(404, "key-not-found");
    at("submitted", "?route=PATCH%20/jobs/{id}").await.is_problem(404, "key-not-found");
    for bad in ["?route=", "?route=GET%20/jobs", "?route=post%20/jobs", "?route=POST%20/jobs&route=POST%20/jobs"] {
        at("submitted", bad).await.is_problem(400, "invalid-parameter");
    }
}

#[tokio::test]
async fn an_expired_key_or_another_tenants_key_is_not_found() {
    let (ledger, server) = serve().await;
    let globex = server.as_caller(&ledger.token_for("globex", &Scope::ALL).await);
    server.submit("k", job(1)).await;
    globex.get("/idempotency-keys/k").await.is_problem(404, "key-not-found");
    assert_eq!(server.get("/idempotency-keys/k").await.status, 200);
    ledger.expire("k").await;
    server.get("/idempotency-keys/k").await.is_problem(404, "key-not-found");
}

/// Runs the command. Returns whether it succeeded, and its output.
async fn show(ledger: &Ledger, arguments: &[&str]) -> (bool, String, String) {
    let arguments = [&["key", "show"], arguments].concat();
    let output = run_hapax(&arguments, &[("DATABASE_URL", &ledger.url)]).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn key_show_prints_the_same_or_an_error() {
    let (ledger, server) = serve().await;
    let key = "-a/b\"c";
    server.submit(key, job(1)).await;
    let (ok, out, err) = show(&ledger, &["--tenant", "acme", "--", key]).await;
    assert!(ok, "{err}");
    let shown = server.get("/idempotency-keys/-a%2Fb%22c").await.json();
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), shown);
    assert!(out.contains("\n  \"route\": \"POST /jobs\""), "{out}");
    for (arguments, words) in [
        (&["--tenant", "acme", "never-sent"][..], "acme has no such key on POST /jobs"),
        (&["--tenant", "acme", "--route", "PATCH /jobs/{id}", "--", key], "no such key on PATCH /jobs/{id}"),
        (&["--tenant", "acme", "--route", "GET /jobs", "k"], "possible values: \"POST /jobs\", \"PATCH /jobs/{id}\""),
        (&["--tenant", "nobody", "k"], "there is no tenant nobody"),
        (&["--tenant", "acme", "a b"], "visible ASCII characters (0x21 to 0x7E)"),
    ] {
        let (ok, out, err) = show(&ledger, arguments).await;
        assert!(!ok && out.is_empty() && err.contains(words), "{arguments:?}: {err}");
    }
    ledger.expire(key).await;
    assert!(!show(&ledger, &["--tenant", "acme", "--", key]).await.0);
}
