//! Starts real servers. The variable POSTGRES_BIN may name the folder of PostgreSQL's programs.

use std::os::unix::fs::{PermissionsExt, chown};

use sqlx::{Connection, PgConnection};

use super::*;

/// A folder that PostgreSQL's user may enter, if the tests run as root.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    set_mode(folder.path(), 0o711);
    folder
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn options(place: Place) -> Options {
    let programs = std::env::var_os("POSTGRES_BIN").map(PathBuf::from);
    Options { place, durability: Durability::Full, role: "owner".to_owned(), programs, notify: |_| {} }
}

fn in_folder(folder: &Path) -> Options {
    options(Place::Exactly(folder.to_owned()))
}

/// Runs a statement, and returns its first value.
fn ask(postgres: &PrivatePostgres, sql: &'static str) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
        let value = sqlx::query_scalar(sql).fetch_optional(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        value
    })
}

#[test]
fn committed_data_survives_a_stop_and_a_crash() {
    let folder = folder();
    let options = in_folder(folder.path());
    let postgres = PrivatePostgres::start(&options).unwrap();
    ask(&postgres, "create table notes as select current_user::text as author");
    postgres.stop().unwrap();

    let postgres = PrivatePostgres::start(&options).unwrap();
    assert_eq!(ask(&postgres, "select author from notes").as_deref(), Some("owner"));
    ask(&postgres, "update notes set author = 'changed'");
    postgres.stop_immediately().unwrap();

    let postgres = PrivatePostgres::start(&options).unwrap();
    assert_eq!(ask(&postgres, "select author from notes").as_deref(), Some("changed"));
    assert_eq!(ask(&postgres, "show fsync").as_deref(), Some("on"));
}

#[test]
fn it_ends_with_the_thread_that_started_it() {
    let folder = folder();
    let options = in_folder(folder.path());
    let of_thread = options.clone();
    let mut postgres = std::thread::spawn(move || PrivatePostgres::start(&of_thread).unwrap()).join().unwrap();
    postgres.child.wait().unwrap();
    assert!(matches!(postgres.check_running(), Err(Error::Ended { log }) if log.exists()));
    let mut next = PrivatePostgres::start(&options).unwrap();
    next.check_running().unwrap();
}

#[test]
fn a_cluster_is_private_and_complete_and_its_path_may_be_unusual() {
    let outer = folder();
    let odd = outer.path().join(format!("it's {} 100%", "long".repeat(25)));
    // What a kill during a first start leaves.
    let draft = odd.join("postgres.half-made");
    fs::create_dir_all(&draft).unwrap();
    fs::write(draft.join("PG_VERSION"), "15").unwrap();
    let options = Options { durability: Durability::None, role: "a role".to_owned(), ..in_folder(&odd) };
    let postgres = PrivatePostgres::start(&options).unwrap();
    assert_eq!(ask(&postgres, "select current_user::text").as_deref(), Some("a role"));
    assert_eq!(ask(&postgres, "show fsync").as_deref(), Some("off"));
    assert_eq!(fs::metadata(odd.join("postgres")).unwrap().permissions().mode() & 0o777, 0o700);
    let socket = fs::metadata(postgres.socket.join(".s.PGSQL.5432")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o700);
    assert!(!draft.exists());
}

#[test]
fn a_cluster_of_another_version_is_refused() {
    let folder = folder();
    fs::create_dir(folder.path().join("postgres")).unwrap();
    fs::write(folder.path().join("postgres/PG_VERSION"), "9\n").unwrap();
    let error = PrivatePostgres::start(&in_folder(folder.path())).unwrap_err();
    assert!(matches!(&error, Error::OtherVersion { wanted, found, .. } if wanted == "9" && !found.is_empty()));
    assert!(error.to_string().contains("was created by PostgreSQL 9, but only"), "{error}");
}

#[test]
fn a_start_that_fails_shows_the_log() {
    let folder = folder();
    let options = in_folder(folder.path());
    PrivatePostgres::start(&options).unwrap().stop().unwrap();
    fs::remove_file(folder.path().join("postgres/global/pg_control")).unwrap();
    let error = PrivatePostgres::start(&options).unwrap_err();
    assert!(matches!(&error, Error::DoesNotStart { last_lines, .. } if last_lines.contains("pg_control")), "{error}");
}

/// Only root starts PostgreSQL as another user, who may lack access to a folder.
#[test]
fn as_root_an_unreachable_folder_is_replaced_or_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let outer = folder();
    let barrier = outer.path().join("barrier");
    let unreachable = barrier.join("inner");
    fs::create_dir_all(&unreachable).unwrap();
    set_mode(&barrier, 0o700);
    let error = PrivatePostgres::start(&in_folder(&unreachable)).unwrap_err();
    assert!(matches!(&error, Error::UnreachableFolder { barrier: named, .. } if *named == barrier), "{error}");

    let elsewhere = outer.path().join("elsewhere");
    let options = options(Place::AtOrElsewhere { folder: unreachable, elsewhere: elsewhere.clone() });
    PrivatePostgres::start(&options).unwrap().stop().unwrap();
    assert!(elsewhere.join("postgres/PG_VERSION").exists());

    chown(&elsewhere, Some(65534), None).unwrap();
    let error = PrivatePostgres::start(&options).unwrap_err();
    assert!(matches!(&error, Error::UnsafeFolder(folder) if *folder == elsewhere), "{error}");
}
