//! PgBouncer between the servers and PostgreSQL.

use sqlx::Row;

use crate::harness::{Fault, Ledger, Pooler, job, run_hapax, until};

#[tokio::test]
async fn two_replicas_share_a_few_sessions_and_every_key_makes_one_job() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::in_front_of(&ledger, 3).await;
    let (one, two) = (pooler.serve(&ledger, &[]).await, pooler.serve(&ledger, &[]).await);
    let mut asked = Vec::new();
    for n in 0..20 {
        for _ in 0..3 {
            asked.extend([&one, &two].map(|server| server.submit_in_background(&format!("key-{n}"), job(n))));
        }
    }
    let mut created = 0;
    for answer in asked {
        match answer.await.unwrap().status {
            201 => created += 1,
            status => assert_eq!(status, 200),
        }
    }
    assert_eq!(created, 20);
    one.submit("key-1", job(7)).await.is_problem(422, "idempotency-key-reused");
    ledger.assert_consistent(20).await;
}

#[tokio::test]
async fn a_statements_settings_do_not_leak_to_the_next_client() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::in_front_of(&ledger, 1).await;
    let server = pooler.serve(&ledger, &[]).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    let mut another = pooler.connect().await;
    let row = sqlx::raw_sql("show lock_timeout").fetch_one(&mut another).await.unwrap();
    assert_eq!(row.get::<String, _>(0), "0");
}

#[tokio::test]
async fn a_held_key_is_waited_for_up_to_the_lock_wait() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::in_front_of(&ledger, 3).await;
    let server = pooler.serve(&ledger, &[("HAPAX__INTAKE__LOCK_WAIT", "200ms")]).await;
    let held = ledger.hold_key("the-key").await;
    server.submit("the-key", job(1)).await.is_problem(409, "request-in-flight");
    held.roll_back().await;
    assert_eq!(server.submit("the-key", job(1)).await.status, 201);
}

#[tokio::test]
async fn a_session_lost_after_the_commit_is_invisible_to_the_client() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::in_front_of(&ledger, 3).await;
    let server = pooler.serve(&ledger, &[]).await;
    for (key, fault) in [("cut-after", Fault::CutAfter), ("cut-before", Fault::CutBefore)] {
        pooler.proxy.fail_next(key, fault);
        let answer = server.submit(key, job(1)).await;
        assert!(pooler.proxy.is_done());
        assert_eq!((answer.status, answer.header("idempotent-replayed")), (201, "false"), "{key}");
        assert_eq!(server.submit(key, job(1)).await.body, answer.body);
    }
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn a_migration_under_a_running_server_is_invisible_to_clients() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::in_front_of(&ledger, 4).await;
    let server = pooler.serve(&ledger, &[]).await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    assert_eq!(server.get(&location).await.status, 200);
    ledger.execute("alter table jobs alter column type type varchar(128)").await;
    // A new connection would get the same session, which remembers the prepared statement.
    assert_eq!(server.get(&location).await.status, 200);
    assert_eq!(server.submit("key-2", job(2)).await.status, 201);
    assert!(server.metric(r#"hapax_database_retries_total{reason="stale"}"#).await >= 1.0);
}

#[tokio::test]
async fn an_outage_is_distinguished_from_an_unknown_outcome() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::in_front_of(&ledger, 3).await;
    let quick = [("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "200ms"), ("HAPAX__ACCESS__CACHE_LIFE", "1h")];
    let server = pooler.serve(&ledger, &quick).await;
    server.submit_with_retries("warm-up", job(0)).await;
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    // The first requests may lose a session. Later ones find the pooler without a session, which opens the circuit
    // breaker.
    until("the outage is noticed", async || {
        server.submit("key-1", job(1)).await.assert_retry_after();
        (server.metric(r#"hapax_shed_requests_total{reason="outage"}"#).await >= 5.0).then_some(())
    })
    .await;
    ledger.rename_back_from(&away).await;
    assert_eq!(server.submit_with_retries("key-1", job(1)).await.status, 201);
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn a_pooler_in_session_mode_works() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::with(&ledger, 20, "pool_mode = session").await;
    let server = pooler.serve(&ledger, &[("HAPAX__DATABASE__POOLER", "session")]).await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    assert_eq!(server.submit("key-1", job(1)).await.status, 200);
    assert!(server.log_text().contains("set statement_timeout"), "{}", server.log_text());
}

/// The error of a command that refuses this pooler.
async fn refusal(pooler: &str, url: &str, arguments: &[&str]) -> String {
    let settings = [
        ("DATABASE_URL", url),
        ("HAPAX__DATABASE__POOLER", pooler),
        ("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "true"),
        ("HAPAX__METRICS__BIND", "127.0.0.1:0"),
    ];
    let output = run_hapax(arguments, &settings).await;
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_pooler_that_does_not_match_the_setting_is_refused() {
    const SERVE: [&str; 3] = ["serve", "--bind", "127.0.0.1:0"];
    let ledger = Ledger::new().await;
    let transaction = Pooler::in_front_of(&ledger, 3).await;
    let silent = Pooler::with(&ledger, 3, "pool_mode = transaction\nignore_startup_parameters = options").await;
    let session = Pooler::with(&ledger, 3, "pool_mode = session").await;
    let old = Pooler::with(&ledger, 3, "pool_mode = transaction\nmax_prepared_statements = 0").await;
    for (setting, url, words) in [
        ("none", &transaction.url, "setting database.pooler: none"),
        ("none", &silent.url, "setting database.pooler: none"),
        ("none", &session.url, "setting database.pooler: none"),
        ("session", &transaction.url, "setting database.pooler: session"),
        ("transaction", &session.url, "setting database.pooler: transaction"),
        ("transaction", &ledger.url, "setting database.pooler: transaction"),
        ("transaction", &old.url, "max_prepared_statements"),
        ("session", &old.url, "max_prepared_statements"),
    ] {
        let said = refusal(setting, url, &SERVE).await;
        assert!(said.contains(words), "{setting}, {words}: {said}");
    }
    for pooler in [&transaction, &silent, &session] {
        let said = refusal("transaction", &pooler.url, &["migrate"]).await;
        assert!(said.contains("URL of PostgreSQL itself"), "{said}");
    }
}

#[tokio::test]
async fn commands_work_through_the_pooler_except_migrate() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::in_front_of(&ledger, 1).await;
    let through = [("DATABASE_URL", pooler.url.as_str()), ("HAPAX__DATABASE__POOLER", "transaction")];
    for command in [&["tenant", "create", "globex"][..], &["token", "list"], &["purge"]] {
        let output = run_hapax(command, &through).await;
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
    let past = [("DATABASE_URL", ledger.url.as_str()), ("HAPAX__DATABASE__POOLER", "transaction")];
    assert!(run_hapax(&["migrate"], &past).await.status.success());
}
