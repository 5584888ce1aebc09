//! `hapax dev`: the whole service on a database of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Server, hapax, job, run_hapax};

/// A folder that the user `postgres` may pass: root's server runs as that.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("hapax-test-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

async fn dev(folder: &Path) -> Server {
    // As a user would who is somewhere else in the shell; whatever DATABASE_URL says is not what dev works on.
    let mut command = hapax();
    command.args(["dev", "--bind", "127.0.0.1:0", "--data"]).arg(folder);
    command.env("HAPAX__METRICS__BIND", "127.0.0.1:0").env("DATABASE_URL", "postgres://nobody@192.0.2.1/nothing");
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
async fn it_serves_survives_a_kill_and_stops_its_database_when_it_stops() {
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
    // Durable settings: it needs no permission to lose anything.
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
async fn what_it_keeps_is_for_its_owner_alone_and_a_path_may_be_long_and_odd() {
    let outer = folder();
    let odd = outer.path().join(format!("a folder, {} 100%", "long".repeat(25)));
    let server = dev(&odd).await;
    assert_eq!(server.submit("k", job(1)).await.status, 201);
    for name in ["dev-token", "database-url"] {
        let mode = std::fs::metadata(odd.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let listed = run_hapax(&["token", "list"], &[("DATABASE_URL", &read(&odd, "database-url"))]).await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains("dev  submit,work,read,admin"), "{listed:?}");
    server.signal(Signal::INT);
    assert!(server.ended().await);
}
