//! Checks the architecture rules of ARCHITECTURE.md against the source.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// Which modules a module may import. Modules that are not listed may import anything.
const MAY_IMPORT: [(&str, &[&str]); 22] = [
    ("audit", &[]),
    ("ids", &[]),
    ("json", &[]),
    ("overload", &[]),
    ("shares", &["ids"]),
    ("timestamp", &[]),
    ("metrics", &["overload"]),
    ("telemetry", &["metrics", "timestamp"]),
    ("configuration", &["telemetry", "database"]),
    ("database", &["ids", "metrics", "overload", "shares"]),
    ("jobs", &["ids", "json", "timestamp"]),
    ("idempotency", &["ids", "json", "timestamp", "database", "metrics", "overload", "shares"]),
    ("access", &["ids", "database", "metrics", "overload"]),
    ("offload", &["ids", "overload", "shares"]),
    ("group_commit", &["ids", "database", "metrics", "overload", "shares"]),
    (
        "intake",
        &["ids", "database", "group_commit", "overload", "shares", "jobs", "idempotency", "long_poll", "offload"],
    ),
    ("changes", &["ids", "database", "jobs", "idempotency", "long_poll"]),
    ("wakeups", &[]),
    ("notifications", &["ids", "database", "metrics"]),
    ("long_poll", &["ids", "overload", "shares", "wakeups", "notifications"]),
    ("claims", &["ids", "json", "database", "group_commit", "metrics", "jobs", "long_poll"]),
    (
        "http",
        &[
            "ids",
            "json",
            "timestamp",
            "database",
            "metrics",
            "overload",
            "shares",
            "jobs",
            "idempotency",
            "access",
            "intake",
            "changes",
            "wakeups",
            "long_poll",
            "claims",
            "telemetry",
            "offload",
        ],
    ),
];

struct Source {
    /// Relative to `src`, such as `jobs/queries.rs`.
    name: String,
    /// The file's top-level module.
    module: String,
    /// Every path in the file, such as `crate::ids::JobId`, with imports expanded.
    paths: BTreeSet<String>,
    /// The name of every method that the file calls.
    methods: BTreeSet<String>,
    /// The names under which the file measures statements.
    labels: BTreeSet<String>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    list(&root, &mut files);
    assert!(files.len() > 30, "all of src is read");
    files.into_iter().map(|file| read(&root, &file)).collect()
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(root: &Path, file: &Path) -> Source {
    let name = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let module = name.split(['/', '.']).next().unwrap().to_owned();
    let mut found = Found::default();
    found.visit_file(&syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap());
    Source { name, module, paths: found.paths, methods: found.methods, labels: found.labels }
}

#[derive(Default)]
struct Found {
    paths: BTreeSet<String>,
    methods: BTreeSet<String>,
    labels: BTreeSet<String>,
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        // The rules do not apply to unit tests.
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        spell_out(&item.tree, "", &mut self.paths);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.paths.insert(segments.join("::"));
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.methods.insert(call.method.to_string());
        if let Some(syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(label), .. })) = call.args.first()
            && ["complete", "read"].iter().any(|method| call.method == method)
            && call.args.len() > 2
        {
            self.labels.insert(label.value());
        }
        visit::visit_expr_method_call(self, call);
    }
}

fn spell_out(tree: &syn::UseTree, prefix: &str, paths: &mut BTreeSet<String>) {
    match tree {
        syn::UseTree::Path(path) => spell_out(&path.tree, &format!("{prefix}{}::", path.ident), paths),
        syn::UseTree::Name(name) => drop(paths.insert(format!("{prefix}{}", name.ident))),
        syn::UseTree::Rename(rename) => drop(paths.insert(format!("{prefix}{}", rename.ident))),
        syn::UseTree::Glob(_) => drop(paths.insert(format!("{prefix}*"))),
        syn::UseTree::Group(group) => group.items.iter().for_each(|item| spell_out(item, prefix, paths)),
    }
}

#[test]
fn modules_import_only_allowed_modules() {
    for source in sources() {
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(module, _)| *module == source.module) else { continue };
        for path in &source.paths {
            let Some(module) = path.strip_prefix("crate::").and_then(|rest| rest.split("::").next()) else { continue };
            assert!(module == source.module || allowed.contains(&module), "{} imports {path}", source.name);
        }
    }
}

/// Fails if a path with one of these prefixes occurs in a file for which `at_home` is false.
fn occurs_only_where(beginnings: &[&str], at_home: impl Fn(&Source) -> bool) {
    let sources = sources();
    let violations = |source: &Source| -> Vec<String> {
        let begins = |path: &&String| beginnings.iter().any(|beginning| path.starts_with(beginning));
        source.paths.iter().filter(begins).map(|path| format!("{}: {path}", source.name)).collect()
    };
    let (home, elsewhere): (Vec<_>, Vec<_>) = sources.iter().partition(|source| at_home(source));
    assert!(home.iter().any(|source| !violations(source).is_empty()), "the rule matches no file: {beginnings:?}");
    let violations: Vec<String> = elsewhere.into_iter().flat_map(violations).collect();
    assert_eq!(violations, [""; 0]);
}

#[test]
fn only_http_and_server_use_the_framework() {
    occurs_only_where(&["actix"], |source| ["http", "server"].contains(&source.module.as_str()));
}

#[test]
fn sql_lives_in_files_named_queries() {
    let beginnings = ["sqlx::query", "sqlx::raw_sql", "sqlx::AssertSqlSafe", "sqlx::QueryBuilder"];
    occurs_only_where(&beginnings, |source| source.name.ends_with("queries.rs"));
}

#[test]
fn only_configuration_reads_the_environment() {
    occurs_only_where(&["std::env", "env::", "dotenvy"], |source| source.module == "configuration");
}

#[test]
fn only_server_spawns_long_lived_tasks() {
    for source in sources() {
        for spawn in ["tokio::spawn", "std::thread::spawn", "thread::spawn", "actix_web::rt::spawn"] {
            assert!(!source.paths.contains(spawn), "{}: {spawn}", source.name);
        }
        // The log starts before the server and ends after it. The allocator's thread belongs to the whole process.
        let may_spawn = [
            "main.rs",
            "server/tasks.rs",
            "database/idle.rs",
            "database/lease.rs",
            "database/pool.rs",
            "telemetry/output.rs",
            "cli/with_postgres.rs",
        ];
        assert!(!source.methods.contains("spawn") || may_spawn.contains(&source.name.as_str()), "{}", source.name);
    }
}

/// A transaction would let a frozen process hold an idempotency key. See ADR 0003.
#[test]
fn no_code_begins_a_transaction() {
    for source in sources() {
        for method in ["begin", "begin_with", "transaction"] {
            assert!(!source.methods.contains(method), "{} calls {method}", source.name);
        }
    }
}

/// Other programs can use it, and its text is about PostgreSQL alone.
#[test]
fn the_crate_private_postgres_does_not_mention_hapax() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("private-postgres");
    let mut files = vec![root.join("Cargo.toml")];
    list(&root, &mut files);
    assert!(files.len() > 5, "all of the crate is read");
    let mentions = |file: &PathBuf| fs::read_to_string(file).unwrap().to_lowercase().contains("hapax");
    let found: Vec<PathBuf> = files.into_iter().filter(mentions).collect();
    assert_eq!(found, [""; 0].map(PathBuf::from));
}

#[test]
fn no_code_uses_sqlx_pg_pool() {
    for source in sources() {
        assert!(!source.paths.iter().any(|path| path.contains("PgPool")), "{}", source.name);
    }
}

/// The SQL of every checked statement, as sqlx keeps it for offline builds.
fn statements() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let files = fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    let parsed = files.map(|file| serde_json::from_slice::<serde_json::Value>(&file).unwrap());
    parsed.map(|file| file["query"].as_str().unwrap().to_owned()).collect()
}

/// The name in the comment that a statement begins with.
fn name_of(sql: &str) -> Option<&str> {
    let name = sql.trim_start().strip_prefix("/* ")?.split_once(" */")?.0;
    name.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(name)
}

#[test]
fn every_statement_begins_with_its_name() {
    let statements = statements();
    assert!(statements.len() > 30, "{}", statements.len());
    let nameless: Vec<_> = statements.iter().filter(|sql| name_of(sql).is_none()).collect();
    assert_eq!(nameless, [""; 0]);
}

/// The first argument of `complete` and `read` is the label of the statement's duration.
#[test]
fn every_statement_is_measured_under_its_own_name() {
    let statements = statements();
    let names: BTreeSet<&str> = statements.iter().filter_map(|sql| name_of(sql)).collect();
    let mut labels = BTreeSet::new();
    for source in sources() {
        labels.extend(source.labels);
    }
    assert!(labels.len() > 15, "{labels:?}");
    // A ping is a message of the protocol and no statement.
    labels.remove("ping");
    let unknown: Vec<_> = labels.iter().filter(|label| !names.contains(label.as_str())).collect();
    assert_eq!(unknown, [""; 0]);
}

/// Words to avoid, each with the words to use instead. docs/glossary.md defines the terms.
const DIALECT: [(&str, &str); 21] = [
    ("lane", "connection pool"),
    ("lanes", "connection pools"),
    ("rider", "pending write"),
    ("ridden", "written in one batch"),
    ("aboard", "enqueued, in the batch"),
    ("patience", "acquire timeout, lock wait"),
    ("patiently", "with lock wait"),
    ("whoever", "the client, the request, the operator"),
    ("himself", "the client, the operator"),
    ("in vain", "without success, failed"),
    ("senseless", "invalid"),
    ("somebody", "a client, another request"),
    ("give back", "refund, release"),
    ("gives back", "refunds, releases"),
    ("given back", "refunded, released"),
    ("that is there", "existing"),
    ("told so", "gets an answer, with its status and code"),
    ("as good as", "almost"),
    ("whom", "the name of the client or the program"),
    ("unhurried", "with lock wait"),
    ("impatient", "with a short timeout"),
];

#[test]
fn code_and_documents_use_common_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in [
        "src",
        "private-postgres/src",
        "benches/src",
        "fuzz/src",
        "fuzz/fuzz_targets",
        "tests/api",
        "tests/harness",
        "tests/model",
        "tests/siege",
    ] {
        list(&root.join(folder), &mut files);
    }
    let is_text = |path: &PathBuf| {
        path.extension().is_some_and(|kind| ["md", "sql", "yaml", "cfg"].iter().any(|text| kind == *text))
    };
    for folder in ["", "docs", "docs/adr", "migrations", "api-design", "deploy"] {
        let entries = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(entries.filter(is_text));
    }
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let words = line.to_lowercase().replace(|c: char| !c.is_alphabetic(), " ");
            let words = format!(" {} ", words.split_whitespace().collect::<Vec<_>>().join(" "));
            let dialect = DIALECT.iter().filter(|(word, _)| words.contains(&format!(" {word} ")));
            let name = file.strip_prefix(root).unwrap().display();
            found.extend(dialect.map(|(word, instead)| format!("{name}:{}: {word}; use: {instead}", number + 1)));
        }
    }
    assert_eq!(found, [""; 0]);
}
