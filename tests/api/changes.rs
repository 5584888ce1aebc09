//! Changes of existing jobs: PATCH, cancel, DELETE.

use serde_json::json;

use crate::harness::{Answer, Fault, Ledger, Proxy, SHORT_DEADLINES, Server, job};

async fn queued(server: &Server) -> String {
    server.submit(&uuid::Uuid::new_v4().to_string(), job(1)).await.job_id()
}

async fn show(server: &Server, id: &str) -> Answer {
    server.get(&format!("/jobs/{id}")).await
}

#[tokio::test]
async fn a_change_creates_a_new_version_of_a_waiting_job() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let before = show(&server, &id).await;
    let changed = server
        .patch(&id, before.header("etag"), r#"{"priority":1,"run_at":"2031-01-01T00:00:00Z","max_attempts":3}"#)
        .await;
    assert_eq!(changed.status, 200);
    assert_ne!(changed.header("etag"), before.header("etag"));
    let after = show(&server, &id).await;
    assert_eq!(after.header("etag"), changed.header("etag"));
    let mut expected = before.json();
    let changes = json!({ "priority": 1, "run_at": "2031-01-01T00:00:00.000000Z", "max_attempts": 3, "version": 2 });
    expected.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    assert_eq!(after.json(), expected);
    expected.as_object_mut().unwrap().remove("payload");
    assert_eq!(changed.json(), expected);
    // Null resets a member to its default.
    let back = server.patch(&id, "*", r#"{"priority":null,"run_at":null,"max_attempts":null}"#).await.json();
    let mut expected = before.json();
    expected.as_object_mut().unwrap().remove("payload");
    expected["version"] = json!(3);
    assert_eq!(back, expected);
}

#[tokio::test]
async fn a_change_must_leave_the_job_an_attempt() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    for _ in 0..2 {
        let claim = server.take().await;
        server.settle_with(&claim.id, json!({ "job_id": id, "outcome": "failed", "retry_in_seconds": 0 })).await;
    }
    let before = show(&server, &id).await.json();
    assert_eq!(before["attempt"], 2);
    for max_attempts in [1, 2] {
        let body = json!({ "max_attempts": max_attempts, "priority": 1 });
        let keyed = server.patch_job(&id, "*", &body).header("idempotency-key", "k");
        for refused in [server.patch(&id, "*", &body).await, server.send(keyed).await] {
            refused.is_problem(400, "invalid-job");
            assert_eq!(refused.json()["pointers"], json!(["/max_attempts"]));
        }
    }
    assert_eq!(show(&server, &id).await.json(), before);
    // A later version may have another attempt, so the functions check it, too.
    let by_sql = "select hapax.patch(tenant_id, job_id, version, priority, run_at, 2)::integer::bigint from job_queue";
    assert_eq!(ledger.number(by_sql).await, 0);
    assert_eq!(server.patch(&id, "*", json!({ "max_attempts": 3 })).await.status, 200);
    // Nothing is wrong with the same value.
    assert_eq!(server.patch(&id, "*", json!({ "max_attempts": 3, "priority": 1 })).await.status, 200);
}

#[tokio::test]
async fn the_default_of_max_attempts_must_leave_the_job_an_attempt() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    ledger.execute("update job_queue set attempt = 25, max_attempts = 30, version = 51").await;
    let refused = server.patch(&id, "*", json!({ "max_attempts": null })).await;
    refused.is_problem(400, "invalid-job");
    assert_eq!(refused.json()["pointers"], json!(["/max_attempts"]));
}

#[tokio::test]
async fn a_job_that_is_in_no_table_is_an_error_at_once_and_the_log_names_it() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    ledger.execute("delete from job_queue").await;
    for answer in [server.cancel(&id).await, server.delete(&id).await] {
        answer.is_problem(500, "internal-error");
        let lines = server.warnings_of_requests(&answer).await;
        let of_it: Vec<_> =
            lines.iter().filter(|line| line["span"]["request_id"] == answer.header("x-request-id")).collect();
        assert_eq!(of_it.len(), 1, "{lines:?}");
        let error = of_it[0]["error"].as_str().unwrap();
        assert!(of_it[0]["level"] == "ERROR" && error.contains(&id) && error.contains("XX001"), "{error}");
    }
    assert_eq!(server.metric("hapax_database_retries_total{reason=\"collided\"}").await, 0.0);
}

/// The version of a job, as `If-Match` expects it.
fn shown_version(job: &serde_json::Value) -> String {
    format!("\"{}\"", job["version"])
}

#[tokio::test]
async fn every_job_in_an_answer_has_the_version_for_if_match() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let submitted = server.submit("key-1", job(1)).await;
    let replayed = server.submit("key-1", job(1)).await;
    let line = json!({ "idempotency_key": "key-2", "job": job(2) });
    let item = server.submit_batch(line).await.items().remove(0);
    let put = server.put(uuid::Uuid::new_v4(), job(3)).await;
    for answer in [&submitted, &replayed, &item, &put] {
        assert_eq!(answer.json()["version"], 1, "{answer:?}");
        // An ETag belongs to the current representation, and none of these answers claims to be that.
        assert!(!answer.headers.contains_key("etag"), "{answer:?}");
    }
    for made in [&submitted, &item, &put] {
        let changed = server.patch(&made.job_id(), &shown_version(&made.json()), r#"{"priority":1}"#).await;
        assert_eq!((changed.status, changed.header("etag")), (200, shown_version(&changed.json()).as_str()));
        let shown = show(&server, &made.job_id()).await;
        assert_eq!(shown.header("etag"), shown_version(&shown.json()));
    }
    for listed in server.get("/jobs").await.json()["jobs"].as_array().unwrap() {
        let id = listed["id"].as_str().unwrap();
        assert_eq!(server.patch(id, &shown_version(listed), r#"{"priority":3}"#).await.status, 200);
        let cancelled = server.cancel(id).await;
        assert_eq!((cancelled.json()["version"].as_i64(), cancelled.header("etag")), (Some(4), "\"4\""));
    }
    // A replay returns the job as it was created, with its version at that time.
    let replayed = server.submit("key-1", job(1)).await;
    assert_eq!(replayed.body, submitted.body);
}

#[tokio::test]
async fn a_patch_as_application_json_is_the_same_patch() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let send = async |media_type: &str| {
        let request = server.request("PATCH", &format!("/jobs/{id}")).header("if-match", "\"1\"");
        let request = request.header("idempotency-key", "k").header("content-type", media_type);
        server.send(request.body(r#"{"priority":1,"run_at":null}"#)).await
    };
    let first = send("application/json; charset=utf-8").await;
    assert_eq!((first.status, &first.json()["priority"]), (200, &json!(1)));
    let same = send("application/merge-patch+json").await;
    assert_eq!((same.status, same.body), (200, first.body));
    let refused = send("application/json-patch+json").await;
    refused.is_problem(415, "unsupported-media-type");
    assert_eq!(refused.header("accept-patch"), "application/merge-patch+json, application/json");
}

#[tokio::test]
async fn equal_times_in_different_notation_are_the_same_change() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let change = |body: &str| server.send(server.patch_job(&id, "*", body).header("idempotency-key", "k"));
    let first = change(r#"{"run_at":"2030-01-01T00:00:00Z"}"#).await;
    let same = change(r#"{"run_at":"2030-01-01T01:00:00+01:00"}"#).await;
    assert_eq!((same.status, same.body), (200, first.body));
    // A default value that is sent is a change; a missing member is not.
    change(r#"{"run_at":"2030-01-01T00:00:00Z","priority":2}"#).await.is_problem(422, "idempotency-key-reused");
}

#[tokio::test]
async fn a_change_of_an_old_version_gets_412_with_the_current_one() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let first = show(&server, &id).await.header("etag").to_owned();
    let second = server.patch(&id, &first, r#"{"priority":1}"#).await.header("etag").to_owned();
    for stale in [&first, "W/\"2\"", "\"another\"", "\"\""] {
        let refused = server.patch(&id, stale, r#"{"priority":3}"#).await;
        refused.is_problem(412, "precondition-failed");
        assert_eq!(refused.header("etag"), second);
    }
    let unconditional = server.request("PATCH", &format!("/jobs/{id}")).body(r#"{"priority":3}"#);
    let unconditional = unconditional.header("content-type", "application/merge-patch+json");
    server.send(unconditional).await.is_problem(428, "precondition-required");
    assert_eq!(show(&server, &id).await.json()["priority"], 1);
    assert_eq!(server.patch(&id, &format!("{first}, {second}"), r#"{"priority":3}"#).await.status, 200);
    assert_eq!(server.patch(&id, "*", r#"{"priority":4}"#).await.status, 200);
}

#[tokio::test]
async fn of_concurrent_changes_of_one_version_one_succeeds() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let id = queued(&one).await;
    let change = |n: usize| {
        let (client, id) = ((*[&one, &two][n % 2]).clone(), id.clone());
        tokio::spawn(async move { client.patch(&id, "\"1\"", format!(r#"{{"max_attempts":{}}}"#, n + 1)).await })
    };
    let mut made = Vec::new();
    for asked in (0..40).map(change).collect::<Vec<_>>() {
        let answer = asked.await.unwrap();
        match answer.status {
            200 => made.push(answer),
            _ => answer.is_problem(412, "precondition-failed"),
        }
    }
    assert_eq!(made.len(), 1);
    assert_eq!(show(&one, &id).await.json()["max_attempts"], made[0].json()["max_attempts"]);
}

/// Identifies a write when it is executed: its parameter for the lock timeout is 20 ms at first.
const WRITE: &str = "\0\0\0\u{4}\0\0\0\u{14}";

async fn through_a_proxy(ledger: &Ledger) -> (Proxy, Server) {
    let proxy = Proxy::in_front_of(ledger).await;
    let server = ledger.serve_through(&proxy, &[]).await;
    (proxy, server)
}

#[tokio::test]
async fn a_change_whose_acknowledgement_was_lost_is_recognised() {
    for fault in [Fault::CutBefore, Fault::CutAfter] {
        let ledger = Ledger::new().await;
        let (proxy, server) = through_a_proxy(&ledger).await;
        let id = queued(&server).await;
        proxy.fail_next(WRITE, fault);
        let changed = server.patch(&id, "\"1\"", r#"{"priority":1}"#).await;
        assert!(proxy.is_done());
        assert_eq!((changed.status, changed.header("etag")), (200, "\"2\""));
        assert_eq!(show(&server, &id).await.json()["priority"], 1);
    }
}

#[tokio::test]
async fn a_lost_change_that_another_one_overwrote_is_outcome_unknown() {
    let ledger = Ledger::new().await;
    let (proxy, server) = through_a_proxy(&ledger).await;
    let id = queued(&server).await;
    ledger
        .execute(
            "create function hide() returns trigger language plpgsql as $$ begin new.version = 7; return new; end $$; \
             create trigger hide before update on job_queue for each row execute function hide()",
        )
        .await;
    proxy.fail_next(WRITE, Fault::CutAfter);
    server.patch(&id, "*", r#"{"priority":1}"#).await.is_problem(503, "outcome-unknown");
}

#[tokio::test]
async fn another_clients_change_is_not_taken_for_our_own() {
    let ledger = Ledger::new().await;
    let (proxy, server) = through_a_proxy(&ledger).await;
    let id = queued(&server).await;
    // Our statement never arrives, and its retry waits for another client's transaction.
    let others = ledger.hold("update job_queue set version = 2, max_attempts = 9").await;
    proxy.fail_next(WRITE, Fault::CutBefore);
    let asked = {
        let (client, id) = ((*server).clone(), id.clone());
        tokio::spawn(async move { client.patch(&id, "\"1\"", r#"{"priority":1}"#).await })
    };
    ledger.until_waiting(1).await;
    others.commit().await;
    asked.await.unwrap().is_problem(412, "precondition-failed");
}

#[tokio::test]
async fn of_two_changes_that_waited_for_a_lock_one_succeeds() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let held = ledger.hold("select from job_queue for update").await;
    let change = |n: u64| {
        let request = server.patch_job(&id, "\"1\"", format!(r#"{{"max_attempts":{n}}}"#));
        let (client, request) = ((*server).clone(), request.header("idempotency-key", format!("key-{n}")));
        tokio::spawn(async move { client.send(request).await.status })
    };
    let changes = [change(1), change(2)];
    ledger.until_waiting(2).await;
    held.roll_back().await;
    let mut statuses = Vec::new();
    for change in changes {
        statuses.push(change.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412]);
}

#[tokio::test]
async fn a_job_id_is_case_insensitive() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let change = |id: &str| server.patch_job(id, "*", r#"{"priority":1}"#).header("idempotency-key", "k");
    let first = server.send(change(&id)).await;
    let again = server.send(change(&id.to_uppercase())).await;
    assert_eq!((again.status, again.header("idempotent-replayed"), &again.body), (200, "true", &first.body));
}

#[tokio::test]
async fn a_repeated_request_id_does_not_deduplicate_requests() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let mut statuses = Vec::new();
    for n in [1, 2] {
        let request = server.patch_job(&id, "*", format!(r#"{{"priority":{n}}}"#)).header("idempotency-key", "k");
        statuses.push(server.send(request.header("x-request-id", "the-same")).await.status);
    }
    assert_eq!(statuses, [200, 422]);
}

#[tokio::test]
async fn a_failed_read_after_a_commit_is_outcome_unknown() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &SHORT_DEADLINES).await;
    let (changed, cancelled) = (queued(&server).await, queued(&server).await);
    // The first statement that reads a job without its payload follows the cancellation.
    const READ: &str = "null::json";
    proxy.fail_next(READ, Fault::BlackHole);
    server.cancel(&cancelled).await.is_problem(503, "outcome-unknown");
    let again = server.cancel(&cancelled).await;
    assert_eq!(again.json()["state"], "cancelled", "{again:?}");
    // The change is committed, its acknowledgement is lost, and then the network drops everything.
    assert_eq!(server.patch(&changed, "*", "{}").await.status, 200);
    proxy.fail_next(WRITE, Fault::CutAfter);
    proxy.then_fail_after(0, READ, Fault::BlackHole);
    server.patch(&changed, "*", r#"{"priority":1}"#).await.is_problem(503, "outcome-unknown");
}

#[tokio::test]
async fn requests_that_wait_for_a_locked_job_leave_connections_to_others() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__CONNECTIONS", "2")]).await;
    let (id, name) = (queued(&server).await, uuid::Uuid::new_v4());
    let (jobs, name_held) = (ledger.hold_jobs().await, ledger.hold_new_job(&name.to_string()).await);
    let waiting: Vec<_> = (0..16)
        .map(|n| {
            let (client, id) = ((*server).clone(), id.clone());
            tokio::spawn(async move {
                match n % 4 {
                    0 => client.patch(&id, "*", "{}").await,
                    1 => client.cancel(&id).await,
                    2 => client.put(name, job(1)).await,
                    _ => client.delete(&id).await,
                }
            })
        })
        .collect();
    ledger.until_waiting(1).await;
    for n in 0..10 {
        assert_eq!(server.submit(&format!("free-{n}"), job(n)).await.status, 201);
    }
    assert!(waiting.iter().all(|request| !request.is_finished()));
    jobs.roll_back().await;
    name_held.roll_back().await;
    for request in waiting {
        let answer = request.await.unwrap();
        assert!([200, 201, 204, 409, 410].contains(&answer.status), "{answer:?}");
    }
}

#[tokio::test]
async fn a_lost_acknowledgement_of_a_cancellation_or_deletion_is_invisible_to_the_client() {
    for fault in [Fault::CutBefore, Fault::CutAfter] {
        let ledger = Ledger::new().await;
        let (proxy, server) = through_a_proxy(&ledger).await;
        let id = queued(&server).await;
        proxy.fail_next(WRITE, fault);
        assert_eq!(server.cancel(&id).await.json()["state"], "cancelled");
        assert!(proxy.is_done());
        proxy.fail_next(WRITE, fault);
        assert_eq!(server.delete(&id).await.status, 204);
        assert!(proxy.is_done());
        show(&server, &id).await.is_problem(410, "job-deleted");
    }
}

#[tokio::test]
async fn a_missing_or_finished_job_cannot_be_changed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let another = server.as_caller(&ledger.token_for("another", &hapax::access::Scope::ALL).await);
    let id = queued(&server).await;
    another.patch(&id, "*", r#"{"priority":1}"#).await.is_problem(404, "job-not-found");
    server.cancel(&id).await;
    for version in ["*", "\"1\"", "\"2\"", "\"9\""] {
        server.patch(&id, version, r#"{"priority":1}"#).await.is_problem(409, "job-not-waiting");
    }
    server.delete(&id).await;
    server.patch(&id, "*", r#"{"priority":1}"#).await.is_problem(410, "job-deleted");
}

#[tokio::test]
async fn if_none_match_gets_304_while_the_job_is_unchanged() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let known = async |tags: &str| {
        server.send(server.request("GET", &format!("/jobs/{id}")).header("if-none-match", tags)).await
    };
    for same in ["\"1\"", "W/\"1\"", "*", "\"x\", \"1\""] {
        let unchanged = known(same).await;
        assert_eq!((unchanged.status, unchanged.header("etag")), (304, "\"1\""), "{same}");
    }
    for other in ["\"2\"", "1", "", "\"1"] {
        assert_eq!(known(other).await.status, 200, "{other}");
    }
    server.patch(&id, "*", r#"{"priority":1}"#).await;
    assert_eq!(known("\"1\"").await.status, 200);
    server.cancel(&id).await;
    assert_eq!((known("\"2\"").await.status, known("\"3\"").await.status), (200, 304));
}

#[tokio::test]
async fn cancelling_a_cancelled_job_changes_nothing() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let id = queued(&one).await;
    let cancel = |n: usize| {
        let (client, id) = ((*[&one, &two][n % 2]).clone(), id.clone());
        tokio::spawn(async move { client.cancel(&id).await })
    };
    let mut answers = Vec::new();
    for asked in (0..20).map(cancel).collect::<Vec<_>>() {
        answers.push(asked.await.unwrap());
    }
    for answer in &answers {
        assert_eq!((answer.status, &answer.body, answer.header("etag")), (200, &answers[0].body, "\"2\""));
    }
    let cancelled = answers[0].json();
    assert_eq!(cancelled["state"], "cancelled");
    assert!(cancelled["finished_at"].is_string() && cancelled.get("payload").is_none());
    let shown = show(&one, &id).await.json();
    assert_eq!((&shown["finished_at"], &shown["payload"]), (&cancelled["finished_at"], &json!({ "n": 1 })));
    assert_eq!(ledger.number("select count(*) from job_queue").await, 0);
}

#[tokio::test]
async fn an_ignored_body_leaves_the_connection_usable() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let mut connection = server.raw().await;
    for _ in 0..3 {
        let id = queued(&server).await;
        connection.write_head(&format!("POST /jobs/{id}/cancel"), &[b"content-length: 20000"]).await;
        connection.write(&[b'x'; 20000]).await;
        assert_eq!(connection.answer().await.json()["state"], "cancelled");
    }
}

#[tokio::test]
async fn a_deleted_job_keeps_its_id_and_its_idempotency_key_reserved() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", r#"{"type":"t","payload":"a secret"}"#).await;
    let id = first.job_id();
    for _ in 0..3 {
        assert_eq!((server.delete(&id).await.status, server.delete(&id).await.body.len()), (204, 0));
    }
    show(&server, &id).await.is_problem(410, "job-deleted");
    server.cancel(&id).await.is_problem(410, "job-deleted");
    let replay = server.submit("key-1", r#"{"type":"t","payload":"a secret"}"#).await;
    assert_eq!((replay.status, &replay.body), (200, &first.body));
    let reused = server.submit("key-1", r#"{"type":"t","payload":"another"}"#).await;
    reused.is_problem(422, "idempotency-key-reused");
    assert_eq!(reused.json().get("pointers"), None, "the deleted job cannot be compared");
    for table in ["job_queue", "job_outcomes", "job_uniques"] {
        assert_eq!(ledger.number(&format!("select count(*) from {table}")).await, 0, "{table}");
    }
    assert_eq!(ledger.number("select count(*) from jobs where payload is null").await, 1);
}

#[tokio::test]
async fn a_finished_job_can_be_deleted_and_another_tenants_job_cannot() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let another = server.as_caller(&ledger.token_for("another", &hapax::access::Scope::ALL).await);
    let id = queued(&server).await;
    server.cancel(&id).await;
    assert_eq!(another.delete(&id).await.status, 204);
    another.cancel(&id).await.is_problem(404, "job-not-found");
    assert_eq!(show(&server, &id).await.status, 200);
    assert_eq!(server.delete(&id).await.status, 204);
    show(&server, &id).await.is_problem(410, "job-deleted");
    assert_eq!(ledger.number("select count(*) from job_outcomes").await, 0);
}

/// A deletion that started before a cancellation was committed does not see the job's new row.
#[tokio::test]
async fn a_deletion_that_waits_for_a_cancellation_deletes_every_row() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let id = queued(&server).await;
    let cancelling = ledger
        .hold(
            "with gone as (delete from job_queue returning *) \
             insert into job_outcomes (tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, \
             version, finished_at) select tenant_id, job_id, 'cancelled', queue, priority, run_at, max_attempts, \
             attempt, version + 1, now() from gone",
        )
        .await;
    let deleting = {
        let (client, id) = ((*server).clone(), id.clone());
        tokio::spawn(async move { client.delete(&id).await })
    };
    ledger.until_waiting(1).await;
    cancelling.commit().await;
    assert_eq!(deleting.await.unwrap().status, 204);
    assert_eq!(ledger.number("select count(*) from job_outcomes").await, 0);
    show(&server, &id).await.is_problem(410, "job-deleted");
}

#[tokio::test]
async fn concurrent_changes_cancellations_and_deletions_leave_a_job_in_one_state() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    for _ in 0..10 {
        let id = queued(&one).await;
        let tasks: Vec<_> = (0..24)
            .map(|n| {
                let (client, id) = ((*[&one, &two][n % 2]).clone(), id.clone());
                tokio::spawn(async move {
                    match n % 8 {
                        0 => client.delete(&id).await.status,
                        1 | 2 => client.cancel(&id).await.status,
                        3 | 4 => client.get(&format!("/jobs/{id}")).await.status,
                        _ => client.patch(&id, "*", r#"{"priority":1}"#).await.status,
                    }
                })
            })
            .collect();
        for task in tasks {
            let status = task.await.unwrap();
            assert!([200, 204, 409, 410].contains(&status), "{status}");
        }
        show(&one, &id).await.is_problem(410, "job-deleted");
    }
    let anywhere = "select (select count(*) from job_queue) + (select count(*) from job_outcomes)";
    assert_eq!(ledger.number(anywhere).await, 0);
}
