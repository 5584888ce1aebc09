//! `hapax audit`: checks the invariants that live in the data.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use humantime_serde::re::humantime;
use sqlx::PgConnection;

use super::{block_on, print};
use crate::audit::{self, CHECKS, Check, Violations};
use crate::configuration::Configuration;
use crate::database::{self, Schema};
use crate::server;

#[derive(clap::Args)]
pub struct Arguments {
    /// Delete violating rows where that is safe, and print each of them. Never touches a job, a lease or a key.
    #[arg(long)]
    repair: bool,
    /// How long one check may take. A check reads whole tables.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10m")]
    check_timeout: Duration,
}

pub fn run(arguments: &Arguments, configuration: &Configuration) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut reader = connect(arguments, configuration).await?;
        audit::forbid_writes(&mut reader).await?;
        let rows = audit::count_rows(&mut reader).await?;
        print(&format!(
            "found {} waiting, {} running, {} finished and {} deleted jobs, {} keys, {} claims, {} past attempts",
            rows.waiting, rows.running, rows.finished, rows.deleted, rows.keys, rows.claims, rows.attempts
        ))?;
        let mut violations = 0;
        let mut repairable = 0;
        for check in &CHECKS {
            let mut found = report(&mut reader, check).await?;
            if found.count > 0 && arguments.repair && check.can_repair() {
                repair(&mut connect(arguments, configuration).await?, check).await?;
                found = report(&mut reader, check).await?;
            }
            violations += found.count;
            repairable += if check.can_repair() { found.count } else { 0 };
        }
        if violations == 0 {
            print(&format!("{} checks, no violations", CHECKS.len()))?;
            return Ok(ExitCode::SUCCESS);
        }
        print(&format!("{} checks, {violations} violations, of which --repair removes {repairable}", CHECKS.len()))?;
        Ok(ExitCode::FAILURE)
    })
}

/// Opens a session for statements that read whole tables. The session must be our own, because it changes its settings.
async fn connect(arguments: &Arguments, configuration: &Configuration) -> anyhow::Result<PgConnection> {
    let mut connection = server::connect_directly(&server::database_settings(configuration)?).await?;
    if database::fitness(&mut connection).await?.0 == Schema::Unfit {
        bail!("the database's schema is not the one this release needs; run `hapax migrate` first");
    }
    audit::prepare_session(&mut connection, arguments.check_timeout).await?;
    Ok(connection)
}

/// Runs a check and prints what it found.
async fn report(reader: &mut PgConnection, check: &Check) -> anyhow::Result<Violations> {
    let begun = Instant::now();
    let found = audit::violations(reader, check).await.with_context(|| format!("the check {} failed", check.name))?;
    let (name, rule, seconds) = (check.name, check.rule, begun.elapsed().as_secs_f64());
    if found.count == 0 {
        print(&format!("ok: {name} ({seconds:.1} s): {rule}"))?;
        return Ok(found);
    }
    print(&format!("VIOLATED: {name} ({seconds:.1} s): {rule} {} violations:", found.count))?;
    for violation in &found.shown {
        print(&format!("    {violation}"))?;
    }
    let more = found.count - found.shown.len() as i64;
    if more > 0 {
        print(&format!("    and {more} more"))?;
    }
    Ok(found)
}

/// Deletes the rows that violate a check, in batches, so that no transaction locks many rows for long.
async fn repair(writer: &mut PgConnection, check: &Check) -> anyhow::Result<()> {
    const BATCH: i64 = 5_000;
    loop {
        let deleted = audit::delete_violations(writer, check, BATCH).await?;
        for row in &deleted {
            print(&format!("repaired: deleted the row of {row}"))?;
        }
        if deleted.is_empty() {
            return Ok(());
        }
    }
}
