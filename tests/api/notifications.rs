//! What one replica commits wakes requests that wait on another.

use hapax::access::Scope;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::harness::{Answer, Claim, Ledger, NO_QUOTAS, Pooler, Proxy, SHORT_DEADLINES, Server, job, new_id};

/// Requests that nothing wakes wait for longer than their client.
const ONLY_WOKEN: (&str, &str) = ("HAPAX__CLAIMS__POLL_INTERVAL", "1h");
const CONNECTED: &str = "hapax_notifications_connected";

/// A replica whose waiting requests look only when they are woken. Returns once it listens.
async fn replica(ledger: &Ledger) -> Server {
    let server = ledger.serve_with(&[&NO_QUOTAS[..], &[ONLY_WOKEN]].concat()).await;
    server.until_metric_is(CONNECTED, 1.0).await;
    server
}

/// Claims a job of the queue `default` in a background task. Returns once the request waits.
async fn waiting_for_a_job(server: &Server) -> JoinHandle<Answer> {
    let (client, id) = ((**server).clone(), new_id());
    let body = json!({ "queues": ["default"], "wait_seconds": 30 });
    let waiting = tokio::spawn(async move { client.claim(&id, body).await });
    server.until_metric_is("hapax_waiting_requests", 1.0).await;
    waiting
}

/// Waits for the end of a job in a background task. Returns once the request waits.
async fn waiting_for_the_end(server: &Server, id: &str) -> JoinHandle<Answer> {
    let (client, path) = ((**server).clone(), format!("/jobs/{id}?wait_seconds=30"));
    let waiting = tokio::spawn(async move { client.get(&path).await });
    server.until_metric_is("hapax_waiting_requests", 1.0).await;
    waiting
}

/// A query of the sessions in which the servers exchange notifications.
fn sessions(what: &str) -> String {
    format!(
        "select {what} from pg_stat_activity where datname = current_database() and application_name = 'hapax' \
         and query ~ '/[*] (listen|notify) [*]/'"
    )
}

/// What makes a job available to workers.
const WAYS: [&str; 7] = ["POST", "unique", "PUT", "batch", "PATCH", "PATCH with a key", "retry"];

/// The job that a PATCH or a retry makes available, or a new id.
async fn prepare(server: &Server, way: &str, key: &str) -> String {
    let (first, later) =
        (format!("first-{key}"), json!({ "type": "t", "payload": 1, "run_at": "9999-01-01T00:00:00Z" }));
    match way {
        "PATCH" | "PATCH with a key" => server.submit(&first, later).await.job_id(),
        "retry" => {
            let id = server.submit(&first, later).await.job_id();
            assert_eq!(server.cancel(&id).await.status, 200);
            id
        }
        _ => new_id(),
    }
}

/// Returns the id of the job.
async fn make_available(server: &Server, way: &str, key: &str, prepared: String) -> String {
    let body = json!({ "type": "t", "payload": key });
    let unique = json!({ "type": "t", "payload": key, "unique": { "by": ["/payload"] } });
    let now = r#"{"run_at":null}"#;
    let answer = match way {
        "POST" => server.submit(key, body).await,
        "unique" => server.submit(key, unique).await,
        "PUT" => server.put(&prepared, body).await,
        "batch" => server.submit_batch(json!({ "idempotency_key": key, "job": body })).await.items().remove(0),
        "PATCH" => server.patch(&prepared, "*", now).await,
        "PATCH with a key" => server.send(server.patch_job(&prepared, "*", now).header("idempotency-key", key)).await,
        _ => server.retry(&prepared, key).await,
    };
    assert!([200, 201].contains(&answer.status), "{way}: {answer:?}");
    answer.job_id()
}

#[tokio::test]
async fn a_waiting_worker_gets_a_job_however_and_wherever_it_becomes_available() {
    let ledger = Ledger::new().await;
    let (one, two) = (replica(&ledger).await, replica(&ledger).await);
    for (replica, waits_on) in [("same", &one), ("another", &two)] {
        for way in WAYS {
            let key = format!("{way}-{replica}").replace(' ', "-");
            let prepared = prepare(&one, way, &key).await;
            let waiting = waiting_for_a_job(waits_on).await;
            let id = make_available(&one, way, &key, prepared).await;
            let answer = waiting.await.unwrap();
            assert_eq!(answer.status, 201, "{key}: {answer:?}");
            assert_eq!(Claim::of(&answer).job(), id, "{key}");
        }
    }
    assert!(two.metric(r#"hapax_notified_events_total{result="received"}"#).await >= WAYS.len() as f64);
    assert_eq!(one.metric(r#"hapax_notified_events_total{result="received"}"#).await, 0.0, "its own do not count");
}

#[tokio::test]
async fn a_client_that_waits_on_one_replica_learns_an_end_on_another() {
    let ledger = Ledger::new().await;
    let (one, two) = (replica(&ledger).await, replica(&ledger).await);
    // A request looks when it comes, and when it is woken. Without that, the answer would be the same, at the end of the wait.
    let looks = r#"hapax_database_statement_duration_seconds_count{statement="find_job_without_payload"}"#;
    for (how, looked) in [("succeeded", 2.0), ("cancelled", 4.0), ("deleted", 6.0)] {
        let id = one.submit(how, job(1)).await.job_id();
        let waiting = waiting_for_the_end(&two, &id).await;
        match how {
            "succeeded" => {
                let claim = one.take().await;
                one.settle(&claim.id, &id, how).await;
            }
            "cancelled" => drop(one.cancel(&id).await),
            _ => drop(one.delete(&id).await),
        }
        let answer = waiting.await.unwrap();
        match how {
            "deleted" => answer.is_problem(410, "job-deleted"),
            _ => assert_eq!(answer.json()["state"], how),
        }
        assert_eq!(two.metric(looks).await, looked, "{how}");
    }
}

#[tokio::test]
async fn a_replica_whose_connection_for_notifications_is_lost_opens_another_and_has_missed_nothing() {
    let ledger = Ledger::new().await;
    let (one, two) = (replica(&ledger).await, replica(&ledger).await);
    let waiting = waiting_for_a_job(&two).await;
    // No replica knows of this job.
    ledger.fill_queue("default", 1).await;
    assert_eq!(ledger.number(&sessions("count(pg_terminate_backend(pid, 60000))")).await, 2);
    assert_eq!(Claim::of(&waiting.await.unwrap()).jobs.len(), 1);

    ledger.until(&sessions("count(*)"), |listening| listening == 2).await;
    two.until_metric_is(CONNECTED, 1.0).await;
    let waiting = waiting_for_a_job(&two).await;
    let id = one.submit("k", job(1)).await.job_id();
    assert_eq!(Claim::of(&waiting.await.unwrap()).job(), id);
    two.until_logged("there is a connection for notifications again").await;
    assert_eq!(two.log_text().matches("no connection for notifications").count(), 1, "{}", two.log_text());
}

#[tokio::test]
async fn a_server_that_vanishes_without_a_word_is_noticed() {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &SHORT_DEADLINES).await;
    server.until_metric_is(CONNECTED, 1.0).await;
    proxy.start_black_hole();
    server.until_metric_is(CONNECTED, 0.0).await;
    proxy.end_black_hole();
    server.until_metric_is(CONNECTED, 1.0).await;
}

#[tokio::test]
async fn no_replica_listens_behind_a_transaction_pooler_or_if_the_setting_is_off() {
    let ledger = Ledger::new().await;
    let pooler = Pooler::in_front_of(&ledger, 4).await;
    let often = ("HAPAX__CLAIMS__POLL_INTERVAL", "20ms");
    let off = [often, ("HAPAX__CLAIMS__NOTIFY_REPLICAS", "false")];
    for (n, [one, two]) in [
        [pooler.serve(&ledger, &[often]).await, pooler.serve(&ledger, &[often]).await],
        [ledger.serve_with(&off).await, ledger.serve_with(&off).await],
    ]
    .into_iter()
    .enumerate()
    {
        let waiting = waiting_for_a_job(&two).await;
        let id = one.submit(&n.to_string(), job(1)).await.job_id();
        assert_eq!(Claim::of(&waiting.await.unwrap()).job(), id);
        for server in [one, two] {
            let text = server.metrics_text().await;
            for unused in [CONNECTED, r#"hapax_notified_events_total{result="sent"}"#] {
                assert!(text.contains(&format!("{unused} 0\n")), "{text}");
            }
        }
        assert_eq!(ledger.number(&sessions("count(*)")).await, 0);
    }
}

#[tokio::test]
async fn a_tenant_with_thousands_of_queues_does_not_displace_the_events_of_another() {
    let ledger = Ledger::new().await;
    let url = ledger.url_of_ordinary_user().await;
    let settings = [("HAPAX__DATABASE__CONNECT_TIMEOUT", "1s"), ("HAPAX__ACCESS__CACHE_LIFE", "1h")];
    let one = Server::start(&url, &ledger.token, &[&NO_QUOTAS[..], &settings].concat()).await;
    let two = replica(&ledger).await;
    let globex = one.as_caller(&ledger.token_for("globex", &Scope::ALL).await);
    let of_queue = |queue: &str| json!({ "type": "t", "payload": 1, "queue": queue });
    for client in [&*one, &globex] {
        client.submit_with_retries("warm-up", of_queue("other")).await;
    }
    // The replica keeps its open connections, and gets no new one for notifications.
    one.until_metric(r#"hapax_notified_events_total{result="sent"}"#, 2.0).await;
    ledger.limit_connections(1).await;
    let end = sessions("count(pg_terminate_backend(pid, 60000))") + " and usename <> current_user";
    assert_eq!(ledger.number(&end).await, 1);
    one.until_metric_is(CONNECTED, 0.0).await;
    for batch in 0..3 {
        let line = |n| json!({ "idempotency_key": format!("{batch}-{n}"), "job": of_queue(&format!("q-{batch}-{n}")) });
        let lines: Vec<String> = (0..1000).map(|n: u32| line(n).to_string()).collect();
        let answer = globex.submit_batch(lines.join("\n")).await;
        assert!(answer.items().iter().all(|item| item.status == 201), "{answer:?}");
    }
    assert_eq!(one.metric(r#"hapax_notified_events_total{result="dropped"}"#).await, 3000.0 - 256.0);

    let waiting = waiting_for_a_job(&two).await;
    let id = one.submit("k", job(1)).await.job_id();
    ledger.limit_connections(-1).await;
    assert_eq!(Claim::of(&waiting.await.unwrap()).job(), id);
}
