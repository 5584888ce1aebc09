//! `hapax dev`: the whole service with a database of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::Connection;

use crate::harness::{Server, hapax, job, run_hapax};

/// A folder that the user `postgres` may enter. As root, PostgreSQL runs as that user.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("hapax-test-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

async fn dev(folder: &Path) -> Server {
    // Started from another directory. `dev` ignores DATABASE_URL.
    let mut command = hapax();
    command.args(["dev", "--bind", "127.0.0.1:0", "--data"]).arg(folder);
    command.env("HAPAX__METRICS__BIND", "127.0.0.1:0").env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");
    let server = Server::spawn(command, "").await;
    server.with_token(&read(folder, "dev-token"))
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap().trim_end().to_owned()
}

fn postgres_is_gone(folder: &Path) -> bool {
    !folder.join("postgres/postmaster.pid").exists()
}

#[tokio::test]
async fn dev_serves_survives_a_kill_and_stops_its_database() {
    let folder = folder();
    let server = dev(folder.path()).await;
    let first = server.submit("k", job(1)).await;
    assert_eq!(first.status, 201);
    server.signal(Signal::KILL);
    assert!(!server.ended().await);

    let server = dev(folder.path()).await;
    let again = server.submit("k", job(1)).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    server.signal(Signal::INT);
    assert!(server.ended().await);
    assert!(postgres_is_gone(folder.path()));

    let server = dev(folder.path()).await;
    assert_eq!(server.submit("k", job(1)).await.status, 200);
    server.signal(Signal::TERM);
    assert!(server.ended().await);
    assert!(postgres_is_gone(folder.path()));
}

#[tokio::test]
async fn a_second_server_can_join_and_a_second_dev_cannot() {
    let folder = folder();
    let server = dev(folder.path()).await;
    let url = read(folder.path(), "database-url");
    // Durable settings, so `allow_losing_acknowledged_jobs` is not needed.
    let mut second = hapax();
    second
        .args(["serve", "--bind", "127.0.0.1:0"])
        .env("DATABASE_URL", &url)
        .env("HAPAX__METRICS__BIND", "127.0.0.1:0");
    let second = Server::spawn(second, &read(folder.path(), "dev-token")).await;
    let first = server.submit("k", job(1)).await;
    assert_eq!(second.submit("k", job(1)).await.body, first.body);

    let output = run_hapax(&["dev", "--bind", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()], &[]).await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another `hapax dev` is running"), "{output:?}");
    assert_eq!(server.submit("k", job(1)).await.status, 200);
}

#[tokio::test]
async fn an_acknowledged_job_is_durable_even_if_the_server_default_is_not() {
    let folder = folder();
    let server = dev(folder.path()).await;
    server.submit_with_retries("warm-up", job(0)).await;
    let mut postgres = sqlx::PgConnection::connect(&read(folder.path(), "database-url")).await.unwrap();
    // Records the `synchronous_commit` of each job's transaction.
    let watch = "create table seen (synchronous_commit text); \
                 create function see() returns trigger language plpgsql as \
                 $$ begin insert into seen values (current_setting('synchronous_commit')); return null; end $$; \
                 create trigger see after insert on hapax.jobs execute function see()";
    sqlx::raw_sql(watch).execute(&mut postgres).await.unwrap();
    for setting in ["off", "local"] {
        let change = format!("alter role postgres set synchronous_commit = {setting}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&mut postgres).await.unwrap();
        let end_all = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'hapax'";
        sqlx::raw_sql(end_all).execute(&mut postgres).await.unwrap();
        assert_eq!(server.submit(setting, job(1)).await.status, 201);
    }
    let seen: Vec<(String,)> = sqlx::query_as("select * from seen").fetch_all(&mut postgres).await.unwrap();
    assert_eq!(seen, [("on".to_owned(),), ("local".to_owned(),)]);
}

#[tokio::test]
async fn dev_ends_when_its_database_ends() {
    let folder = folder();
    let server = dev(folder.path()).await;
    let pid = read(folder.path(), "postgres/postmaster.pid");
    let pid = Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()).unwrap();
    kill_process(pid, Signal::QUIT).unwrap();
    assert!(!server.ended().await);
}

#[tokio::test]
async fn dev_data_is_private_and_its_path_may_be_long_and_unusual() {
    let outer = folder();
    let odd = outer.path().join(format!("a folder, it's {} 100%", "long".repeat(25)));
    let server = dev(&odd).await;
    assert_eq!(server.submit("k", job(1)).await.status, 201);
    for name in ["dev-token", "database-url"] {
        let mode = std::fs::metadata(odd.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let listed = run_hapax(&["token", "list"], &[("DATABASE_URL", &read(&odd, "database-url"))]).await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains("dev  submit,manage,work,read"), "{listed:?}");
    server.signal(Signal::INT);
    assert!(server.ended().await);
}
