//! Quotas that an operator sets for one tenant.

use std::process::Output;

use hapax::access::Scope;
use serde_json::json;

use crate::harness::{Answer, Client, Ledger, NO_QUOTAS, Server, job, run_hapax, until};
use crate::quotas::{is_refused, remaining};

/// The server looks up the tenant's settings with each request.
const NO_CACHE: [(&str, &str); 1] = [("HAPAX__ACCESS__CACHE_LIFE", "0s")];

const DEFAULTS: &str = r#""requests";q=2000;w=2, "replays";q=250;w=25, "creations";q=2000;w=2"#;

/// Runs `hapax tenant`.
async fn tenant(ledger: &Ledger, arguments: &[&str]) -> Output {
    run_hapax(&[&["tenant"], arguments].concat(), &[("DATABASE_URL", &ledger.url)]).await
}

/// Runs `hapax tenant set acme`. Returns what it prints.
async fn set(ledger: &Ledger, options: &[&str]) -> String {
    let output = tenant(ledger, &[&["set", "acme"], options].concat()).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn caller(ledger: &Ledger, server: &Server, tenant: &str) -> Client {
    server.as_caller(&ledger.token_for(tenant, &Scope::ALL).await)
}

/// The policies of an answer to a new job.
async fn policies(client: &Client) -> String {
    let key = uuid::Uuid::new_v4().to_string();
    client.submit(&key, job(1)).await.header("ratelimit-policy").to_owned()
}

/// Sends requests until one is refused. They are faster than a quota of one a second refills.
async fn until_refused(request: impl AsyncFn(u64) -> Answer) -> Answer {
    for n in 0..100 {
        let answer = request(n).await;
        if answer.status == 429 {
            return answer;
        }
    }
    panic!("none of 100 requests was refused");
}

/// Submits a batch of new jobs. Returns how many were refused.
async fn refused_of_30(client: &Client) -> usize {
    let line = |_| json!({ "idempotency_key": uuid::Uuid::new_v4(), "job": job(1) }).to_string() + "\n";
    let answers = client.submit_batch((0..30).map(line).collect::<String>()).await.items();
    answers.iter().filter(|answer| answer.status == 429).count()
}

#[tokio::test]
async fn a_tenant_can_have_a_lower_quota_of_new_jobs() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_CACHE).await;
    let other = caller(&ledger, &server, "globex").await;
    let first = server.submit("key-0", job(0)).await;
    set(&ledger, &["--creations-quota", "1:4"]).await;
    assert!(refused_of_30(&server).await > 10);
    let refused = until_refused(async |n| server.submit(&format!("key-{n}"), job(n)).await).await;
    is_refused(&refused, "creations");
    let lower = DEFAULTS.replace(r#""creations";q=2000;w=2"#, r#""creations";q=4;w=4"#);
    assert_eq!(refused.header("ratelimit-policy"), lower);
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("of 4 in 4 s is used up"), "{detail}");
    let refused = until_refused(async |n| server.put(uuid::Uuid::new_v4(), job(n)).await).await;
    is_refused(&refused, "creations");

    let replay = server.submit("key-0", job(0)).await;
    assert_eq!((replay.status, &replay.body), (200, &first.body));
    assert_eq!(refused_of_30(&other).await, 0, "another tenant has the configured quota");
    assert_eq!(policies(&other).await, DEFAULTS);
}

#[tokio::test]
async fn a_quota_of_new_jobs_can_be_raised_lifted_and_reset() {
    let ledger = Ledger::new().await;
    let low = [("HAPAX__QUOTA__CREATIONS_PER_SECOND", "1"), ("HAPAX__QUOTA__CREATIONS_BURST", "2")];
    let server = ledger.serve_with(&[&NO_CACHE[..], &low].concat()).await;
    let other = caller(&ledger, &server, "globex").await;
    assert!(refused_of_30(&server).await > 10);

    set(&ledger, &["--creations-quota", "100000:5000"]).await;
    // The bucket was empty and stays empty, but refills quickly.
    let answer = server.submit_with_retries("key-1", job(1)).await;
    assert!(answer.status == 201 && answer.header("ratelimit-policy").ends_with(r#""creations";q=5000;w=1"#));
    assert!(refused_of_30(&other).await > 10, "another tenant has the configured quota");

    set(&ledger, &["--creations-quota", "unlimited"]).await;
    assert_eq!(refused_of_30(&server).await, 0);
    assert_eq!(policies(&server).await, r#""requests";q=2000;w=2, "replays";q=250;w=25"#);

    set(&ledger, &["--creations-quota", "default"]).await;
    assert!(refused_of_30(&server).await > 10);
    let refused = until_refused(async |n| server.submit(&format!("reset-{n}"), job(n)).await).await;
    assert!(refused.header("ratelimit-policy").ends_with(r#""creations";q=2;w=2"#), "{refused:?}");
}

#[tokio::test]
async fn a_tenant_can_have_its_own_quotas_of_requests_and_replays() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&NO_CACHE).await;
    let large = caller(&ledger, &server, "acme").await;
    set(&ledger, &["--requests-quota", "1:30", "--replays-quota", "1:5"]).await;
    let refused = until_refused(async |_| server.submit("key", job(1)).await).await;
    is_refused(&refused, "replays");
    assert_eq!(refused.header("ratelimit-policy"), r#""requests";q=30;w=30, "replays";q=5;w=5"#);
    let id = server.put(uuid::Uuid::new_v4(), job(1)).await.job_id();
    let change = async |_| server.send(server.patch_job(&id, "*", "{}").header("idempotency-key", "key")).await;
    is_refused(&until_refused(change).await, "replays");
    is_refused(&until_refused(async |_| server.get("/jobs").await).await, "requests");

    // A body of 800 KiB would cost 50 requests, which is more than the burst.
    let body = json!({ "type": "t", "payload": "x".repeat(800 * 1024) });
    let answer = large.submit("large", body).await;
    assert!(answer.status == 201 && remaining(&answer, "requests") < 5, "{answer:?}");
    assert!(answer.header("ratelimit-policy").starts_with(r#""requests";q=30;w=30"#), "{answer:?}");
}

#[tokio::test]
async fn a_tenant_can_have_quotas_where_the_service_has_none() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[&NO_CACHE[..], &NO_QUOTAS].concat()).await;
    set(&ledger, &["--creations-quota", "1:4"]).await;
    let refused = until_refused(async |n| server.submit(&format!("key-{n}"), job(n)).await).await;
    is_refused(&refused, "creations");
    assert_eq!(refused.header("ratelimit-policy"), r#""creations";q=4;w=4"#);
}

#[tokio::test]
async fn a_changed_quota_takes_effect_when_the_cached_token_expires() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "1s")]).await;
    let remembering = ledger.serve_with(&[("HAPAX__ACCESS__CACHE_LIFE", "1h")]).await;
    assert_eq!([policies(&server).await, policies(&remembering).await], [DEFAULTS, DEFAULTS]);
    set(&ledger, &["--creations-quota", "10:100"]).await;
    let changed = DEFAULTS.replace(r#""creations";q=2000;w=2"#, r#""creations";q=100;w=10"#);
    until("the change takes effect", async || (policies(&server).await == changed).then_some(())).await;
    assert_eq!(policies(&remembering).await, DEFAULTS);
    assert_eq!(policies(&caller(&ledger, &remembering, "acme").await).await, changed, "a token that was not cached");
}

#[tokio::test]
async fn invalid_tenant_quotas_are_explained() {
    let ledger = Ledger::new().await;
    let is_refused_with = async |arguments: &[&str], words: &str| {
        let refused = tenant(&ledger, arguments).await;
        let error = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && error.contains(words), "{arguments:?}: {error}");
    };
    let expected = "two whole numbers from 1 to 1000000 are expected, PER_SECOND:BURST, such as 50:100";
    for value in ["0:5", "5:0", "1000001:5", "5:1000001", "5", "5:", ":5", "5:5:5", "1.5:2", "1 : 2", "many", ""] {
        is_refused_with(&["set", "acme", "--creations-quota", value], expected).await;
    }
    for option in ["--requests-quota", "--creations-quota", "--replays-quota"] {
        is_refused_with(&["create", "globex", option, "0:5"], expected).await;
        is_refused_with(&["create", "globex", option, "0:5"], option).await;
    }
    is_refused_with(&["set", "acme"], "--creations-quota").await;
    is_refused_with(&["set", "nobody", "--creations-quota", "1:1"], "there is no tenant nobody").await;
}

#[tokio::test]
async fn tenant_quotas_are_listed_and_changed_one_by_one() {
    let ledger = Ledger::new().await;
    let listed = async || String::from_utf8(tenant(&ledger, &["list"]).await.stdout).unwrap();
    let options = ["--key-ttl", "30d", "--requests-quota", "unlimited", "--creations-quota", "1000000:1"];
    assert!(tenant(&ledger, &[&["create", "globex"], &options[..]].concat()).await.status.success());
    for (options, said, shown) in [
        (
            &["--replays-quota", "5:6"][..],
            "tenant acme: replays-quota 5:6; ",
            "key-ttl default  requests-quota default  creations-quota default  replays-quota 5:6",
        ),
        (
            &["--requests-quota", "1:1000000", "--creations-quota", "unlimited"],
            "tenant acme: requests-quota 1:1000000, creations-quota unlimited; ",
            "key-ttl default  requests-quota 1:1000000  creations-quota unlimited  replays-quota 5:6",
        ),
        (
            &["--key-ttl", "90m", "--requests-quota", "default", "--replays-quota", "default"],
            "tenant acme: key-ttl 1h 30m, requests-quota default, replays-quota default; ",
            "key-ttl 1h 30m  requests-quota default  creations-quota unlimited  replays-quota default",
        ),
    ] {
        let printed = set(&ledger, options).await;
        assert!(printed.starts_with(said), "{printed}");
        let listed = listed().await;
        assert!(listed.contains(&format!("  acme  {shown}\n")), "{listed}");
        let globex =
            "  globex  key-ttl 30d  requests-quota unlimited  creations-quota 1000000:1  replays-quota default\n";
        assert!(listed.contains(globex), "{listed}");
    }
}

#[tokio::test]
async fn the_database_refuses_tenant_quotas_that_the_server_would_misread() {
    let ledger = Ledger::new().await;
    for quota in ["requests", "creations", "replays"] {
        for (per_second, burst) in
            [("5", "null"), ("null", "5"), ("0", "5"), ("-1", "null"), ("1000001", "5"), ("5", "0"), ("5", "1000001")]
        {
            let sql = format!("update tenants set {quota}_per_second = {per_second}, {quota}_burst = {burst}");
            let error = ledger.execute_as(&ledger.url, &sql).await.unwrap_err().to_string();
            assert!(error.contains(&format!("tenants_{quota}_")), "{sql}: {error}");
        }
        for (per_second, burst) in [("null", "null"), ("0", "null"), ("1", "1"), ("1000000", "1000000")] {
            ledger
                .execute(&format!("update tenants set {quota}_per_second = {per_second}, {quota}_burst = {burst}"))
                .await;
        }
    }
}
