//! The command line.

use hapax::access::Scope;

use crate::harness::{Ledger, job, run_hapax};

struct Ran {
    ok: bool,
    out: String,
    err: String,
}

async fn run(ledger: &Ledger, arguments: &[&str], settings: &[(&str, &str)]) -> Ran {
    let environment = [&[("DATABASE_URL", ledger.url.as_str())], settings].concat();
    let output = run_hapax(arguments, &environment).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

#[tokio::test]
async fn a_created_tenant_and_token_are_listed_and_work() {
    let ledger = Ledger::new().await;
    assert_eq!(run(&ledger, &["tenant", "create", "globex"], &[]).await.out, "created tenant globex\n");
    let again = run(&ledger, &["tenant", "create", "globex"], &[]).await;
    assert!(!again.ok && again.err.contains("there is a tenant globex already"), "{}", again.err);
    let tenants = run(&ledger, &["tenant", "list"], &[]).await.out;
    assert!(tenants.contains("acme") && tenants.contains("globex"), "{tenants}");

    let made = run(&ledger, &["token", "create", "--tenant", "globex", "--scope", "submit,read"], &[]).await;
    let token = made.out.strip_suffix('\n').unwrap();
    assert!(token.starts_with("hpx_") && !token.contains(char::is_whitespace), "{token}");
    let server = ledger.serve().await;
    assert_eq!(server.as_caller(token).submit("k", job(1)).await.status, 201);
    let listed = run(&ledger, &["token", "list"], &[]).await.out;
    assert!(listed.contains("globex  submit,read"), "{listed}");
}

#[tokio::test]
async fn wrong_arguments_are_explained() {
    let ledger = Ledger::new().await;
    let create = |tenant: &'static str, scope: &'static str| ["token", "create", "--tenant", tenant, "--scope", scope];
    for (arguments, words) in [
        (&create("nobody", "read")[..], "there is no tenant nobody"),
        (&create("acme", "fly")[..], "unknown scope \"fly\"; known are submit, manage, work and read"),
        (&create("acme", "admin")[..], "scope \"admin\" permits nothing in this release"),
        (&["tenant", "create", "Bad Name"][..], "a tenant's name has"),
        (&["token", "revoke", "7d0b8d9a-0000-7000-8000-000000000000"][..], "there is no token"),
        (&["serve", "--bind", "8080"][..], "an address with its port is expected, such as 127.0.0.1:8080"),
        (&["dev", "--bind", "nowhere"][..], "an address with its port is expected, such as 127.0.0.1:8080"),
    ] {
        let ran = run(&ledger, arguments, &[]).await;
        assert!(!ran.ok && ran.err.contains(words), "{arguments:?}: {}", ran.err);
    }
}

#[tokio::test]
async fn the_help_of_token_create_explains_every_scope() {
    let help = String::from_utf8(run_hapax(&["token", "create", "--help"], &[]).await.stdout).unwrap();
    for scope in Scope::ALL {
        let line = help.lines().find(|line| line.trim_start().starts_with(scope.name()));
        assert!(line.is_some_and(|line| line.ends_with(scope.permits())), "{scope:?} in {help}");
    }
    assert!(!help.contains("admin"), "{help}");
}

#[tokio::test]
async fn an_unknown_or_invalid_setting_is_named_and_prevents_the_start() {
    let ledger = Ledger::new().await;
    for (name, value, words) in [
        ("HAPAX__SERVER__BODY_LIMIT", "1", "setting server.body_limit"),
        ("HAPAX__IDEMPOTENCY__TIME_TO_LIVE", "0s", "setting idempotency.time_to_live"),
        ("HAPAX__INTAKE__LOCK_WAIT", "forever", "setting intake.lock_wait"),
        ("HAPAX__LOG__FILTER", "hapax=loud=er", "setting log.filter"),
        ("HAPAX__DATABASE__URL", "mysql://nowhere", "setting database.url"),
        ("HAPAX__METRICS__BIND", "192.0.2.1:1", "setting metrics.bind"),
        ("HAPAX__DATABASE__URL", "postgres://h/d?sslmod=require", "the parameter sslmod is unknown"),
        ("HAPAX__DATABASE__URL", "postgres://h/d?sslmode=verify-full&sslrootcert=/no/ca", "sslrootcert names /no/ca"),
        ("HAPAX__LOG__FORMAT", "xml", "setting log.format: pretty or json is expected"),
        (
            "HAPAX__SERVER__DRAIN_DELAY",
            "5",
            "setting server.drain_delay: a duration with its unit is expected, such as 5s",
        ),
    ] {
        let lossy = ("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "true");
        let ran = run(&ledger, &["serve", "--bind", "127.0.0.1:0"], &[(name, value), lossy]).await;
        assert!(!ran.ok && ran.err.contains(words), "{name}={value}: {}", ran.err);
    }
}

#[tokio::test]
async fn the_effective_configuration_is_printed_without_secrets() {
    let settings = [("DATABASE_URL", "postgres://u:s3cret@h/d?password=s3cret"), ("HAPAX__INTAKE__LOCK_WAIT", "3s")];
    let output = run_hapax(&["config"], &settings).await;
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("lock_wait = \"3s\"") && shown.contains("u:hidden@h"), "{shown}");
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[tokio::test]
async fn the_environment_overrides_the_settings_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hapax.toml");
    std::fs::write(&file, "[intake]\nlock_wait = \"3s\"\nconnections = 3\n").unwrap();
    let settings = [("HAPAX_CONFIG", file.to_str().unwrap()), ("HAPAX__INTAKE__CONNECTIONS", "5")];
    let shown = String::from_utf8(run_hapax(&["config"], &settings).await.stdout).unwrap();
    assert!(shown.contains("lock_wait = \"3s\"") && shown.contains("\nconnections = 5\n"), "{shown}");
    std::fs::write(&file, "[intake]\nlokc_wait = \"3s\"\n").unwrap();
    let output = run_hapax(&["config"], &settings).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("setting intake.lokc_wait"), "{output:?}");
}

#[tokio::test]
async fn a_missing_database_ends_the_start_with_one_message() {
    let ledger = Ledger::new().await;
    let mut url = url::Url::parse(&ledger.url).unwrap();
    url.set_path("no_such_database");
    let ran = run(&ledger, &["serve", "--bind", "127.0.0.1:0"], &[("DATABASE_URL", url.as_str())]).await;
    assert!(!ran.ok && !ran.out.contains("waiting for the database"), "{}", ran.out);
    assert_eq!(ran.err.matches("does not exist").count(), 1, "{}", ran.err);
    assert!(ran.err.contains("database no_such_database: ") && !ran.err.contains("at line"), "{}", ran.err);
}

#[tokio::test]
async fn an_unreachable_database_is_named_during_the_wait_and_in_the_final_error() {
    // A local address that is not the loopback address.
    let url = "postgres://operator:s3cret@0.0.0.0:1/jobs";
    let settings = [("DATABASE_URL", url), ("HAPAX__LOG__FORMAT", "json")];
    let output = run_hapax(&["serve", "--bind", "127.0.0.1:0"], &settings).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (ok, log, error) = (output.status.success(), text(output.stdout), text(output.stderr));
    assert!(!ok && error.contains("host 0.0.0.0, port 1, database jobs: "), "{error}");
    assert_eq!(error.matches("Connection refused").count(), 1, "{error}");
    let waiting: Vec<&str> = log.lines().filter(|line| line.contains("waiting for the database")).collect();
    assert_eq!(waiting.len(), 3, "one each 10 s\n{log}");
    for words in [r#""host":"0.0.0.0""#, r#""port":1"#, r#""database":"jobs""#, "Connection refused"] {
        assert!(waiting.iter().all(|line| line.contains(words)), "{words}\n{log}");
    }
    assert!(log.contains("sslmode=verify-full"), "nothing verifies who answers there\n{log}");
    assert!(![log, error].concat().contains("s3cret"));
}
