//! Authentication and authorization.

use hapax::access::{Scope, Token};

use crate::harness::{Client, Ledger, REPLAY_CACHE_ON, job, run_hapax, until};
use crate::schema::{plan, statements};

#[tokio::test]
async fn without_a_valid_token_a_request_gets_401() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let (ours, unknown) = (ledger.token.clone(), Token::mint());
    let (missing, invalid) = ("Bearer realm=\"hapax\"", "Bearer realm=\"hapax\", error=\"invalid_token\"");
    let lines: [(&[&str], &str); 10] = [
        (&[], missing),
        (&["authorization:"], missing),
        (&["authorization: Bearer"], missing),
        (&["authorization: Bearer "], missing),
        (&["authorization: Basic dXNlcjpwYXNz"], missing),
        (&[&format!("authorization: {ours}")], missing),
        (&["authorization: Bearer hpx_short"], invalid),
        (&[&format!("authorization: Bearer {}", unknown.expose())], invalid),
        (&[&format!("authorization: Bearer {ours} {ours}")], invalid),
        (&[&format!("authorization: Bearer {ours}"), &format!("authorization: Bearer {ours}")], invalid),
    ];
    let body = job(1).to_string();
    let length = format!("content-length: {}", body.len());
    for (authorization, challenge) in lines {
        let mut connection = server.raw().await;
        let mut head = "POST /jobs HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n".to_owned();
        for line in authorization.iter().copied().chain([length.as_str(), "idempotency-key: k"]) {
            head += &format!("{line}\r\n");
        }
        connection.write(format!("{head}\r\n{body}").as_bytes()).await;
        let answer = connection.answer().await;
        answer.is_problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), challenge, "{authorization:?}");
    }
    ledger.assert_consistent(0).await;
}

#[tokio::test]
async fn a_token_needs_the_scope_even_for_a_replay() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let submitter = server.as_caller(&ledger.token_for("acme", &[Scope::Submit]).await);
    let reader = server.as_caller(&ledger.token_for("acme", &[Scope::Read]).await);
    let made = submitter.submit("key-1", job(1)).await;
    assert_eq!(made.status, 201);

    let refused = submitter.get(made.header("location")).await;
    refused.is_problem(403, "missing-scope");
    assert!(refused.json()["detail"].as_str().unwrap().contains("\"read\""));
    assert!(refused.header("www-authenticate").contains("error=\"insufficient_scope\", scope=\"read\""));
    assert_eq!(reader.get(made.header("location")).await.status, 200);

    reader.submit("key-1", job(1)).await.is_problem(403, "missing-scope");
    reader.submit("key-2", job(2)).await.is_problem(403, "missing-scope");
    assert_eq!(submitter.submit("key-2", job(2)).await.status, 201);
}

#[tokio::test]
async fn submit_creates_jobs_and_manage_changes_them() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let submitter = server.as_caller(&ledger.token_for("acme", &[Scope::Submit]).await);
    let manager = server.as_caller(&ledger.token_for("acme", &[Scope::Manage]).await);
    let id = uuid::Uuid::now_v7().to_string();
    manager.submit("k", job(1)).await.is_problem(403, "missing-scope");
    manager
        .submit_batch(r#"{"idempotency_key":"k","job":{"type":"t","payload":1}}"#)
        .await
        .is_problem(403, "missing-scope");
    manager.put(&id, job(1)).await.is_problem(403, "missing-scope");
    assert_eq!(submitter.put(&id, job(1)).await.status, 201);

    let change = r#"{"priority":1}"#;
    for refused in [submitter.patch(&id, "*", change).await, submitter.cancel(&id).await, submitter.delete(&id).await] {
        refused.is_problem(403, "missing-scope");
        assert!(refused.header("www-authenticate").ends_with("scope=\"manage\""), "{refused:?}");
    }
    assert_eq!(manager.patch(&id, "*", change).await.status, 200);
    assert_eq!((manager.cancel(&id).await.status, manager.delete(&id).await.status), (200, 204));
}

#[tokio::test]
async fn an_expired_token_is_refused_like_a_revoked_one() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "0s")]).await;
    ledger.execute("update access_tokens set expires_at = clock_timestamp() + interval '1 hour'").await;
    assert_eq!(server.submit("k", job(1)).await.status, 201);
    ledger.execute("update access_tokens set expires_at = clock_timestamp()").await;
    server.submit("k", job(1)).await.is_problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_cached_token_is_refused_once_it_has_expired() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "1h")]).await;
    ledger.execute("update access_tokens set expires_at = clock_timestamp() + interval '5 seconds'").await;
    assert_eq!(server.submit("k", job(1)).await.status, 201);
    server.until_status("/jobs", 401).await;
    let expired = "select count(*) from access_tokens where expires_at <= clock_timestamp()";
    assert_eq!(ledger.number(expired).await, 1, "the token was not refused before it expired");
}

/// Runs `hapax token`.
async fn token(ledger: &Ledger, arguments: &[&str]) -> std::process::Output {
    run_hapax(&[&["token"], arguments].concat(), &[("DATABASE_URL", &ledger.url)]).await
}

async fn listed_tokens(ledger: &Ledger) -> String {
    String::from_utf8(token(ledger, &["list", "--tenant", "acme"]).await.stdout).unwrap()
}

#[tokio::test]
async fn a_token_is_listed_with_its_name_expiry_and_last_use() {
    let ledger = Ledger::new().await;
    ledger.execute("delete from access_tokens").await;
    let create =
        ["create", "--tenant", "acme", "--scope", "submit", "--name", "the \"billing\" service", "--expires-in", "90d"];
    let made = String::from_utf8(token(&ledger, &create).await.stdout).unwrap();
    let listed = listed_tokens(&ledger).await;
    assert!(listed.contains(r#"acme  submit  name "the \"billing\" service"  expires 20"#), "{listed}");
    assert!(!listed.contains("last used"), "{listed}");
    let ends = "select count(*) from access_tokens \
                where expires_at between now() + interval '89 days 23 hours' and now() + interval '90 days'";
    assert_eq!(ledger.number(ends).await, 1);

    let server = ledger.serve().await.with_token(made.trim());
    assert_eq!(server.submit("k", job(1)).await.status, 201);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.ended().await);
    ledger.execute("update access_tokens set expires_at = now() - interval '1 day'").await;
    let listed = listed_tokens(&ledger).await;
    assert!(listed.contains("  expired 20") && listed.contains("  last used 20"), "{listed}");
}

#[tokio::test]
async fn an_invalid_token_name_or_expiry_is_explained() {
    let ledger = Ledger::new().await;
    let long = "x".repeat(129);
    for (option, value, words) in [
        ("--name", "", "1 to 128 characters"),
        ("--name", "a\nb", "1 to 128 characters"),
        ("--name", &long, "1 to 128 characters"),
        ("--expires-in", "0s", "a time from 1s to 100 years"),
        ("--expires-in", "101years", "a time from 1s to 100 years"),
        ("--expires-in", "tomorrow", "--expires-in"),
    ] {
        let refused = token(&ledger, &["create", "--tenant", "acme", "--scope", "read", option, value]).await;
        let error = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && error.contains(words), "{option} {value}: {error}");
    }
}

#[tokio::test]
async fn last_use_is_written_at_most_every_few_minutes_by_all_replicas() {
    let ledger = Ledger::new().await;
    let use_it = async || {
        let server = ledger.serve().await;
        server.get("/jobs").await;
        server.signal(rustix::process::Signal::TERM);
        assert!(server.ended().await);
    };
    let recent = "select count(*) from access_tokens where last_used_at > now() - interval '1 minute'";
    for (noted_before, written) in [("1 minute", 0), ("5 minutes", 1)] {
        ledger.execute(&format!("update access_tokens set last_used_at = now() - interval '{noted_before}'")).await;
        use_it().await;
        assert_eq!(ledger.number(recent).await, written, "{noted_before}");
    }
    // A locked row delays no request.
    ledger.execute("update access_tokens set last_used_at = null").await;
    let held = ledger.hold("select from access_tokens for update").await;
    use_it().await;
    held.roll_back().await;
    assert_eq!(ledger.number(recent).await, 0);
}

#[tokio::test]
async fn public_paths_ignore_tokens() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let nobody: Client = server.as_caller("nonsense");
    for path in ["/", "/healthz", "/readyz", "/openapi.yaml", "/docs"] {
        nobody.until_status(path, 200).await;
    }
    nobody.get("/jobs/x").await.is_problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_verified_token_is_looked_up_once_per_cache_lifetime() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "1h")]).await;
    // Alone: a request that has missed the cache may ask just after the answer to the first look-up.
    assert_eq!(server.submit("the-first", job(50)).await.status, 201);
    let requests: Vec<_> = (0..50).map(|n| server.submit_in_background(&format!("key-{n}"), job(n))).collect();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 201);
    }
    assert_eq!(server.metric(r#"hapax_token_lookups_total{result="known"}"#).await, 1.0);
}

#[tokio::test]
async fn an_unknown_token_is_looked_up_once_and_a_malformed_one_never() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "1h")]).await;
    let garbage = Token::mint();
    for _ in 0..10 {
        server.as_caller(garbage.expose()).submit("k", job(1)).await.is_problem(401, "unauthenticated");
        server.as_caller("hpx_0123").submit("k", job(1)).await.is_problem(401, "unauthenticated");
    }
    assert_eq!(server.metric(r#"hapax_token_lookups_total{result="unknown"}"#).await, 1.0);
}

#[tokio::test]
async fn a_revocation_takes_effect_when_the_cached_token_expires() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "0s")]).await;
    let remembering = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "1h")]).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    assert_eq!(remembering.submit("key-1", job(1)).await.status, 200);
    let environment = [("DATABASE_URL", ledger.url.as_str())];
    let listed = run_hapax(&["token", "list", "--tenant", "acme"], &environment).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("acme") && !listed.contains("hpx_"), "{listed}");
    let id = listed.split(' ').next().unwrap();
    for _ in 0..2 {
        assert!(run_hapax(&["token", "revoke", id], &environment).await.status.success());
    }
    server.submit("key-1", job(1)).await.is_problem(401, "unauthenticated");
    assert_eq!(remembering.submit("key-1", job(1)).await.status, 200);
}

#[tokio::test]
async fn three_hundred_unseen_valid_tokens_are_all_accepted() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "1h")]).await;
    let tokens = ledger.tokens_for("acme", 300).await;
    let locked = ledger.lock_table("access_tokens", "access exclusive").await;
    let requests: Vec<_> = tokens
        .iter()
        .enumerate()
        .map(|(n, token)| server.as_caller(token).submit_in_background(&format!("key-{n}"), job(n as u64)))
        .collect();
    ledger.until_waiting(1).await;
    locked.roll_back().await;
    for request in requests {
        assert_eq!(request.await.unwrap().status, 201);
    }
    assert_eq!(server.metric(r#"hapax_token_lookups_total{result="known"}"#).await, 300.0);
}

#[tokio::test]
async fn tokens_are_looked_up_through_the_index_of_digests() {
    let ledger = Ledger::new().await;
    let (sql, parameters) = statements().into_iter().find(|(sql, _)| sql.contains("digest = any($1)")).unwrap();
    let plan = plan(&ledger, &sql, parameters).await;
    assert!(plan.contains("access_tokens_digest_key") && !plan.contains("Seq Scan"), "{plan}");
}

#[tokio::test]
async fn a_verified_token_stays_valid_during_an_outage_and_a_revocation_applies_afterwards() {
    let ledger = Ledger::new().await;
    let forgetful = [&REPLAY_CACHE_ON[..], &[("HAPAX__ACCESS__CACHE_LIFE", "0s")]].concat();
    let server = ledger.serve_with(&forgetful).await;
    let strict = ledger.serve_with(&[&forgetful[..], &[("HAPAX__ACCESS__OUTAGE_LIFE", "0s")]].concat()).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    assert_eq!(strict.submit("key-1", job(1)).await.status, 200);
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    for _ in 0..3 {
        assert_eq!(server.submit("key-1", job(1)).await.status, 200, "a replay from memory");
        strict.submit("key-1", job(1)).await.is_problem(503, "database-unavailable");
    }
    let stranger = server.as_caller(Token::mint().expose());
    stranger.submit("key-1", job(1)).await.is_problem(503, "database-unavailable");
    ledger.rename_back_from(&away).await;
    ledger.execute("update access_tokens set revoked_at = now()").await;
    server.until_status("/jobs", 401).await;
    server.submit("key-1", job(1)).await.is_problem(401, "unauthenticated");
}

#[tokio::test]
async fn unseen_tokens_are_refused_immediately_during_an_outage() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "100ms")]).await;
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    until("the outage is noticed", async || {
        let stranger = server.as_caller(Token::mint().expose());
        stranger.get("/jobs").await.is_problem(503, "database-unavailable");
        (server.metric(r#"hapax_shed_requests_total{reason="outage"}"#).await >= 20.0).then_some(())
    })
    .await;
    ledger.rename_back_from(&away).await;
    server.until_status("/jobs", 200).await;
}
