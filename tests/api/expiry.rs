//! Key expiry, and the purger.

use std::time::{Duration, SystemTime};

use sqlx::Row;

use crate::harness::{Ledger, Server, job, run_hapax};

#[tokio::test]
async fn the_expiry_header_equals_the_stored_expiry() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "90m")]).await;
    let stated = httpdate::parse_http_date(server.submit("key-1", job(1)).await.header("idempotency-expires")).unwrap();
    let mut connection = ledger.connect().await;
    let sql = "select expires_at, extract(epoch from expires_at - clock_timestamp())::float8 from idempotency_keys";
    let row = sqlx::raw_sql(sql).fetch_one(&mut connection).await.unwrap();
    let stored = SystemTime::from(row.get::<chrono::DateTime<chrono::Utc>, _>(0));
    assert!(stored.duration_since(stated).unwrap() < Duration::from_secs(1), "the header has whole seconds");
    assert!((5000.0..=5400.0).contains(&row.get::<f64, _>(1)));
}

/// Runs `hapax tenant set --key-ttl`.
async fn set_key_ttl(ledger: &Ledger, tenant: &str, time: &str) -> std::process::Output {
    run_hapax(&["tenant", "set", tenant, "--key-ttl", time], &[("DATABASE_URL", &ledger.url)]).await
}

#[tokio::test]
async fn a_tenant_can_have_its_own_key_lifetime() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__ACCESS__CACHE_LIFE", "0s"), ("HAPAX__IDEMPOTENCY__REPLAY_CACHE_BYTES", "1000000")];
    let server = ledger.serve_with(&settings).await;
    let other = server.as_caller(&ledger.token_for("globex", &hapax::access::Scope::ALL).await);
    let id = server.submit("before", job(0)).await.job_id();
    assert!(set_key_ttl(&ledger, "acme", "30d").await.status.success());
    server.submit("alone", job(1)).await;
    let unique = serde_json::json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    server.submit("unique", &unique).await;
    server.submit("adopted", &unique).await;
    server.submit_batch(serde_json::json!({ "idempotency_key": "in-a-batch", "job": job(2) })).await;
    let changed = server.send(server.patch_job(&id, "*", "{}").header("idempotency-key", "changed")).await;
    let stated = httpdate::parse_http_date(changed.header("idempotency-expires")).unwrap();
    assert!(stated > SystemTime::now() + Duration::from_secs(29 * 24 * 60 * 60));
    other.submit("other", job(3)).await;
    let lives = "select count(*) from idempotency_keys where expires_at > now() + interval '29 days'";
    assert_eq!((ledger.number(lives).await, ledger.keys().await), (5, 7));

    assert!(set_key_ttl(&ledger, "acme", "default").await.status.success());
    server.submit("after", job(4)).await;
    assert_eq!((ledger.number(lives).await, ledger.keys().await), (5, 8));
}

#[tokio::test]
async fn tenants_with_different_key_lifetimes_share_a_statement() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__WRITERS", "1")]).await;
    let other = server.as_caller(&ledger.token_for("globex", &hapax::access::Scope::ALL).await);
    assert!(set_key_ttl(&ledger, "globex", "1s").await.status.success());
    // Submissions that arrive while the only writer waits for a key share its next statement.
    let held = ledger.hold_key("held").await;
    let waiting = server.submit_in_background("held", job(0));
    ledger.until_waiting(1).await;
    let submissions: Vec<_> =
        (0..20).map(|n| [&*server, &other][n % 2].submit_in_background(&format!("k-{n}"), job(n as u64))).collect();
    for submission in submissions {
        assert_eq!(submission.await.unwrap().status, 201);
    }
    held.roll_back().await;
    waiting.await.unwrap();
    let short = "select count(*) from idempotency_keys join tenants on tenants.id = tenant_id \
                 where name = 'globex' and expires_at < now() + interval '2 seconds'";
    let long = "select count(*) from idempotency_keys join tenants on tenants.id = tenant_id \
                where name = 'acme' and expires_at > now() + interval '23 hours'";
    assert_eq!((ledger.number(short).await, ledger.number(long).await), (10, 11));
}

#[tokio::test]
async fn a_tenants_key_lifetime_is_limited_and_listed() {
    let ledger = Ledger::new().await;
    for (tenant, time, words) in [
        ("acme", "0s", "whole seconds from 1s to 366d"),
        ("acme", "367d", "whole seconds from 1s to 366d"),
        ("acme", "1s 1ms", "whole seconds from 1s to 366d"),
        ("acme", "soon", "--key-ttl"),
        ("nobody", "1d", "there is no tenant nobody"),
    ] {
        let refused = set_key_ttl(&ledger, tenant, time).await;
        let error = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && error.contains(words), "{time}: {error}");
    }
    for (time, shown) in [
        ("366d", "acme  key-ttl 366d"),
        ("30d", "acme  key-ttl 30d"),
        ("90m", "acme  key-ttl 1h 30m"),
        ("default", "acme  key-ttl default"),
    ] {
        assert!(set_key_ttl(&ledger, "acme", time).await.status.success());
        let listed = run_hapax(&["tenant", "list"], &[("DATABASE_URL", &ledger.url)]).await;
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.contains(shown), "{listed}");
    }
}

#[tokio::test]
async fn an_expired_key_is_free_before_and_after_the_purge() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", job(1)).await;
    ledger.expire("key-1").await;
    let second = server.submit("key-1", job(2)).await;
    assert_eq!((second.status, second.header("idempotent-replayed")), (201, "false"));
    assert_ne!(second.job_id(), first.job_id());
    assert_eq!(server.submit("key-1", job(2)).await.body, second.body);
    server.submit("key-1", job(1)).await.is_problem(422, "idempotency-key-reused");
    // The first job is independent of the key now.
    assert_eq!(server.get(first.header("location")).await.status, 200);
    assert_eq!((ledger.jobs().await, ledger.keys().await), (2, 1));
}

#[tokio::test]
async fn of_many_submissions_one_takes_over_an_expired_key() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    one.submit("key-1", job(1)).await;
    ledger.expire("key-1").await;
    let retries: Vec<_> = (0..20).map(|n| [&one, &two][n % 2].submit_in_background("key-1", job(2))).collect();
    let mut statuses = Vec::new();
    for retry in retries {
        statuses.push(retry.await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!((&statuses[..19], statuses[19]), (&[200; 19][..], 201));
    assert_eq!((ledger.jobs().await, ledger.keys().await), (2, 1));
}

#[tokio::test]
async fn a_submission_waits_for_the_transaction_that_holds_the_expired_row() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("key-1", job(1)).await;
    ledger.expire("key-1").await;
    let mut holder = ledger.connect().await;
    sqlx::raw_sql("begin; select 1 from idempotency_keys for update").execute(&mut holder).await.unwrap();
    let waiting = server.submit_in_background("key-1", job(2));
    ledger.until_waiting(1).await;
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    assert_eq!(waiting.await.unwrap().status, 201);
}

#[tokio::test]
async fn of_two_submissions_that_waited_for_an_expired_row_one_creates_a_job() {
    let ledger = Ledger::new().await;
    let servers = [ledger.serve().await, ledger.serve().await];
    servers[0].submit("key-1", job(1)).await;
    ledger.expire("key-1").await;
    let held = ledger.hold("select from idempotency_keys for update").await;
    let retries = [0, 1].map(|n| servers[n].submit_in_background("key-1", job(n as u64 + 2)));
    ledger.until_waiting(2).await;
    held.roll_back().await;
    let mut statuses = Vec::new();
    for retry in retries {
        statuses.push(retry.await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!((statuses, ledger.jobs().await), (vec![201, 422], 2));
}

#[tokio::test]
async fn a_submission_with_an_expired_key_succeeds_after_another_one_rolls_back() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("key-1", job(1)).await;
    ledger.expire("key-1").await;
    let held = ledger.hold_key("key-1").await;
    let waiting = server.submit_in_background("key-1", job(2));
    ledger.until_waiting(1).await;
    held.roll_back().await;
    assert_eq!(waiting.await.unwrap().status, 201);
    assert_eq!((ledger.jobs().await, ledger.keys().await), (2, 1));
}

#[tokio::test]
async fn purging_removes_expired_keys_and_never_a_job() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for n in 0..5 {
        server.submit(&format!("key-{n}"), job(n)).await;
    }
    for n in 0..3 {
        ledger.expire(&format!("key-{n}")).await;
    }
    let output = run_hapax(&["purge"], &[("DATABASE_URL", &ledger.url)]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deleted 3 expired keys\n");
    assert_eq!((ledger.keys().await, ledger.jobs().await), (2, 5));
    assert_eq!(server.submit("key-4", job(4)).await.status, 200);
    assert_eq!(server.submit("key-0", job(0)).await.status, 201);
}

/// Inserts expired keys.
async fn fill_with_expired_keys(ledger: &Ledger, keys: u32) {
    let sql = format!(
        "insert into idempotency_keys (tenant_id, route, key, fingerprint, effect, job_id, job_version, body, \
         request_id, created_at, expires_at, time_to_live_seconds) select tenants.id, 'POST /jobs', 'old-' || n, sha256('x'), 'created', \
         gen_random_uuid(), 1, \
         '{{}}', 'r', now(), now() - interval '1 hour', 1 from tenants, generate_series(1, {keys}) n"
    );
    ledger.execute(&sql).await;
}

#[tokio::test]
async fn concurrent_purgers_do_not_collide() {
    let ledger = Ledger::new().await;
    fill_with_expired_keys(&ledger, 20_000).await;
    let environment =
        [("DATABASE_URL", ledger.url.as_str()), ("HAPAX__PURGE__BATCH", "500"), ("HAPAX__PURGE__PAUSE", "0s")];
    let purge = || run_hapax(&["purge"], &environment);
    let outputs = tokio::join!(purge(), purge(), purge(), purge());
    let deleted = |output: &std::process::Output| -> u32 {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        text.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let sum: u32 = [&outputs.0, &outputs.1, &outputs.2, &outputs.3].into_iter().map(deleted).sum();
    assert_eq!((sum, ledger.keys().await), (20_000, 0));
}

#[tokio::test]
async fn the_purger_skips_locked_rows() {
    let ledger = Ledger::new().await;
    fill_with_expired_keys(&ledger, 10).await;
    let mut holder = ledger.connect().await;
    let hold = "begin; select 1 from idempotency_keys where key = 'old-1' for update";
    sqlx::raw_sql(hold).execute(&mut holder).await.unwrap();
    let output = run_hapax(&["purge"], &[("DATABASE_URL", &ledger.url)]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deleted 9 expired keys\n");
    assert_eq!(ledger.keys().await, 1);
}

#[tokio::test]
async fn every_server_purges_and_counts_deleted_keys() {
    let ledger = Ledger::new().await;
    let quick = [("HAPAX__PURGE__INTERVAL", "20ms"), ("HAPAX__PURGE__BATCH", "100"), ("HAPAX__PURGE__PAUSE", "0s")];
    let slow: Server =
        ledger.serve_with(&[("HAPAX__PURGE__INTERVAL", "1h"), ("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h")]).await;
    fill_with_expired_keys(&ledger, 1000).await;
    assert!(slow.metric("hapax_purge_lag_seconds").await >= 3600.0);
    let server = ledger.serve_with(&quick).await;
    ledger.until("select count(*) from idempotency_keys", |keys| keys == 0).await;
    server.until_metric("hapax_purged_keys_total", 1000.0).await;
    assert_eq!(server.metric("hapax_purge_lag_seconds").await, 0.0);
}

#[tokio::test]
async fn the_purger_regains_its_batch_size_after_failures() {
    let ledger = Ledger::new().await;
    fill_with_expired_keys(&ledger, 5000).await;
    ledger.execute("alter table idempotency_keys rename to away").await;
    let settings =
        [("HAPAX__PURGE__INTERVAL", "10ms"), ("HAPAX__PURGE__BATCH", "1000"), ("HAPAX__PURGE__PAUSE", "200ms")];
    let server = ledger.serve_with(&settings).await;
    // By then it deletes one key at a time, which would take a quarter of an hour.
    server.until_metric("hapax_purge_failures_total", 12.0).await;
    ledger.execute("alter table away rename to idempotency_keys").await;
    ledger.until("select count(*) from idempotency_keys", |keys| keys == 0).await;
}
