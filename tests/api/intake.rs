//! Group commit: many submissions in one statement, none of which affects the others.

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::harness::{Answer, Fault, Ledger, OpenTransaction, Proxy, SHORT_DEADLINES, Server, job};

/// With a single writer, all submissions that arrive while it is busy share its next statement.
const ONE_WRITER: [(&str, &str); 1] = [("HAPAX__INTAKE__WRITERS", "1")];
const BATCHES: &str = r#"hapax_group_commit_requests_count{statement="submit_many"}"#;
const SPLITS_REFUSED: &str = r#"hapax_group_commit_splits_total{statement="submit_many",reason="refused"}"#;
const SPLITS_LOCKED: &str = r#"hapax_group_commit_splits_total{statement="submit_many",reason="locked"}"#;

type Waiting = JoinHandle<Answer>;

/// Blocks the writer with the statement of one job. All further submissions wait together.
async fn hold_up(ledger: &Ledger, server: &Server) -> (OpenTransaction, Waiting) {
    server.submit_with_retries("warm-up", job(0)).await;
    let held = ledger.block_inserts().await;
    let first = server.submit_in_background("first", job(0));
    ledger.until_blocked(1).await;
    (held, first)
}

/// Sends requests that share one statement once the writer is free.
async fn queue(server: &Server, requests: impl IntoIterator<Item = (String, serde_json::Value)>) -> Vec<Waiting> {
    let waiting: Vec<_> = requests.into_iter().map(|(key, body)| server.submit_in_background(&key, body)).collect();
    // Includes the submission that blocks the writer.
    server.until_metric("hapax_intake_queue_jobs", waiting.len() as f64 + 1.0).await;
    waiting
}

fn jobs(count: u64) -> impl Iterator<Item = (String, serde_json::Value)> {
    (0..count).map(|n| (format!("key-{n}"), job(n)))
}

async fn statuses(waiting: Vec<Waiting>) -> Vec<u16> {
    let mut statuses = Vec::new();
    for request in waiting {
        statuses.push(request.await.unwrap().status);
    }
    statuses.sort_unstable();
    statuses
}

#[tokio::test]
async fn submissions_that_arrive_during_a_statement_share_the_next_one() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&ONE_WRITER).await;
    let (held, first) = hold_up(&ledger, &server).await;
    let waiting = queue(&server, jobs(50)).await;
    held.roll_back().await;
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(statuses(waiting).await, [201; 50]);
    assert_eq!(server.metric(BATCHES).await, 3.0, "the warm-up, the first one, and all others in one batch");
    assert_eq!(server.metric("hapax_intake_queue_jobs").await, 0.0);
    ledger.assert_consistent(52).await;
}

#[tokio::test]
async fn a_batch_fills_up_to_its_limits() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&ONE_WRITER[..], &[("HAPAX__INTAKE__BATCH_JOBS", "10")]].concat()).await;
    let (held, _first) = hold_up(&ledger, &server).await;
    let waiting = queue(&server, jobs(35)).await;
    held.roll_back().await;
    assert_eq!(statuses(waiting).await, [201; 35]);
    assert_eq!(server.metric(BATCHES).await, 2.0 + 4.0);
}

#[tokio::test]
async fn a_job_that_postgresql_refuses_does_not_affect_others() {
    let ledger = Ledger::new().await;
    ledger.execute("alter table jobs add constraint no_poison check (type <> 'poison')").await;
    let server = ledger.serve_with(&ONE_WRITER).await;
    let (held, _first) = hold_up(&ledger, &server).await;
    let poison = |n: u64| (format!("poison-{n}"), json!({ "type": "poison", "payload": n }));
    let waiting = queue(&server, jobs(30).chain((0..2).map(poison))).await;
    held.roll_back().await;
    assert_eq!(statuses(waiting).await, [vec![201; 30], vec![500; 2]].concat());
    assert!(server.metric(SPLITS_REFUSED).await >= 2.0);
    ledger.assert_consistent(32).await;
    ledger.execute("alter table jobs drop constraint no_poison").await;
    assert_eq!(server.submit("poison-0", poison(0).1).await.status, 201, "its key is still unused");
}

#[tokio::test]
async fn held_keys_do_not_delay_other_keys() {
    let ledger = Ledger::new().await;
    let settings = [&ONE_WRITER[..], &[("HAPAX__INTAKE__CONNECTIONS", "2")]].concat();
    let server = ledger.serve_with(&settings).await;
    let (held, _first) = hold_up(&ledger, &server).await;
    // More than the slots for lock waits.
    let mut keys = Vec::new();
    for n in 0..4 {
        keys.push(ledger.hold_key(&format!("held-{n}")).await);
    }
    let waiting = queue(&server, (0..4).map(|n| (format!("held-{n}"), job(n))).chain(jobs(30))).await;
    held.roll_back().await;
    let (of_held, of_free) = {
        let mut all = waiting;
        let free = all.split_off(4);
        (all, free)
    };
    assert_eq!(statuses(of_free).await, [201; 30]);
    assert!(of_held.iter().all(|request| !request.is_finished()));
    assert!(server.metric(SPLITS_LOCKED).await >= 1.0);
    for n in 0..5 {
        assert_eq!(server.submit(&format!("later-{n}"), job(n)).await.status, 201);
    }
    for key in keys {
        key.roll_back().await;
    }
    assert_eq!(statuses(of_held).await, [201; 4]);
    ledger.assert_consistent(41).await;
}

#[tokio::test]
async fn many_held_keys_get_409_and_others_succeed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&ONE_WRITER[..], &[("HAPAX__INTAKE__LOCK_WAIT", "1s")]].concat()).await;
    let held = ledger.hold_keys("key-", 0..450).await;
    let lines: Vec<String> =
        (0..500).map(|n| json!({ "idempotency_key": format!("key-{n}"), "job": job(n) }).to_string()).collect();
    let answer = server.submit_batch(lines.join("\n")).await;
    let mut counts = BTreeMap::new();
    for item in answer.items() {
        let said = if item.status == 201 { "created".to_owned() } else { item.problem() };
        *counts.entry(said).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([("created".to_owned(), 50), ("request-in-flight".to_owned(), 450)]));
    held.roll_back().await;
    assert_eq!(server.submit("key-0", job(0)).await.status, 201);
}

#[tokio::test]
async fn equal_and_different_requests_with_one_key_in_a_batch_get_their_own_answers() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&ONE_WRITER).await;
    let (held, _first) = hold_up(&ledger, &server).await;
    let leader = queue(&server, [("the-key".to_owned(), job(0))]).await;
    let waiting: Vec<_> = (0..12).map(|n| server.submit_in_background("the-key", job(n % 3))).collect();
    server.until_metric("hapax_http_requests_in_flight", 14.0).await;
    held.roll_back().await;
    let made = leader.into_iter().next().unwrap().await.unwrap();
    assert_eq!(made.status, 201);
    for (n, request) in waiting.into_iter().enumerate() {
        let answer = request.await.unwrap();
        match n % 3 {
            0 => assert_eq!((answer.status, &answer.body), (200, &made.body)),
            _ => {
                answer.is_problem(422, "idempotency-key-reused");
                assert_eq!(answer.json()["job_id"], made.json()["id"]);
            }
        }
    }
    ledger.assert_consistent(3).await;
}

#[tokio::test]
async fn one_key_in_the_batches_of_two_replicas_creates_one_job() {
    let ledger = Ledger::new().await;
    let servers = [ledger.serve_with(&ONE_WRITER).await, ledger.serve_with(&ONE_WRITER).await];
    assert_eq!(servers[1].submit("warm-up-too", job(0)).await.status, 201);
    let (held, _first) = hold_up(&ledger, &servers[0]).await;
    let _second = servers[1].submit_in_background("second", job(0));
    ledger.until_blocked(2).await;
    let mut waiting = queue(&servers[0], jobs(30)).await;
    waiting.extend(queue(&servers[1], jobs(30)).await);
    held.roll_back().await;
    assert_eq!(statuses(waiting).await, [vec![200; 30], vec![201; 30]].concat());
    ledger.assert_consistent(34).await;
}

#[tokio::test]
async fn a_tenant_that_fills_its_half_of_the_queue_gets_503_immediately() {
    for (bound, fit) in [(("HAPAX__INTAKE__QUEUE_JOBS", "8"), 4), (("HAPAX__INTAKE__QUEUE_BYTES", "3400"), 3)] {
        let ledger = Ledger::new().await;
        let server = ledger.serve_with(&[&ONE_WRITER[..], &[bound]].concat()).await;
        let other = server.as_caller(&ledger.token_for("another-tenant", &hapax::access::Scope::ALL).await);
        let (held, first) = hold_up(&ledger, &server).await;
        let mut waiting = queue(&server, jobs(fit - 1)).await;
        for _ in 0..3 {
            let refused = server.submit("one-more", job(9)).await;
            refused.is_problem(503, "overloaded");
            refused.assert_retry_after();
        }
        assert_eq!(server.metric(r#"hapax_shed_requests_total{reason="tenant_queue_full"}"#).await, 3.0);
        waiting.push(other.submit_in_background("of-another", job(1)));
        assert!(!first.is_finished() && waiting.iter().all(|request| !request.is_finished()));
        held.roll_back().await;
        assert_eq!(statuses(waiting).await, vec![201; fit as usize]);
        assert_eq!(server.submit("one-more", job(9)).await.status, 201);
        ledger.assert_consistent(fit as i64 + 3).await;
    }
}

#[tokio::test]
async fn a_connection_killed_during_a_batch_is_invisible_to_clients() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&ONE_WRITER).await;
    let (held, first) = hold_up(&ledger, &server).await;
    let waiting = queue(&server, jobs(20)).await;
    // First while the writer waits, then in whatever state it is.
    assert!(ledger.end_sessions().await >= 1);
    held.roll_back().await;
    ledger.end_sessions().await;
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(statuses(waiting).await, [201; 20]);
    assert!(server.metric(r#"hapax_database_retries_total{reason="lost"}"#).await >= 1.0);
    ledger.assert_consistent(22).await;
}

#[tokio::test]
async fn a_batch_whose_acknowledgement_was_lost_recognises_its_own_rows() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &ONE_WRITER).await;
    let elsewhere = ledger.serve().await;
    assert_eq!(elsewhere.submit("key-3", job(3)).await.status, 201);
    let (held, _first) = hold_up(&ledger, &server).await;
    let waiting = queue(&server, jobs(8)).await;
    proxy.fail_next("key-5", Fault::CutAfter);
    held.roll_back().await;
    for (n, request) in waiting.into_iter().enumerate() {
        let answer = request.await.unwrap();
        let wanted = if n == 3 { (200, "true") } else { (201, "false") };
        assert_eq!((answer.status, answer.header("idempotent-replayed")), wanted, "{n}");
    }
    assert!(proxy.is_done());
    ledger.assert_consistent(10).await;
}

#[tokio::test]
async fn a_refused_batch_is_split_even_after_a_lost_attempt() {
    let ledger = Ledger::new().await;
    ledger.execute("alter table jobs add constraint no_poison check (type <> 'poison')").await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &ONE_WRITER).await;
    let (held, _first) = hold_up(&ledger, &server).await;
    let poison = ("poison".to_owned(), json!({ "type": "poison", "payload": 0 }));
    let waiting = queue(&server, jobs(7).chain([poison])).await;
    proxy.fail_next("key-5", Fault::CutBefore);
    held.roll_back().await;
    assert_eq!(statuses(waiting).await, [vec![201; 7], vec![503]].concat());
    assert!(proxy.is_done());
    ledger.assert_consistent(9).await;
}

#[tokio::test]
async fn during_silence_only_sent_submissions_have_an_unknown_outcome() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let settings = [&SHORT_DEADLINES[..], &ONE_WRITER].concat();
    let server = ledger.serve_through(&proxy, &settings).await;
    server.submit_with_retries("warm-up", job(0)).await;
    proxy.fail_next("sent", Fault::BlackHole);
    let sent = server.submit_in_background("sent", job(1));
    while !proxy.is_done() {
        tokio::task::yield_now().await;
    }
    proxy.start_black_hole();
    let waiting: Vec<_> = (0..20).map(|n| server.submit_in_background(&format!("key-{n}"), job(n))).collect();
    for request in waiting {
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_ne!(answer.json()["code"], "outcome-unknown", "it was never sent");
        answer.assert_retry_after();
    }
    sent.await.unwrap().is_problem(503, "outcome-unknown");
    proxy.end_black_hole();
    for (key, body) in jobs(20) {
        assert_eq!(server.submit_with_retries(&key, body).await.status, 201, "its key is unused");
    }
    assert_eq!(server.submit_with_retries("sent", job(1)).await.status, 200, "it was committed without an answer");
    let carried = server.metric(r#"hapax_group_commit_requests_sum{statement="submit_many"}"#).await;
    assert!(carried >= server.metric(BATCHES).await, "no statement is sent for requests that have gone");
    ledger.assert_consistent(22).await;
}

#[tokio::test]
async fn a_dead_database_delays_no_request() {
    let ledger = Ledger::new().await;
    let server =
        ledger.serve_with(&[&SHORT_DEADLINES[..], &[("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "300ms")]].concat()).await;
    server.submit_with_retries("warm-up", job(0)).await;
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    for round in 0..3 {
        let waiting: Vec<_> =
            (0..100).map(|n| server.submit_in_background(&format!("key-{round}-{n}"), job(n))).collect();
        for request in waiting {
            let answer = request.await.unwrap();
            // Only requests that were sent before the failure was noticed may have been executed.
            let code = answer.json()["code"].clone();
            assert!(code == "database-unavailable" || (round == 0 && code == "outcome-unknown"), "{answer:?}");
            assert_eq!(answer.status, 503);
            answer.assert_retry_after();
        }
        assert_eq!(server.metric("hapax_intake_queue_jobs").await, 0.0);
    }
    ledger.rename_back_from(&away).await;
    assert_eq!(server.submit_with_retries("key-0-0", job(0)).await.status, 201);
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn a_stopping_replica_answers_all_accepted_submissions() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&ONE_WRITER).await;
    let (held, first) = hold_up(&ledger, &server).await;
    let waiting = queue(&server, jobs(20)).await;
    server.signal(Signal::TERM);
    server.until_logged("accepted requests are finished first").await;
    held.roll_back().await;
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(statuses(waiting).await, [201; 20]);
    server.until_logged("stopped").await;
    assert!(!server.log_text().contains("cut off"), "the writers end in time");
    assert!(server.ended().await);
    ledger.assert_consistent(22).await;
}

#[tokio::test]
async fn items_of_a_batch_share_a_statement() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&ONE_WRITER).await;
    let lines: Vec<String> =
        (0..500).map(|n| json!({ "idempotency_key": format!("key-{n}"), "job": job(n) }).to_string()).collect();
    let answer = server.submit_batch(lines.join("\n")).await;
    assert!(answer.items().iter().all(|item| item.status == 201));
    let batches = server.metric(BATCHES).await;
    assert!(batches < 50.0, "{batches} statements for 500 items");
    ledger.assert_consistent(500).await;
}
