//! Connects to the database of a server, and checks that the database can be used.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep, timeout_at};

use super::database_options::{self, Target};
use crate::configuration::Configuration;
use crate::database::{self, Durability, Pooler, Schema, Sessions};

/// The connection settings of the configured database.
///
/// # Errors
/// If no URL is set or the URL is invalid. The error does not show the URL.
pub fn database_settings(configuration: &Configuration) -> anyhow::Result<database::Settings> {
    let options = database_options::parse(configuration.database_url()?)?;
    Ok(database::Settings {
        options: options.application_name("hapax"),
        pooler: configuration.database.pooler,
        connect_timeout: configuration.database.connect_timeout,
        acquire_timeout: configuration.database.acquire_timeout,
        statement_timeout: configuration.database.statement_timeout,
        lock_timeout: configuration.intake.lock_wait,
        idle_in_transaction_timeout: configuration.database.idle_in_transaction_timeout,
    })
}

/// Opens a connection, and checks that it leads to what `database.pooler` says.
///
/// # Errors
/// If the connection cannot be opened, or a setting is wrong. The error names the setting.
pub async fn connect(settings: &database::Settings) -> anyhow::Result<PgConnection> {
    const POOLER: &str = "setting database.pooler: none, but database.url leads to a pooler, which does not pass on \
                          the settings that a session starts with; set it to the pooler's pool_mode";
    let on_refusal = match settings.pooler {
        Pooler::None => POOLER,
        _ => "setting database.url: the pooler refuses a setting in the URL",
    };
    let (connection, sessions) = open(settings, on_refusal).await?;
    match (settings.pooler, sessions) {
        (Pooler::None, Sessions::Ours)
        | (Pooler::Session, Sessions::Lent)
        | (Pooler::Transaction, Sessions::Shared) => Ok(connection),
        (Pooler::None, _) => bail!(POOLER),
        (_, Sessions::Confused) => bail!(
            "setting database.url: the pooler gives one session to several clients and mixes up their prepared \
             statements; use PgBouncer 1.21 or later with max_prepared_statements, or pool_mode session"
        ),
        (Pooler::Session, _) => bail!("setting database.pooler: session, but the pooler's pool_mode is transaction"),
        (Pooler::Transaction, _) => bail!(
            "setting database.pooler: transaction, but database.url does not lead to such a pooler, which would rename \
             prepared statements; use PgBouncer 1.21 or later in pool_mode transaction with max_prepared_statements"
        ),
    }
}

/// Opens a connection to PostgreSQL itself, for work that needs a session of its own.
///
/// # Errors
/// If the connection cannot be opened, or leads to a pooler.
pub async fn connect_directly(settings: &database::Settings) -> anyhow::Result<PgConnection> {
    const POOLER: &str = "setting database.url: it leads to a pooler; this command needs the URL of PostgreSQL itself";
    let settings = database::Settings { pooler: Pooler::None, ..settings.clone() };
    let (connection, sessions) = open(&settings, POOLER).await?;
    if sessions != Sessions::Ours {
        bail!(POOLER);
    }
    Ok(connection)
}

async fn open(settings: &database::Settings, on_refusal: &'static str) -> anyhow::Result<(PgConnection, Sessions)> {
    let opening = database::connect(settings).await;
    let mut connection = opening.map_err(|error| match database::is_refused_by_pooler(&error) {
        true => anyhow::Error::new(error).context(on_refusal),
        false => anyhow::Error::new(error).context("the database cannot be reached"),
    })?;
    let sessions = database::sessions(settings, &mut connection).await?;
    Ok((connection, sessions))
}

async fn warn_of_endless_statements(settings: &database::Settings, connection: &mut PgConnection) -> sqlx::Result<()> {
    let (limit, wanted) = (database::statement_timeout(connection).await?, settings.statement_timeout);
    if limit.is_none_or(|limit| limit > wanted) {
        tracing::warn!(
            ?limit,
            "PostgreSQL's statement_timeout is off or longer than database.statement_timeout; behind a pooler, set it \
             for the role: alter role {} set statement_timeout = '{}ms'",
            settings.options.get_username(),
            wanted.as_millis()
        );
    }
    Ok(())
}

/// Waits until the database can be reached, and checks it.
///
/// # Errors
/// If a check fails, if a connection fails for a permanent reason, or if the database is not reachable within half a
/// minute.
pub async fn await_database(settings: &database::Settings, allow_loss: bool) -> anyhow::Result<()> {
    let target = Target(&settings.options);
    if target.is_open_to_impostors() {
        tracing::warn!(
            host = target.host(),
            "the connection to PostgreSQL goes to another machine, and the server's certificate is not verified; add \
             sslmode=verify-full&sslrootcert=FILE to database.url"
        );
    }
    let ends = Instant::now() + START_TIMEOUT;
    let mut last_logged: Option<Instant> = None;
    let mut last_error = None;
    loop {
        match timeout_at(ends, check_database(settings, allow_loss)).await {
            Ok(Err(error)) if may_pass(&error) && Instant::now() + PAUSE < ends => {
                if last_logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                    last_logged = Some(Instant::now());
                    tracing::warn!(
                        host = target.host(),
                        port = settings.options.get_port(),
                        database = target.database(),
                        error = database::with_causes(error.as_ref()),
                        "waiting for the database"
                    );
                }
                last_error = Some(error);
                sleep(PAUSE).await;
            }
            Ok(checked) => return checked.with_context(|| target.to_string()),
            Err(_) => {
                let error = last_error.unwrap_or_else(|| anyhow!("the database does not answer"));
                return Err(error.context(target.to_string()));
            }
        }
    }
}

/// How long the server waits at its start for the database to become reachable and to pass the checks.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the log says that the server still waits.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);

fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(|cause: &sqlx::Error| database::may_pass(cause))
}

async fn check_database(settings: &database::Settings, allow_loss: bool) -> anyhow::Result<()> {
    let mut connection = connect(settings).await?;
    if settings.pooler != Pooler::None {
        warn_of_endless_statements(settings, &mut connection).await?;
    }
    let (schema, durability) = database::fitness(&mut connection).await?;
    match schema {
        Schema::Same => {}
        Schema::Newer => tracing::warn!("the database's schema is newer than this release; serving anyway"),
        Schema::Unfit => bail!("the database's schema is not the one this release needs; run `hapax migrate` first"),
    }
    match durability {
        Durability::Durable => {}
        Durability::ReadOnly => bail!("the database takes no writes: it is read-only or a standby"),
        Durability::Lossy(setting) if allow_loss => {
            tracing::warn!(setting, "the database may lose jobs that were acknowledged; the configuration allows it");
        }
        Durability::Lossy(setting) => bail!(
            "the database may lose jobs that were acknowledged: its {setting} is off; turn it on, or set \
             database.allow_losing_acknowledged_jobs to true"
        ),
    }
    Ok(())
}
