//! The two database roles of docs/database-roles.md: the owner of the tables and the service.

use serde_json::json;
use url::Url;

use crate::harness::{Ledger, Server, job, run_hapax};

const PAGE: &str = include_str!("../../docs/database-roles.md");

/// The URLs of the two roles.
struct Roles {
    owner: String,
    service: String,
}

/// Runs the SQL of the page, with names of the test's own.
async fn follow_the_page(ledger: &Ledger) -> Roles {
    let (owner, service) = (format!("{}_owner", ledger.name), ledger.name.clone());
    let named = |sql: &str| sql.replace("hapax_owner", &owner).replace("hapax_service", &service);
    let blocks: Vec<String> =
        PAGE.split("```sql").skip(1).map(|block| named(block.split("```").next().unwrap())).collect();
    let [roles, default_privileges, revocations] = &blocks[..] else { panic!("three blocks of SQL: {blocks:?}") };
    // The database already exists and is empty.
    let (roles, _) = roles.split_once("create database").unwrap();
    ledger.execute(&format!("{roles} alter database {service} owner to {owner}")).await;
    let url = |role: &str, password: &str| {
        let mut url = Url::parse(&ledger.url).unwrap();
        url.set_username(role).unwrap();
        url.set_password(Some(password)).unwrap();
        url.to_string()
    };
    let roles = Roles { owner: url(&owner, "owner-password"), service: url(&service, "service-password") };
    ledger.execute_as(&roles.owner, default_privileges).await.unwrap();
    let migrated = run_hapax(&["migrate"], &[("DATABASE_URL", &roles.owner)]).await;
    assert!(migrated.status.success(), "{migrated:?}");
    ledger.execute_as(&roles.owner, revocations).await.unwrap();
    roles
}

async fn token(roles: &Roles) -> String {
    let create = ["token", "create", "--create-tenant", "--tenant", "acme", "--scope", "submit,manage,read"];
    let made = run_hapax(&create, &[("DATABASE_URL", &roles.owner)]).await;
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn the_service_needs_no_more_than_the_page_on_roles_grants() {
    let ledger = Ledger::empty().await;
    let roles = follow_the_page(&ledger).await;
    let server = Server::start(&roles.service, &token(&roles).await, &[]).await;
    server.until_status("/readyz", 200).await;
    let unique = json!({ "type": "t", "payload": 1, "unique": { "by": ["/payload"] } });
    let id = server.submit("k", &unique).await.job_id();
    assert_eq!(server.submit("k", &unique).await.status, 200);
    assert_eq!(server.submit("adopted", &unique).await.status, 200);
    let batch = server.submit_batch(json!({ "idempotency_key": "b", "job": job(1) })).await;
    assert_eq!(batch.items()[0].status, 201);
    assert_eq!(server.put(uuid::Uuid::now_v7(), job(2)).await.status, 201);
    let change = server.patch_job(&id, "*", r#"{"priority":1}"#);
    assert_eq!(server.send(change.header("idempotency-key", "k")).await.status, 200);
    for path in [format!("/jobs/{id}"), "/jobs".into(), "/queues".into(), "/idempotency-keys/k".into()] {
        assert_eq!(server.get(&path).await.status, 200, "{path}");
    }
    assert_eq!((server.cancel(&id).await.status, server.delete(&id).await.status), (200, 204));
    ledger.expire("b").await;
    assert_eq!(server.submit("b", job(3)).await.status, 201);
    ledger.expire("b").await;
    let service = [("DATABASE_URL", roles.service.as_str())];
    let purged = run_hapax(&["purge"], &service).await;
    assert_eq!(String::from_utf8_lossy(&purged.stdout), "deleted 1 expired keys\n", "{purged:?}");
    let shown = run_hapax(&["key", "show", "--tenant", "acme", "k"], &service).await;
    assert!(shown.status.success(), "{shown:?}");
    server.signal(rustix::process::Signal::TERM);
    assert!(server.ended().await);
    assert_eq!(ledger.number("select count(*) from access_tokens where last_used_at is not null").await, 1);
}

#[tokio::test]
async fn the_service_role_cannot_change_the_schema_or_create_tokens() {
    let ledger = Ledger::empty().await;
    let roles = follow_the_page(&ledger).await;
    token(&roles).await;
    for forbidden in [
        "drop table jobs",
        "alter table jobs add column mine text",
        "create table mine ()",
        "truncate idempotency_keys",
        "insert into tenants (id, name) values (gen_random_uuid(), 'mine')",
        "insert into access_tokens (id, tenant_id, digest, scopes) \
         select gen_random_uuid(), tenant_id, sha256('mine'), scopes from access_tokens",
        "update access_tokens set scopes = array['read']",
        "update access_tokens set expires_at = null",
        "delete from access_tokens",
        "delete from _sqlx_migrations",
    ] {
        let error = ledger.execute_as(&roles.service, forbidden).await.unwrap_err();
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("42501"), "{forbidden}: {error}");
    }
}
