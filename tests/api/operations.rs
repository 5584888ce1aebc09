//! Operations: metrics, probes, health checks and shutdown.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rustix::process::Signal;

use crate::harness::{Answer, Ledger, Server, job, run_hapax, until};

const PAGE: &str = include_str!("../../docs/metrics.md");

/// Name, type and labels of each metric on the page.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let labels = cells[3].split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels))
    })
    .collect()
}

/// The same, as a server exposes them.
fn exposed(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut metrics = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let exposed = format!("{name}{suffix}");
        let sample = if kind == "histogram" { format!("{name}_bucket") } else { exposed.clone() };
        // A route contains braces, too; the labels' braces are the last.
        let labels = text.lines().find_map(|line| line.strip_prefix(&sample)?.strip_prefix('{')?.rsplit_once('}'));
        let labels = labels.map(|(labels, _)| labels);
        let labels = labels.unwrap_or_default().split("\",").filter_map(|pair| pair.split('=').next());
        let labels = labels.filter(|label| !label.is_empty() && *label != "le").map(str::to_owned).collect();
        metrics.insert(exposed, (kind.to_owned(), labels));
    }
    metrics
}

#[tokio::test]
async fn the_metrics_page_equals_the_programs_output() {
    let printed = run_hapax(&["metrics"], &[]).await.stdout;
    assert!(String::from_utf8(printed).unwrap() == PAGE, "run `make metrics-page`");
}

#[tokio::test]
async fn every_metric_is_documented_with_its_type_and_labels() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__QUOTA__REPLAYS_PER_SECOND", "1"), ("HAPAX__QUOTA__REPLAYS_BURST", "1")];
    let server = ledger.serve_with(&[&settings[..], &[("HAPAX__SERVER__REQUESTS_IN_FLIGHT", "1")]].concat()).await;
    // One sample for each metric that has labels.
    server.submit("k", job(1)).await;
    server.submit("k", job(1)).await;
    ledger.end_sessions().await;
    let held = ledger.hold_key("held").await;
    let waiting = server.submit_in_background("held", job(2));
    ledger.until_waiting(1).await;
    server.submit("one-more", job(3)).await.is_problem(503, "overloaded");
    held.roll_back().await;
    waiting.await.unwrap();
    assert_eq!(exposed(&server.metrics_text().await), documented());
}

#[tokio::test]
async fn alerts_and_dashboard_use_only_documented_metrics() {
    let known = documented();
    for (file, text) in [
        ("alerts", include_str!("../../deploy/prometheus-alerts.yaml")),
        ("dashboard", include_str!("../../deploy/grafana-dashboard.json")),
        ("runbook", include_str!("../../docs/runbook.md")),
    ] {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let used: BTreeSet<&str> = words.filter(|word| word.starts_with("hapax_")).collect();
        assert!(!used.is_empty(), "{file} uses some");
        for name in used {
            let series = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let known = known.contains_key(name) || series.is_some_and(|series| known.contains_key(series));
            assert!(known, "{file} uses {name}");
        }
    }
}

#[tokio::test]
async fn the_operations_address_serves_only_probes_and_metrics() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let operations = server.operations();
    server.until_status("/readyz", 200).await;
    assert_eq!(operations.get("/healthz").await.status, 200);
    operations.until_status("/readyz", 200).await;
    let metrics = Answer::of(operations.request("GET", "/metrics").send().await.unwrap()).await;
    assert_eq!(metrics.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let mut kept_alive = operations.raw().await;
    for path in ["/metrics", "/healthz", "/readyz"] {
        kept_alive.write_head(&format!("HEAD {path}"), &[]).await;
        let status = kept_alive.answer_to_head().await.status;
        assert!(status == 200 || (path, status) == ("/readyz", 503), "{path}: {status}");
    }
    for (method, path, status, code) in
        [("POST", "/metrics", 405, "method-not-allowed"), ("GET", "/jobs/x", 404, "route-not-found")]
    {
        let answer = Answer::of(operations.request(method, path).send().await.unwrap()).await;
        answer.is_problem(status, code);
    }
    assert_eq!(server.metric("hapax_ready").await, 1.0);
}

async fn health(server: &Server, arguments: &[&str]) -> Result<(), String> {
    let any = |address: SocketAddr| format!("0.0.0.0:{}", address.port());
    let (api, operations) = (any(server.address), any(server.operations().address));
    let environment = [("HAPAX__SERVER__BIND", api.as_str()), ("HAPAX__METRICS__BIND", operations.as_str())];
    let output = run_hapax(&[&["health"], arguments].concat(), &environment).await;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[tokio::test]
async fn hapax_health_distinguishes_alive_ready_and_gone() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "200ms")]).await;
    server.until_status("/readyz", 200).await;
    assert_eq!((health(&server, &[]).await, health(&server, &["--ready"]).await), (Ok(()), Ok(())));
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    server.until_status("/readyz", 503).await;
    assert_eq!(health(&server, &[]).await, Ok(()));
    until("the command reports that the server is not ready", async || {
        let unready = health(&server, &["--ready"]).await.err();
        unready.filter(|unready| unready.contains("/readyz answers 503"))
    })
    .await;
    ledger.rename_back_from(&away).await;
    server.signal(Signal::STOP);
    let silent = health(&server, &[]).await.unwrap_err();
    assert!(silent.contains("/healthz does not answer"), "{silent}");
}

#[tokio::test]
async fn a_stopping_server_fails_readiness_and_keeps_serving() {
    let ledger = Ledger::new().await;
    let long_drain = [("HAPAX__SERVER__DRAIN_DELAY", "10m"), ("HAPAX__SERVER__SHUTDOWN_DEADLINE", "20m")];
    let server = ledger.serve_with(&long_drain).await;
    let before = server.submit("key-1", job(1)).await;
    assert!(!before.headers.contains_key("connection"), "{before:?}");
    let mut kept_alive = server.raw().await;
    kept_alive.write_head("GET /healthz", &[]).await;
    assert_eq!(kept_alive.answer().await.status, 200);

    server.signal(Signal::TERM);
    server.until_logged("no longer ready").await;
    server.get("/readyz").await.is_problem(503, "not-ready");
    server.operations().get("/readyz").await.is_problem(503, "not-ready");
    // New and old connections are served. Each answer asks the client to reconnect elsewhere.
    let during = server.submit("key-2", job(2)).await;
    assert_eq!((during.status, during.header("connection")), (201, "close"));
    kept_alive.write_head("GET /healthz", &[]).await;
    assert_eq!(kept_alive.answer().await.header("connection"), "close");

    let held = ledger.hold_key("key-3").await;
    let under_way = server.submit_in_background("key-3", job(3));
    ledger.until_waiting(1).await;
    held.roll_back().await;
    assert_eq!(under_way.await.unwrap().status, 201);
    ledger.assert_consistent(3).await;
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_immediately() {
    let ledger = Ledger::new().await;
    let long_drain = [("HAPAX__SERVER__DRAIN_DELAY", "10m"), ("HAPAX__SERVER__SHUTDOWN_DEADLINE", "20m")];
    let mut server = ledger.serve_with(&long_drain).await;
    server.signal(Signal::TERM);
    server.until_logged("no longer ready").await;
    // A second signal within one second may be an echo of the first, and is ignored.
    while !server.has_ended() {
        server.signal(Signal::TERM);
        tokio::task::yield_now().await;
    }
    assert!(!server.ended().await);
}

#[tokio::test]
async fn the_shutdown_deadline_ends_a_hanging_shutdown() {
    let ledger = Ledger::new().await;
    let settings = [("HAPAX__SERVER__SHUTDOWN_DEADLINE", "5s"), ("HAPAX__SERVER__BODY_DEADLINE", "10m")];
    let server = ledger.serve_with(&settings).await;
    let mut slow = server.raw().await;
    let head: [&[u8]; 3] = [b"idempotency-key: k", b"content-type: application/json", b"content-length: 1000"];
    slow.write_head("POST /jobs", &head).await;
    server.until_metric("hapax_http_requests_in_flight", 1.0).await;
    server.signal(Signal::TERM);
    assert!(server.ended().await);
    ledger.assert_consistent(0).await;
}

#[tokio::test]
async fn probes_are_logged_only_when_they_fail() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "200ms")]).await;
    server.get("/healthz").await;
    server.get("/readyz").await;
    server.metrics_text().await;
    let away = format!("{}_away", ledger.name);
    ledger.rename_to(&away).await;
    let failed = server.until_status("/readyz", 503).await;
    let lines = server.log_until(failed.header("x-request-id")).await;
    let answered = lines.iter().filter(|line| line["message"] == "answered");
    assert!(answered.into_iter().all(|line| line["status"] == 503));
    ledger.rename_back_from(&away).await;
}
