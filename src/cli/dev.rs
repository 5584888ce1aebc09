//! `hapax dev`: the whole service on a private PostgreSQL. All data is in one folder.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use private_postgres::{Durability, Place, PrivatePostgres};
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};

use super::migrate::migrate;
use super::serve::{serve_until_signalled, start_logging};
use super::{block_on, postgres, print};
use crate::access::queries::NewToken;
use crate::access::{Scopes, TenantName, TenantSettings, Token, queries};
use crate::configuration::{Configuration, Overrides, address};
use crate::database::{self, Pooler};
use crate::metrics::Metrics;
use crate::server::{self, Listeners};

#[derive(clap::Args)]
pub struct Arguments {
    /// The address to listen on. Overrides the setting server.bind.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    bind: Option<SocketAddr>,
    /// The folder for the database, its URL and the development token. [default: .hapax]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

const FOLDER: &str = ".hapax";
const DATABASE: &str = "hapax";
const TENANT: &str = "dev";

pub fn run(arguments: Arguments, overrides: Overrides) -> anyhow::Result<()> {
    let overrides = Overrides { bind: arguments.bind, defaults: Configuration::for_development(), ..overrides };
    let metrics = Metrics::new();
    let _log = start_logging(&Configuration::load(&overrides)?, &metrics)?;
    let folder = arguments.data.clone().unwrap_or_else(|| FOLDER.into());
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    let folder = folder.canonicalize()?;
    let _lock = lock(&folder)?;

    // Started on the main thread, because the kernel stops PostgreSQL when the thread that started it ends.
    let place = match arguments.data {
        Some(_) => Place::Exactly(folder.clone()),
        None => Place::AtOrElsewhere { elsewhere: elsewhere(&folder), folder: folder.clone() },
    };
    let mut postgres = postgres::start(place, Durability::Full)?;
    let served = serve(&folder, &mut postgres, overrides, metrics);
    let stopped = postgres.stop();
    served.and(stopped.map_err(Into::into))
}

/// Where the cluster is if the user that PostgreSQL runs as cannot reach `folder`: one folder for each such `folder`.
fn elsewhere(folder: &Path) -> PathBuf {
    let digest = hex::encode(&Sha256::digest(folder.as_os_str().as_encoded_bytes())[..8]);
    PathBuf::from(format!("/var/tmp/hapax-{digest}"))
}

/// Makes sure that only one `hapax dev` uses the folder.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("{} cannot be written", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => bail!("another `hapax dev` is running in {}", folder.display()),
        Err(fs::TryLockError::Error(error)) => Err(error).context("the folder cannot be locked"),
    }
}

fn serve(folder: &Path, postgres: &mut PrivatePostgres, overrides: Overrides, metrics: Metrics) -> anyhow::Result<()> {
    let url = postgres.url(DATABASE);
    let mut configuration = Configuration::load(&Overrides { database_url: Some(url.clone()), ..overrides })?;
    configuration.database.pooler = Pooler::None;
    block_on(async {
        let listeners = Listeners::bind(&configuration)?;
        prepare(folder, postgres, &configuration).await?;
        keep(&folder.join("database-url"), &url)?;
        print(&welcome(folder, listeners.api.local_addr()?))?;
        tokio::select! {
            served = serve_until_signalled(&configuration, listeners, metrics) => served,
            ended = end_of(postgres) => ended,
        }
    })
}

/// Waits until PostgreSQL ends unexpectedly. Always an error, because the service cannot continue without it.
async fn end_of(postgres: &mut PrivatePostgres) -> anyhow::Result<()> {
    const LOOK: Duration = Duration::from_millis(500);
    loop {
        postgres.check_running()?;
        tokio::time::sleep(LOOK).await;
    }
}

/// Creates the database, schema, tenant and token that do not exist yet.
async fn prepare(folder: &Path, postgres: &PrivatePostgres, configuration: &Configuration) -> anyhow::Result<()> {
    let mut maintenance = PgConnection::connect(&postgres.url("postgres")).await?;
    database::create_if_missing(&mut maintenance, DATABASE).await?;
    maintenance.close().await?;

    migrate(configuration, |wait| tracing::warn!("{wait}")).await?;
    let mut connection = database::connect(&server::database_settings(configuration)?).await?;
    let tenant: TenantName = TENANT.parse()?;
    queries::create_tenant(&mut connection, &tenant, &TenantSettings::default()).await?;
    let path = folder.join("dev-token");
    let kept = fs::read_to_string(&path).ok().and_then(|text| Token::parse(text.trim()));
    let known = match &kept {
        Some(token) => !queries::find_callers(&mut connection, &[token.digest()]).await?.is_empty(),
        None => false,
    };
    if !known {
        let token = Token::mint();
        let new = NewToken { tenant: &tenant, scopes: Scopes::all(), name: None, life: None };
        queries::create_token(&mut connection, &token.digest(), new).await?;
        keep(&path, token.expose())?;
    }
    connection.close().await?;
    Ok(())
}

/// Writes a file atomically. Only its owner can read it.
fn keep(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut draft = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(path))?;
        writeln!(draft, "{text}")?;
        draft.persist(path)?;
        Ok::<_, anyhow::Error>(())
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

/// Quotes a path as one word for a POSIX shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn welcome(folder: &Path, address: SocketAddr) -> String {
    format!(
        r#"
Hapax listens on http://{address}. Run this twice: the first call creates a job, the second gets the same answer.

  curl -i http://{address}/jobs \
    -H "Authorization: Bearer $(cat {token})" \
    -H 'Idempotency-Key: {key}' \
    -H 'Content-Type: application/json' \
    -d '{{"type":"mail.send","payload":{{"to":"ada@example.com"}}}}'

Try the API in the browser, with the same token: http://{address}/docs
OpenAPI: http://{address}/openapi.yaml    Database: psql "$(cat {url})"    Ctrl-C stops both.
"#,
        token = quoted(&folder.join("dev-token")),
        key = uuid::Uuid::new_v4(),
        url = quoted(&folder.join("database-url")),
    )
}
