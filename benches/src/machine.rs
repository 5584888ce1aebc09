//! The environment of the measurement: machine, versions, commit.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::postgres::Postgres;

#[derive(Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    pub file_system: String,
    pub postgres: String,
    pub pgbench: String,
    pub rustc: String,
    /// Crates that affect the figures, with their versions.
    pub crates: Vec<(String, String)>,
    /// Empty outside of a Git work tree.
    pub commit: String,
    pub day: String,
}

const CRATES: [&str; 7] = ["actix-http", "actix-web", "mio", "quick_cache", "sqlx", "tokio", "tracing-subscriber"];

impl Machine {
    pub fn look(postgres: &Postgres) -> anyhow::Result<Self> {
        let processors = fs::read_to_string("/proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let memory_kilobytes: u64 = field(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
        let dirty =
            !said("git", &["status", "--porcelain", "--", "src", "benches", "migrations", "Cargo.lock"]).is_empty();
        Ok(Self {
            processor: field(&processors, "model name").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: memory_kilobytes * 1024,
            kernel: said("uname", &["-sr"]),
            file_system: file_system(postgres.folder()),
            postgres: postgres.ask("postgres", "select current_setting('server_version')")?,
            pgbench: said(&postgres.program("pgbench")?.to_string_lossy(), &["--version"]),
            rustc: said("rustc", &["--version"]),
            crates: versions(&fs::read_to_string("Cargo.lock").unwrap_or_default()),
            commit: said("git", &["rev-parse", "--short=12", "HEAD"]) + if dirty { ", changed" } else { "" },
            day: said("date", &["-u", "+%Y-%m-%d"]),
        })
    }
}

/// The type of the file system that contains a folder.
fn file_system(folder: &Path) -> String {
    let table = said("df", &["--output=fstype", &folder.to_string_lossy()]);
    table.lines().last().unwrap_or("unknown").to_owned()
}

/// The output of a program; empty if it cannot be run.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn field<'text>(text: &'text str, name: &str) -> &'text str {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(found, _)| found.trim() == name).map_or("unknown", |(_, value)| value.trim())
}

fn versions(lock: &str) -> Vec<(String, String)> {
    let packages: Vec<&str> = lock.split("[[package]]").collect();
    let version_of = |name: &str| {
        let package = packages.iter().find(|package| package.contains(&format!("name = \"{name}\"\n")))?;
        Some(package.split("version = \"").nth(1)?.split('"').next()?.to_owned())
    };
    CRATES.into_iter().filter_map(|name| Some((name.to_owned(), version_of(name)?))).collect()
}
