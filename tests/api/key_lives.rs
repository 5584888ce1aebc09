//! A key outlives its job: it is free only when its job has been over for the time to live of the key.

use serde_json::{Value, json};

use crate::harness::{Ledger, NO_QUOTAS, Server, job, run_hapax};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_QUOTAS).await;
    (ledger, server)
}

fn next_year() -> Value {
    json!({ "type": "t", "payload": 1, "run_at": "9999-01-01T00:00:00Z" })
}

/// Moves the end of a finished job into the past by this interval.
async fn age_end(ledger: &Ledger, interval: &str) {
    let sql = format!("update job_outcomes set finished_at = finished_at - interval '{interval}'");
    assert_eq!(ledger.execute(&sql).await, 1);
}

async fn purge(ledger: &Ledger) -> String {
    let output = run_hapax(&["purge"], &[("DATABASE_URL", &ledger.url)]).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the key answers the request with the job, as often as it is sent, and nothing else was created.
async fn is_kept(ledger: &Ledger, server: &Server, body: &Value, id: &str) {
    for _ in 0..2 {
        let again = server.submit("the-key", body).await;
        assert_eq!((again.status, again.job_id()), (200, id.to_owned()), "{again:?}");
    }
    let shown = server.get("/idempotency-keys/the-key").await;
    assert_eq!((shown.status, shown.json()["job_id"].clone()), (200, json!(id)));
    assert_eq!((ledger.jobs().await, ledger.keys().await), (1, 1));
}

#[tokio::test]
async fn the_key_of_a_job_that_still_waits_is_kept() {
    let (ledger, server) = serve().await;
    let id = server.submit("the-key", next_year()).await.job_id();
    ledger.pass_expiry("the-key").await;
    is_kept(&ledger, &server, &next_year(), &id).await;
    server.submit("the-key", job(2)).await.is_problem(422, "idempotency-key-reused");
}

#[tokio::test]
async fn the_key_of_a_job_that_still_runs_is_kept() {
    let (ledger, server) = serve().await;
    let id = server.submit("the-key", job(1)).await.job_id();
    let claim = server.take().await;
    ledger.pass_expiry("the-key").await;
    is_kept(&ledger, &server, &job(1), &id).await;
    // Also while it waits for its next attempt.
    server.settle(&claim.id, &id, "failed").await;
    ledger.pass_expiry("the-key").await;
    is_kept(&ledger, &server, &job(1), &id).await;
}

#[tokio::test]
async fn the_key_of_a_finished_job_is_kept_for_its_time_to_live_and_then_free() {
    let (ledger, server) = serve().await;
    let id = server.submit("the-key", job(1)).await.job_id();
    let claim = server.take().await;
    server.settle(&claim.id, &id, "succeeded").await;
    ledger.pass_expiry("the-key").await;
    age_end(&ledger, "23 hours").await;
    is_kept(&ledger, &server, &job(1), &id).await;
    ledger.pass_expiry("the-key").await;
    age_end(&ledger, "61 minutes").await;
    server.get("/idempotency-keys/the-key").await.is_problem(404, "key-not-found");
    let new = server.submit("the-key", job(1)).await;
    assert_eq!((new.status, new.job_id() == id), (201, false));
    assert_eq!((ledger.jobs().await, ledger.keys().await), (2, 1));
}

#[tokio::test]
async fn the_key_lives_as_long_as_the_tenant_chose_when_it_was_used() {
    let (ledger, server) = serve().await;
    let set = async |time| {
        let set = run_hapax(&["tenant", "set", "acme", "--key-ttl", time], &[("DATABASE_URL", &ledger.url)]).await;
        assert!(set.status.success(), "{set:?}");
    };
    set("1h").await;
    let server_with_setting = ledger.serve_with(&NO_QUOTAS).await;
    drop(server);
    let id = server_with_setting.submit("the-key", job(1)).await.job_id();
    set("30d").await;
    server_with_setting.cancel(&id).await;
    ledger.pass_expiry("the-key").await;
    age_end(&ledger, "59 minutes").await;
    is_kept(&ledger, &server_with_setting, &job(1), &id).await;
    ledger.pass_expiry("the-key").await;
    age_end(&ledger, "2 minutes").await;
    assert_eq!(server_with_setting.submit("the-key", job(1)).await.status, 201);
}

#[tokio::test]
async fn the_key_of_a_deleted_job_is_free_after_its_own_time() {
    let (ledger, server) = serve().await;
    let id = server.submit("the-key", next_year()).await.job_id();
    server.delete(&id).await;
    // Not before: until then, a copy of the submission must not create the job again.
    let copy = server.submit("the-key", next_year()).await;
    assert_eq!((copy.status, copy.job_id()), (200, id.clone()));
    ledger.pass_expiry("the-key").await;
    server.get("/idempotency-keys/the-key").await.is_problem(404, "key-not-found");
    let new = server.submit("the-key", next_year()).await;
    assert_eq!((new.status, new.job_id() == id), (201, false));
}

#[tokio::test]
async fn the_purger_and_a_request_decide_alike() {
    let (ledger, server) = serve().await;
    let mut ids = Vec::new();
    // Queued, running, finished lately, finished long ago, deleted.
    for key in ["queued", "running", "lately", "long-ago", "deleted"] {
        let id = server.submit(key, job(1)).await.job_id();
        match key {
            "queued" => drop(server.patch(&id, "*", r#"{"run_at":"9999-01-01T00:00:00Z"}"#).await),
            "running" => assert_eq!(server.take().await.job(), id),
            "deleted" => drop(server.delete(&id).await),
            _ => drop(server.cancel(&id).await),
        }
        ids.push(id);
        ledger.pass_expiry(key).await;
    }
    let sql = format!("update job_outcomes set finished_at = now() - interval '25 hours' where job_id = '{}'", ids[3]);
    ledger.execute(&sql).await;
    // The look-up and the purger use the same rule.
    let kept = async |key| server.get(&format!("/idempotency-keys/{key}")).await.status == 200;
    let expected = [("queued", true), ("running", true), ("lately", true), ("long-ago", false), ("deleted", false)];
    for (key, is_kept) in expected {
        assert_eq!(kept(key).await, is_kept, "{key} before the purge");
    }
    let purged = purge(&ledger).await;
    assert!(purged.contains("deleted 2 expired keys"), "{purged}");
    for (key, is_kept) in expected {
        assert_eq!(kept(key).await, is_kept, "{key} after the purge");
        let status = server.submit(key, job(1)).await.status;
        assert_eq!(status, if is_kept { 200 } else { 201 }, "{key}");
    }
    // What the purger kept has a later end, so that it does not look at it again soon.
    let later = "select count(*) from idempotency_keys where expires_at > now() + interval '23 hours'";
    assert_eq!(ledger.number(later).await, 5);
    assert!(purge(&ledger).await.contains("deleted 0 expired keys"));
}

#[tokio::test]
async fn a_kept_key_is_shown_with_its_later_end() {
    let (ledger, server) = serve().await;
    let id = server.submit("the-key", next_year()).await.job_id();
    ledger.pass_expiry("the-key").await;
    let shown = server.get("/idempotency-keys/the-key").await.json();
    assert_eq!(shown["job_id"], id);
    let end = chrono::DateTime::parse_from_rfc3339(shown["expires_at"].as_str().unwrap()).unwrap();
    assert!(end > chrono::Utc::now() + chrono::Duration::hours(23), "{shown}");
}

#[tokio::test]
async fn the_key_of_a_change_or_a_retry_is_kept_for_the_job_that_it_changed() {
    let (ledger, server) = serve().await;
    let id = server.submit("the-key", next_year()).await.job_id();
    let change = || server.patch_job(&id, "*", r#"{"priority":1}"#).header("idempotency-key", "change");
    let changed = server.send(change()).await;
    ledger.pass_expiry("change").await;
    let again = server.send(change()).await;
    assert_eq!((again.status, again.header("idempotent-replayed"), &again.body), (200, "true", &changed.body));
    server.cancel(&id).await;
    let retried = server.retry(&id, "retry").await;
    ledger.pass_expiry("retry").await;
    let again = server.retry(&id, "retry").await;
    assert_eq!((again.status, again.header("idempotent-replayed"), &again.body), (200, "true", &retried.body));
    assert_eq!(server.job(&id).await["version"], 4);
}

#[tokio::test]
async fn copies_of_a_submission_with_an_expired_but_kept_key_create_no_job() {
    let (ledger, server) = serve().await;
    let other = ledger.serve_with(&NO_QUOTAS).await;
    let id = server.submit("the-key", next_year()).await.job_id();
    ledger.pass_expiry("the-key").await;
    let copies: Vec<_> =
        (0..20).map(|n| [&server, &other][n % 2].submit_in_background("the-key", next_year())).collect();
    for copy in copies {
        let answer = copy.await.unwrap();
        assert_eq!((answer.status, answer.job_id()), (200, id.clone()));
    }
    assert_eq!((ledger.jobs().await, ledger.keys().await), (1, 1));
}
