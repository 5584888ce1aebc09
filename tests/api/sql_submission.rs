//! Jobs that an application submits in its own transaction, by `hapax.submit_job`.

use serde_json::{Value, json};

use crate::harness::{Ledger, job};

#[tokio::test]
async fn a_job_submitted_in_a_transaction_exists_only_if_the_transaction_commits() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let submit = "create table if not exists public.orders (id int); insert into public.orders values (1); \
                  select hapax.submit_job('acme', 'order-1', 'mail.send', '{\"order\":1}')";
    ledger.hold(submit).await.roll_back().await;
    assert_eq!((ledger.jobs().await, ledger.keys().await), (0, 0));

    ledger.hold(submit).await.commit().await;
    ledger.assert_consistent(1).await;
    let body = json!({ "payload": { "order": 1 }, "type": "mail.send", "queue": "default" });
    let replayed = server.submit("order-1", &body).await;
    assert_eq!((replayed.status, replayed.header("idempotent-replayed")), (200, "true"));
    let mut shown = server.get(replayed.header("location")).await.json();
    assert_eq!(shown.as_object_mut().unwrap().remove("payload"), Some(body["payload"].clone()));
    assert_eq!(shown, replayed.json());
    server.submit("order-1", job(2)).await.is_problem(422, "idempotency-key-reused");
}

#[tokio::test]
async fn a_key_names_one_job_whether_sql_or_http_came_first() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let first = server.submit("k", json!({ "type": "t", "payload": 1, "priority": 1 })).await.job_id();
    let again = "select job_id::text || created from hapax.submit_job('acme', 'k', 't', '1', p_priority => 1)";
    assert_eq!(ledger.text(again).await, format!("{first}false"));
    let other = "select hapax.submit_job('acme', 'k', 't', '2')";
    let refused = ledger.execute_as(&ledger.url, other).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "HX422");
    ledger.expire("k").await;
    let anew = "select created::text from hapax.submit_job('acme', 'k', 't', '2')";
    assert_eq!(ledger.text(anew).await, "true");
    assert_eq!(server.submit("k", json!({ "type": "t", "payload": 2 })).await.status, 200);
}

/// The fingerprint is computed twice, by the service and in SQL.
#[tokio::test]
async fn sql_and_http_compute_the_same_fingerprint() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for (number, payload) in [
        r#"{"b":1,"a":[true,null,{"z":{},"y":[]}],"":"x"}"#,
        r#" { "n" : [ 1.0, -0, 1e5, 12345678901234567890123 ] } "#,
        r#"{"s":"\u00e9\/\"\\\b\f\n\r\t\u0001\u007f\ud83d\ude00 é😀"}"#,
        r#"{"a":1,"a":2,"Z":0,"é":1,"\u0065":2}"#,
        r#""plain""#,
        "null",
        "[[[]]]",
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key-{number}");
        let body = format!(
            r#"{{"type":"a\"\\b","payload":{payload},"queue":"q","run_at":"2030-01-01T01:00:00.5+01:00","max_attempts":3}}"#
        );
        let made = server.submit(&key, &body).await;
        assert_eq!(made.status, 201, "{made:?}");
        let again = format!(
            "select job_id::text || created from hapax.submit_job('acme', '{key}', 'a\"\\b', $json${payload}$json$, 'q', \
             p_run_at => '2030-01-01T00:00:00.5Z', p_max_attempts => 3)"
        );
        assert_eq!(ledger.text(&again).await, format!("{}false", made.job_id()), "{payload}");
    }
}

#[tokio::test]
async fn the_answer_stored_by_sql_has_the_form_of_the_service() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    ledger.execute("select hapax.submit_job('acme', 'by-sql', 't', '1')").await;
    let members = |answer: Value| answer.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let body = json!({ "type": "t", "payload": 1 });
    let (by_sql, by_http) = (server.submit("by-sql", &body).await, server.submit("by-http", &body).await);
    assert_eq!(members(by_sql.json()), members(by_http.json()));
    assert_eq!(by_sql.body.len(), by_http.body.len());
}

#[tokio::test]
async fn a_null_option_counts_as_left_out() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let nulls = "select hapax.submit_job('acme', 'k', 't', '1', null, null, null, null)";
    ledger.execute(nulls).await;
    let replayed = server.submit("k", json!({ "type": "t", "payload": 1 })).await;
    assert_eq!((replayed.status, replayed.json()["queue"].as_str()), (200, Some("default")));
}

#[tokio::test]
async fn values_that_the_service_would_refuse_are_refused() {
    let ledger = Ledger::new().await;
    for (call, code) in [
        ("'nobody', 'k', 't', '1'", "HX404"),
        ("'acme', 'k', 't', '1', p_run_at => 'infinity'", "22008"),
        ("'acme', 'k', 't', '1', p_run_at => '0002-01-01 BC'", "22008"),
        ("'acme', 'k', 't', '1', p_time_to_live => '0'", "22023"),
        ("'acme', 'k', 't', '1', p_time_to_live => '367 days'", "22023"),
        ("'acme', 'k', 't', '1', p_time_to_live => null", "22023"),
        ("'acme', 'k', 't', '1', p_priority => 5", "23514"),
        ("'acme', '', 't', '1'", "23514"),
        ("'acme', null, 't', '1'", "23502"),
        ("'acme', 'k', 't', null", "23502"),
    ] {
        let error = ledger.execute_as(&ledger.url, &format!("select hapax.submit_job({call})")).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), code, "{call}");
    }
    assert_eq!((ledger.jobs().await, ledger.keys().await), (0, 0));
}

const PAGE: &str = include_str!("../../docs/clients.md");

/// The privileges that the page grants to the role `app`, each as `select on hapax.tenants`.
fn privileges_of_the_page() -> Vec<String> {
    let block = PAGE.split("```sql\n").find(|block| block.starts_with("grant ")).unwrap();
    let (grants, _) = block.split_once("```").unwrap();
    let mut privileges = Vec::new();
    for grant in grants.lines() {
        let granted = grant.strip_prefix("grant ").and_then(|grant| grant.strip_suffix(" to app;")).unwrap();
        let (actions, objects) = granted.split_once(" on ").unwrap();
        for action in actions.split(", ") {
            privileges.extend(objects.split(", ").map(|object| format!("{action} on {object}")));
        }
    }
    privileges
}

#[tokio::test]
async fn a_role_needs_exactly_the_privileges_that_the_page_grants() {
    let ledger = Ledger::new().await;
    let (role, privileges) = (&ledger.name, privileges_of_the_page());
    ledger.execute(&format!("create role {role}")).await;
    for privilege in &privileges {
        ledger.execute(&format!("grant {privilege} to {role}")).await;
    }
    let submit = |key: &str| format!("set role {role}; select hapax.submit_job('acme', '{key}', 't', '1')");
    ledger.execute(&submit("new")).await;
    ledger.execute(&submit("new")).await;
    ledger.expire("new").await;
    ledger.execute(&submit("new")).await;
    assert_eq!((ledger.jobs().await, ledger.keys().await), (2, 1));
    for (number, privilege) in privileges.iter().enumerate() {
        let (free, kept) = (format!("free-{number}"), format!("kept-{number}"));
        for key in [&free, &kept] {
            ledger.execute(&submit(key)).await;
        }
        ledger.expire(&free).await;
        ledger.pass_expiry(&kept).await;
        ledger.execute(&format!("revoke {privilege} from {role}")).await;
        let mut refused = 0;
        for key in ["other", &free, &kept] {
            if let Err(error) = ledger.execute_as(&ledger.url, &submit(key)).await {
                assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{privilege}: {error}");
                refused += 1;
            }
        }
        assert!(refused > 0, "{privilege} is not needed");
        ledger.execute(&format!("grant {privilege} to {role}")).await;
        ledger.execute("delete from idempotency_keys where key = 'other'").await;
    }
}
