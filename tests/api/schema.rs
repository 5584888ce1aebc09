//! Migrations, the checks at startup, and query plans.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Row};

use crate::harness::{Ledger, OpenTransaction, SHORT_DEADLINES, hapax, in_time, job, run_hapax};

const LOSSY: (&str, &str) = ("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "true");

async fn migrate_with_hapax(ledger: &Ledger) -> String {
    let output = run_hapax(&["migrate"], &[("DATABASE_URL", &ledger.url)]).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn migrate_with_sqlx_cli(ledger: &Ledger) -> String {
    let output = sqlx_cli(ledger, &[], &[]).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn sqlx_cli(ledger: &Ledger, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let sqlx = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/sqlx");
    assert!(sqlx.exists(), "sqlx-cli is not there; `make test` installs it");
    let mut command = std::process::Command::new(sqlx);
    command.args(["migrate", "run", "--no-dotenv", "--source"]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).args(["--database-url", &ledger.url]);
    command.args(arguments).envs(environment.iter().copied());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// A database with the first migration only, and an open transaction that has written to its table. A later migration
/// refers to that table, so it waits for the transaction.
async fn older_and_in_use() -> (Ledger, OpenTransaction) {
    let ledger = Ledger::empty().await;
    let older = sqlx_cli(&ledger, &["--target-version", "20261128000001"], &[]).await;
    assert!(older.status.success(), "{older:?}");
    let held = ledger.hold("insert into tenants (id, name) values (gen_random_uuid(), 'a-secret')").await;
    (ledger, held)
}

#[tokio::test]
async fn a_blocked_migration_lets_others_pass_names_the_blocker_and_succeeds_later() {
    let (ledger, held) = older_and_in_use().await;
    let holder = "select pid::bigint from pg_stat_activity \
                  where datname = current_database() and state = 'idle in transaction'";
    let holder = format!("pid {} (", ledger.number(holder).await);
    let mut command = hapax();
    command.arg("migrate").env("DATABASE_URL", &ledger.url).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut migrating = command.spawn().unwrap();
    let mut said = BufReader::new(migrating.stderr.take().unwrap());
    let reading = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line
    });
    let line = in_time("it says that it waits", reading).await.unwrap();
    assert!(line.contains(&holder) && line.contains("idle in transaction"), "{line}");
    assert!(!line.contains("secret"), "{line}");
    // It does not wait for the lock, so no statement waits behind it.
    let in_line = "select count(*) from pg_locks where not granted and database = \
                   (select oid from pg_database where datname = current_database())";
    ledger.until(in_line, |waiting| waiting == 0).await;
    held.roll_back().await;
    let output = tokio::task::spawn_blocking(move || migrating.wait_with_output().unwrap()).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("applied "), "{output:?}");
}

#[tokio::test]
async fn sqlx_cli_respects_the_lock_timeout_that_the_readme_sets() {
    let (ledger, held) = older_and_in_use().await;
    let output = sqlx_cli(&ledger, &[], &[("PGOPTIONS", "-c lock_timeout=2s")]).await;
    assert!(!output.status.success(), "{output:?}");
    assert!(format!("{output:?}").contains("due to lock timeout"), "{output:?}");
    held.roll_back().await;
    assert!(migrate_with_sqlx_cli(&ledger).await.contains("Applied"));
}

#[tokio::test]
async fn hapax_finds_nothing_to_do_after_sqlx_cli() {
    let ledger = Ledger::empty().await;
    assert!(migrate_with_sqlx_cli(&ledger).await.contains("Applied"));
    assert_eq!(migrate_with_hapax(&ledger).await, "nothing to do: the schema is up to date\n");
}

#[tokio::test]
async fn sqlx_cli_finds_nothing_to_do_after_hapax() {
    let ledger = Ledger::empty().await;
    assert!(migrate_with_hapax(&ledger).await.starts_with("applied "));
    assert_eq!(migrate_with_sqlx_cli(&ledger).await, "");
}

#[tokio::test]
async fn concurrent_migrations_do_not_collide() {
    let ledger = Ledger::empty().await;
    tokio::join!(migrate_with_hapax(&ledger), migrate_with_hapax(&ledger), migrate_with_hapax(&ledger));
    assert_eq!(migrate_with_hapax(&ledger).await, "nothing to do: the schema is up to date\n");
}

async fn refusal_to_serve(ledger: &Ledger, settings: &[(&str, &str)]) -> String {
    let environment = [&[("DATABASE_URL", ledger.url.as_str())], settings].concat();
    let output = run_hapax(&["serve", "--bind", "127.0.0.1:0"], &environment).await;
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_server_on_an_older_schema_refuses_to_start_and_names_the_command() {
    let empty = Ledger::empty().await;
    assert!(refusal_to_serve(&empty, &[LOSSY]).await.contains("run `hapax migrate`"));

    let older = Ledger::new().await;
    older.execute("delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)").await;
    assert!(refusal_to_serve(&older, &[LOSSY]).await.contains("run `hapax migrate`"));

    let half = Ledger::new().await;
    half.execute("update _sqlx_migrations set success = false").await;
    assert!(refusal_to_serve(&half, &[LOSSY]).await.contains("run `hapax migrate`"));
}

#[tokio::test]
async fn a_server_on_a_newer_schema_serves_and_warns() {
    let ledger = Ledger::new().await;
    let later = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
                 values (99990101000000, 'from a later release', true, '', 0)";
    ledger.execute(later).await;
    let server = ledger.serve().await;
    assert!(server.log_text().contains("newer than this release"), "{}", server.log_text());
    assert_eq!(server.submit("k", job(1)).await.status, 201);
    assert_eq!(migrate_with_hapax(&ledger).await, "nothing to do: the schema is newer than this release\n");
}

#[tokio::test]
async fn a_lossy_postgresql_is_refused_unless_explicitly_allowed() {
    let ledger = Ledger::new().await;
    ledger.set("synchronous_commit", "off").await;
    let words = refusal_to_serve(&ledger, &[]).await;
    // A server for tests may also have fsync off, which is checked first.
    assert!(words.contains("synchronous_commit is off") || words.contains("fsync is off"), "{words}");
    assert!(words.contains("database.allow_losing_acknowledged_jobs"), "{words}");
    let server = ledger.serve().await;
    assert!(server.log_text().contains("may lose jobs"), "{}", server.log_text());
}

#[tokio::test]
async fn readiness_follows_the_schema_and_liveness_does_not() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    assert_eq!(server.until_status("/readyz", 200).await.json()["status"], "ready");
    ledger.execute("alter table _sqlx_migrations rename to gone").await;
    server.until_status("/readyz", 503).await;
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_read_only_database_is_not_ready_and_its_recovery_is_noticed() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&SHORT_DEADLINES).await;
    let location = server.submit("key-1", job(1)).await.header("location").to_owned();
    let nobody = uuid::Uuid::new_v4().to_string();
    server.delete(&nobody).await;
    ledger.until_idle().await;
    // As after a failover, when we are still connected to the old primary, now a standby.
    ledger.set("default_transaction_read_only", "on").await;
    // The sessions ended before a statement was sent on them, so no outcome is unknown.
    server.submit("key-2", job(2)).await.is_problem(503, "database-unavailable");
    server.delete(&nobody).await.is_problem(503, "database-unavailable");
    assert_eq!(server.get(&location).await.status, 200);
    server.until_status("/readyz", 503).await;
    ledger.set("default_transaction_read_only", "off").await;
    // A read-only connection is not used a second time.
    assert_eq!(server.submit_with_retries("key-2", job(2)).await.status, 201);
    ledger.assert_consistent(2).await;
}

#[tokio::test]
async fn a_request_in_flight_at_shutdown_is_answered() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let held = ledger.hold_key("key-1").await;
    let asked = server.submit_in_background("key-1", job(1));
    ledger.until_waiting(1).await;
    server.signal(Signal::TERM);
    server.until_logged("stopping").await;
    held.roll_back().await;
    assert_eq!(asked.await.unwrap().status, 201);
    assert!(server.ended().await);
    ledger.assert_consistent(1).await;
}

#[tokio::test]
async fn a_stopped_server_exits_with_success() {
    let ledger = Ledger::new().await;
    for signal in [Signal::TERM, Signal::INT] {
        let server = ledger.serve().await;
        server.submit("k", job(1)).await;
        server.signal(signal);
        assert!(server.ended().await);
    }
    let left =
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'hapax'";
    ledger.until(left, |connections| connections == 0).await;
}

/// The checked statements, from the folder `.sqlx`.
pub fn statements() -> Vec<(String, usize)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let parsed = files.map(|file| serde_json::from_slice::<serde_json::Value>(&file).unwrap());
    let statement = |file: serde_json::Value| {
        let parameters = file["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
        (file["query"].as_str().unwrap().to_owned(), parameters)
    };
    parsed.map(statement).collect()
}

/// The statements within the functions of the schema, with the number of their parameters.
pub async fn statements_of_functions(ledger: &Ledger) -> Vec<(String, usize)> {
    let sql = "select json_agg(json_build_object('name', proname, 'body', prosrc, 'names', proargnames[1:pronargs], \
               'types', array(select format_type(type, null) from unnest(proargtypes) as type)))::text \
               from pg_proc where pronamespace = 'hapax'::regnamespace";
    let functions = ledger.text(sql).await;
    let functions: Vec<Function> = serde_json::from_str(&functions).unwrap();
    functions.iter().flat_map(Function::statements).collect()
}

#[derive(serde::Deserialize)]
struct Function {
    name: String,
    body: String,
    names: Vec<String>,
    types: Vec<String>,
}

impl Function {
    /// As PL/pgSQL would send them: variables and parameters become parameters.
    fn statements(&self) -> Vec<(String, usize)> {
        let beginnings = ["insert into ", "update ", "delete from ", "with ", "from "];
        let statement = |text: &str| {
            let start = beginnings.iter().filter_map(|word| text.find(&format!("    {word}"))).min()?;
            let mut sql = text[start..].trim().to_owned();
            if sql.starts_with("from ") {
                sql.insert_str(0, "select ");
            }
            // Of an assignment, `v_ids := array(select … from …)`.
            while sql.ends_with(')') && sql.matches(')').count() > sql.matches('(').count() {
                sql.pop();
            }
            let without_target = |line: &str| line.split(" into v_").next().unwrap_or_default().to_owned();
            let lines = sql.lines().filter(|line| !line.trim().starts_with("into ")).map(without_target);
            sql = lines.collect::<Vec<_>>().join("\n");
            sql = replace_word(&sql, "v_now", "now()");
            let parameters_and_variables =
                self.names.iter().cloned().zip(self.types.iter().cloned()).chain(self.variables());
            let mut parameters = 0;
            for (name, kind) in parameters_and_variables {
                let replaced = match kind.as_str() {
                    "record" => replace_fields(&sql, &name),
                    _ => replace_word(&sql, &name, &format!("(${}::{kind})", parameters + 1)),
                };
                parameters += usize::from(replaced != sql && kind != "record");
                sql = replaced;
            }
            Some((format!("/* {} */ {sql}", self.name), parameters))
        };
        split_statements(&self.body).into_iter().filter_map(statement).collect()
    }

    /// The declared variables and those of loops, each with its type.
    fn variables(&self) -> Vec<(String, String)> {
        let declared = |line: &str| {
            let (name, rest) = line.trim().split_once(' ')?;
            let is_variable = name.starts_with("v_") || name.starts_with("c_");
            let kind = rest.trim_start_matches("constant ").split([';', ':']).next()?.trim();
            is_variable.then(|| (name.to_owned(), kind.to_owned()))
        };
        let of_loop = |line: &str| {
            let (name, _) = line.trim().strip_prefix("for ")?.split_once(" in ")?;
            Some((name.to_owned(), "integer".to_owned()))
        };
        let declarations = self.body.split("\nbegin\n").next().unwrap_or_default().lines().filter_map(declared);
        declarations.chain(self.body.lines().filter_map(of_loop)).collect()
    }
}

/// Replaces the fields of a record. They occur only as values to write and as arguments of functions.
fn replace_fields(sql: &str, record: &str) -> String {
    let prefix = format!("{record}.");
    let mut pieces = sql.split(&prefix);
    let mut replaced = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(piece.len());
        replaced.push_str("null");
        replaced.push_str(&piece[end..]);
    }
    replaced
}

/// Splits at the semicolons outside of quotes and comments.
fn split_statements(body: &str) -> Vec<&str> {
    assert!(!body.contains(r"\'"), "no escaped quote is expected:\n{body}");
    let (mut statements, mut start, mut at) = (Vec::new(), 0, 0);
    while at < body.len() {
        let length = token_length(&body[at..]);
        if &body[at..at + length] == ";" {
            statements.push(&body[start..at]);
            start = at + length;
        }
        at += length;
    }
    statements.push(&body[start..]);
    statements
}

/// The length of the comment, string, quoted name or dollar quote at the start of a text, otherwise of one character. A
/// doubled quote within a string makes two strings of it, which is as good here.
fn token_length(text: &str) -> usize {
    let up_to = |open: &str, close: &str| {
        let inside = &text[open.len()..];
        open.len() + inside.find(close).map_or(inside.len(), |end| end + close.len())
    };
    let quotes = [("--", "\n"), ("/*", "*/"), ("'", "'"), ("\"", "\"")];
    if let Some((open, close)) = quotes.into_iter().find(|(open, _)| text.starts_with(open)) {
        return up_to(open, close);
    }
    // `$$` or `$name$`, and no parameter such as `$1`.
    let name = text.strip_prefix('$').and_then(|rest| rest.split_once('$')).map(|(name, _)| name);
    match name.filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_')) {
        Some(name) => up_to(&text[..name.len() + 2], &text[..name.len() + 2]),
        None => text.chars().next().map_or(0, char::len_utf8),
    }
}

#[test]
fn a_semicolon_in_quotes_or_in_a_comment_ends_no_statement() {
    let statements = [
        "select 'a;''b;', \";\"",
        " -- one; two's\n select 1",
        " /* ; ' */ select $1 + $2",
        " execute $$a; 'b;$$, $t$; $$ ;$t$",
        " select ';'",
        "",
    ];
    assert_eq!(split_statements(&statements.join(";")), statements);
    assert_eq!(split_statements("select 1; -- the end;"), ["select 1", " -- the end;"]);
}

fn replace_word(sql: &str, word: &str, with: &str) -> String {
    let mut replaced = String::new();
    let mut rest = sql;
    while let Some(start) = rest.find(word) {
        let (before, after) = (&rest[..start], &rest[start + word.len()..]);
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let is_word = !before.ends_with(is_part) && !after.starts_with(is_part);
        replaced.push_str(before);
        replaced.push_str(if is_word { with } else { word });
        rest = after;
    }
    replaced + rest
}

pub async fn plan(ledger: &Ledger, sql: &str, parameters: usize) -> String {
    let mut connection = ledger.connect().await;
    // With sequential scans disabled, the planner uses one only where no index can serve.
    let prepare = format!("set enable_seqscan = off; set plan_cache_mode = force_generic_plan; prepare s as {sql}");
    let prepared = sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await;
    prepared.unwrap_or_else(|error| panic!("{error}:\n{sql}"));
    let arguments = vec!["null"; parameters].join(", ");
    let arguments = if parameters == 0 { String::new() } else { format!("({arguments})") };
    let explain = AssertSqlSafe(format!("explain execute s{arguments}"));
    let rows = sqlx::raw_sql(explain).fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

/// A statement may read one tenant's rows only, so each table that it names has a condition on the tenant. Inserts have
/// the tenant among their values.
#[tokio::test]
async fn every_statement_names_one_tenant_for_each_table() {
    // These clean and watch the whole database.
    const OF_ALL_TENANTS: [&str; 3] = ["/* purge_keys */", "/* lags */", "/* reclaim */"];
    const TABLES: [&str; 9] = [
        "idempotency_keys",
        "jobs",
        "claims",
        "job_queue",
        "job_leases",
        "job_outcomes",
        "job_attempts",
        "job_uniques",
        "job_states",
    ];
    let ledger = Ledger::new().await;
    let mut looked_at = 0;
    for (sql, _) in [statements(), statements_of_functions(&ledger).await].concat() {
        if OF_ALL_TENANTS.iter().any(|name| sql.contains(name)) {
            continue;
        }
        let words: Vec<&str> = sql.split_whitespace().collect();
        let is_table = |word: &str| TABLES.iter().any(|table| word == format!("hapax.{table}"));
        let reads = ["from", "join", "update", "using"];
        let tables = words.windows(2).filter(|pair| reads.contains(&pair[0]) && is_table(pair[1])).count();
        let conditions = sql.matches("tenant_id = ").count();
        assert!(conditions >= tables, "{tables} tables, {conditions} conditions on the tenant:\n{sql}");
        looked_at += usize::from(tables > 0);
    }
    assert!(looked_at > 15, "{looked_at}");
}

/// A distributed database must be able to send a statement to the node of its tenant: a volatile function in `set`
/// prevents that.
#[tokio::test]
async fn no_update_sets_a_column_to_the_value_of_a_volatile_function() {
    let ledger = Ledger::new().await;
    for (sql, _) in [statements(), statements_of_functions(&ledger).await].concat() {
        let volatile =
            sql.split("set ").skip(1).any(|set| set.split("where").next().unwrap().contains("clock_timestamp()"));
        assert!(!volatile || !sql.contains("update "), "{sql}");
    }
}

#[tokio::test]
async fn every_statement_on_a_growing_table_uses_an_index() {
    let ledger = Ledger::new().await;
    let mut looked_at = 0;
    for (sql, parameters) in [statements(), statements_of_functions(&ledger).await].concat() {
        const GROWING: [&str; 5] = ["idempotency_keys", "hapax.claims", "hapax.jobs", "hapax.job_", "job_states"];
        if !GROWING.iter().any(|table| sql.contains(table)) {
            continue;
        }
        let plan = plan(&ledger, &sql, parameters).await;
        assert!(!plan.contains("Seq Scan"), "{sql}\n{plan}");
        // A scan of a whole index is no better than a scan of the table.
        let (scans, conditions) = (plan.matches(" Scan using ").count(), plan.matches("Index Cond").count());
        // A minimum is the first entry of the index and needs no condition.
        assert!(scans == conditions || plan.contains("Limit"), "{sql}\n{plan}");
        looked_at += 1;
    }
    assert!(looked_at >= 20, "{looked_at}");
}

#[tokio::test]
async fn plans_made_for_a_small_table_still_work_for_a_large_one() {
    let ledger = Ledger::new().await;
    // A session reports its statistics when it ends, at the latest. This includes the session that migrated.
    let others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    ledger.until(others, |sessions| sessions == 0).await;
    let scans = "select sum(seq_scan)::bigint from pg_stat_user_tables where relname in ('idempotency_keys', 'jobs')";
    let by_migrations = ledger.number(scans).await;
    let server = ledger.serve().await;
    assert_eq!(server.submit("key-1", job(1)).await.status, 201);
    ledger.execute("analyze").await;
    // From the sixth execution on, PostgreSQL may reuse a generic plan.
    for _ in 0..8 {
        assert_eq!(server.submit("key-1", job(1)).await.status, 200);
        server.submit("key-1", job(2)).await.is_problem(422, "idempotency-key-reused");
    }
    server.signal(Signal::TERM);
    assert!(server.ended().await);
    ledger.until(others, |sessions| sessions == 0).await;
    assert_eq!(ledger.number(scans).await, by_migrations);
}

#[tokio::test]
async fn the_purger_selects_by_expiry_index_and_deletes_by_ctid() {
    let ledger = Ledger::new().await;
    let purge = statements_of_functions(&ledger).await.into_iter().find(|(sql, _)| sql.contains("/* purge_keys */"));
    let (sql, parameters) = purge.unwrap();
    let plan = plan(&ledger, &sql, parameters).await;
    assert!(plan.contains("Tid Scan") && plan.contains("idempotency_keys_expires_at_idx"), "{plan}");
}

/// With a join, a generic plan would compare every row with every other, because the planner does not know their
/// number.
#[tokio::test]
async fn the_plan_of_a_batch_has_no_quadratic_join() {
    let ledger = Ledger::new().await;
    let of_many = |(sql, _): &(String, usize)| sql.contains("insert into hapax.jobs") && sql.contains("unnest");
    let (sql, parameters) = statements_of_functions(&ledger).await.into_iter().find(of_many).unwrap();
    let plan = plan(&ledger, &sql, parameters).await;
    assert_eq!(plan.matches("hashed SubPlan").count(), 2, "{plan}");
    assert!(!plan.contains("Nested Loop"), "{plan}");
    let in_order = |line: &str| line.contains("Sort Key:") && line.ends_with(r#".key COLLATE "C""#);
    assert!(plan.lines().any(in_order), "two batches with the same keys could wait for each other\n{plan}");
    assert!(!plan.contains("Join Filter") && !plan.contains("Hash Join"), "{plan}");
}

#[tokio::test]
async fn each_table_accepts_only_a_run_at_that_the_api_can_show() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    server.submit("queued", job(1)).await;
    let cancelled = server.submit("cancelled", job(2)).await.job_id();
    assert_eq!(server.cancel(&cancelled).await.status, 200);
    for table in ["jobs", "job_queue", "job_outcomes"] {
        let set = |run_at: &str| format!("update {table} set run_at = '{run_at}'");
        for run_at in ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"] {
            assert!(ledger.execute(&set(run_at)).await > 0, "{table} {run_at}");
        }
        for run_at in ["-infinity", "0001-12-31T23:59:59Z BC", "10000-01-01T00:00:00Z", "infinity"] {
            let error = ledger.execute_as(&ledger.url, &set(run_at)).await.unwrap_err();
            let constraint = error.as_database_error().and_then(|error| error.constraint());
            assert_eq!(constraint, Some(format!("{table}_run_at_check").as_str()), "{run_at}: {error}");
        }
    }
}

#[tokio::test]
async fn every_table_and_every_non_obvious_column_has_a_comment() {
    let ledger = Ledger::new().await;
    let bare = "select count(*) from pg_class where relkind = 'r' and relnamespace = 'hapax'::regnamespace \
                and relname not like '\\_sqlx%' and obj_description(oid) is null";
    assert_eq!(ledger.number(bare).await, 0);
    let unnamed = "select count(*) from pg_constraint where connamespace = 'hapax'::regnamespace \
                   and contype in ('p', 'u') and conrelid::regclass::text not in ('tenants', 'access_tokens', \
                   '_sqlx_migrations') and conkey[1] <> 1";
    assert_eq!(ledger.number(unnamed).await, 0, "each key begins with tenant_id, the first column");
}
