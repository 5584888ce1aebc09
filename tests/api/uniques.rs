//! Jobs that are unique by their content while they are active.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::harness::{Fault, Ledger, Proxy};

fn unique(size: u64, note: &str) -> Value {
    json!({ "type": "render", "payload": { "size": size, "note": note }, "unique": { "by": ["/payload/size"] } })
}

#[tokio::test]
async fn the_same_content_with_another_key_gets_the_existing_job() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let first = one.submit("key-1", unique(1, "first")).await;
    let second = two.submit("key-2", unique(1, "second")).await;
    assert_eq!((second.status, &second.body), (200, &first.body));
    assert_eq!((second.header("deduplicated-by"), second.header("idempotent-replayed")), ("content", "false"));
    assert_eq!(second.header("location"), first.header("location"));
    // The key keeps this answer, whatever happens to the job.
    one.cancel(&first.job_id()).await;
    let replay = one.submit("key-2", unique(1, "second")).await;
    assert_eq!((replay.status, &replay.body), (200, &first.body));
    assert_eq!((replay.header("deduplicated-by"), replay.header("idempotent-replayed")), ("content", "true"));
    let reused = one.submit("key-2", unique(1, "third")).await;
    reused.is_problem(422, "idempotency-key-reused");
    assert_eq!(reused.json().get("pointers"), None, "the job in the stored answer was not created by this key");
    let of_the_first = one.submit("key-1", unique(1, "first")).await;
    assert_eq!((of_the_first.status, of_the_first.headers.get("deduplicated-by")), (200, None));
    assert_eq!((ledger.jobs().await, ledger.keys().await), (1, 2));
    let counted = r#"hapax_idempotency_outcomes_total{route="POST /jobs",outcome="deduplicated"}"#;
    assert_eq!(two.metric(counted).await, 1.0);
}

#[tokio::test]
async fn different_content_queue_type_or_tenant_is_another_job() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let another = server.as_caller(&ledger.token_for("another", &hapax::access::Scope::ALL).await);
    let mut bodies = vec![unique(1, ""), unique(2, "")];
    for (member, value) in [("queue", "q"), ("type", "t")] {
        let mut body = unique(1, "");
        body[member] = value.into();
        bodies.push(body);
    }
    bodies.push(json!({ "type": "render", "payload": { "size": 1, "note": "" } }));
    for (number, body) in bodies.iter().enumerate() {
        assert_eq!(server.submit(&format!("key-{number}"), body).await.status, 201, "{body}");
    }
    assert_eq!(another.submit("key-1", unique(1, "")).await.status, 201);
    let mut default_queue = unique(1, "");
    default_queue["queue"] = "default".into();
    assert_eq!(server.submit("key-9", default_queue).await.header("deduplicated-by"), "content");
}

#[tokio::test]
async fn content_is_free_once_its_job_is_finished_or_deleted() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", unique(1, "")).await;
    server.cancel(&first.job_id()).await;
    let second = server.submit("key-2", unique(1, "")).await;
    assert_eq!(second.status, 201);
    server.delete(&second.job_id()).await;
    let third = server.submit("key-3", unique(1, "")).await;
    assert_eq!(third.status, 201);
    assert_eq!(ledger.number("select count(*) from job_uniques").await, 1);
}

#[tokio::test]
async fn of_many_keys_with_one_content_one_creates_the_job_and_all_get_it() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    for round in 0..10 {
        let tasks: Vec<_> = (0..24)
            .map(|n| {
                let client = (*[&one, &two][n % 2]).clone();
                // Each key occurs twice.
                let key = format!("key-{round}-{}", n / 2);
                tokio::spawn(async move { client.submit(&key, unique(round, "")).await })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        let made = answers.iter().filter(|answer| answer.status == 201).count();
        let jobs: HashSet<_> = answers.iter().map(|answer| answer.job_id()).collect();
        assert_eq!((made, jobs.len()), (1, 1), "{answers:?}");
        assert!(answers.iter().all(|answer| [200, 201].contains(&answer.status)));
    }
    assert_eq!((ledger.jobs().await, ledger.keys().await), (10, 120));
    assert_eq!(ledger.number("select count(*) from job_uniques").await, 10);
}

#[tokio::test]
async fn a_submission_that_waits_for_one_of_the_same_content_adopts_its_job() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", unique(1, "")).await;
    // As if the first submission were not committed yet: the content is taken, but the holder is not visible.
    let digest = "update job_uniques set digest = digest";
    let held = ledger
        .hold(&format!(
            "{digest}; delete from job_uniques; insert into job_uniques select tenant_id, \
        sha256('moved'), id from jobs"
        ))
        .await;
    let waiting = server.submit_in_background("key-2", unique(1, ""));
    ledger.until_waiting(1).await;
    held.roll_back().await;
    let second = waiting.await.unwrap();
    assert_eq!((second.status, second.job_id()), (200, first.job_id()));
    assert_eq!((ledger.jobs().await, ledger.keys().await), (1, 2));
}

#[tokio::test]
async fn a_submission_that_waits_for_the_end_of_the_existing_job_creates_another() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("key-1", unique(1, "")).await;
    let ending = ledger.hold("delete from job_uniques").await;
    let waiting = server.submit_in_background("key-2", unique(1, ""));
    ledger.until_waiting(1).await;
    ending.commit().await;
    let second = waiting.await.unwrap();
    assert_eq!(second.status, 201);
    assert_ne!(second.job_id(), first.job_id());
}

#[tokio::test]
async fn a_lost_acknowledgement_of_a_unique_submission_is_invisible_to_the_client() {
    for fault in [Fault::CutBefore, Fault::CutAfter] {
        let ledger = Ledger::new().await;
        let proxy = Proxy::in_front_of(&ledger).await;
        let server = ledger.serve_through(&proxy, &[]).await;
        proxy.fail_next("the-key", fault);
        let first = server.submit("the-key", unique(1, "")).await;
        assert_eq!(first.status, 201);
        proxy.fail_next("another", fault);
        let second = server.submit("another", unique(1, "")).await;
        assert!(proxy.is_done());
        assert_eq!((second.status, second.header("deduplicated-by")), (200, "content"));
        assert_eq!((second.header("idempotent-replayed"), &second.body), ("false", &first.body));
        assert_eq!((ledger.jobs().await, ledger.keys().await), (1, 2));
    }
}

/// With a typing error in the pointer, all jobs of a type would count as equal.
#[tokio::test]
async fn pointers_without_any_value_are_refused_and_create_nothing() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for (number, by) in [json!(["/payload/sise"]), json!(["/payload/sise", "/payload/size/x"])].iter().enumerate() {
        let mut body = unique(1, "");
        body["unique"] = json!({ "by": by });
        let refused = server.submit(&format!("key-{number}"), body).await;
        refused.is_problem(400, "invalid-job");
        assert_eq!(refused.json()["pointers"], json!(["/unique/by/0"]));
    }
    ledger.assert_consistent(0).await;
    let mut one_of_two = unique(1, "");
    one_of_two["unique"] = json!({ "by": ["/payload/sise", "/payload/size"] });
    assert_eq!(server.submit("key-0", one_of_two).await.status, 201);
}

#[tokio::test]
async fn the_unique_member_is_part_of_the_fingerprint() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("key-1", unique(1, "")).await;
    let mut other = unique(1, "");
    other["unique"] = json!({ "by": ["/payload/note"] });
    let refused = server.submit("key-1", other).await;
    refused.is_problem(422, "idempotency-key-reused");
    assert_eq!(refused.json()["pointers"], json!(["/unique/by"]));
}

/// A lost attempt is retried after another client has taken the same content.
#[tokio::test]
async fn a_lost_attempt_adopts_content_that_another_client_took() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &[]).await;
    let prepared = server.submit("prepared", unique(1, "")).await.job_id();
    ledger.execute("create table taken as select * from job_uniques").await;
    server.cancel(&prepared).await;
    let holder = server.submit("holder", unique(2, "")).await.job_id();
    let taking =
        format!("update job_uniques set digest = taken.digest from taken where job_uniques.job_id = '{holder}'");
    let held = ledger.hold(&taking).await;
    proxy.fail_next("the-key", Fault::CutBefore);
    let waiting = server.submit_in_background("the-key", unique(1, ""));
    ledger.until_waiting(1).await;
    assert!(proxy.is_done());
    held.commit().await;
    let adopted = waiting.await.unwrap();
    assert_eq!((adopted.status, adopted.job_id()), (200, holder));
}

#[tokio::test]
async fn existing_content_costs_no_creation_quota() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__CREATIONS_PER_SECOND", "1"), ("HAPAX__QUOTA__CREATIONS_BURST", "3")];
    let server = ledger.serve_with(&settings).await;
    let first = server.submit("first", unique(1, "")).await;
    for n in 0..50 {
        assert_eq!(server.submit(&format!("copy-{n}"), unique(1, "")).await.body, first.body);
    }
    let mut n = 100;
    while server.submit(&format!("other-{n}"), unique(n, "")).await.status == 201 {
        n += 1;
    }
    let adopted = server.submit("when-none-is-left", unique(1, "")).await;
    assert_eq!((adopted.status, adopted.header("deduplicated-by")), (200, "content"));
    assert_eq!(server.submit("when-none-is-left", unique(1, "")).await.header("idempotent-replayed"), "true");
}

#[tokio::test]
async fn content_held_by_a_missing_job_is_an_internal_error() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("first", unique(1, "")).await;
    ledger.execute("update job_uniques set job_id = gen_random_uuid()").await;
    server.submit("second", unique(1, "")).await.is_problem(500, "internal-error");
}
