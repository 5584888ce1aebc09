use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use sqlx::{Connection, PgConnection};
use tokio::net::TcpStream;
use url::Url;

use super::{Ledger, Proxy, Server, free_address, until};

/// A PgBouncer in front of a ledger. Killed with the test.
pub struct Pooler {
    child: Child,
    /// The URL for servers.
    pub url: String,
    /// The proxy between the pooler and PostgreSQL.
    pub proxy: Proxy,
    _folder: tempfile::TempDir,
}

impl Pooler {
    /// In pool_mode transaction, with at most this many sessions. Returns once it answers.
    pub async fn in_front_of(ledger: &Ledger, sessions: usize) -> Self {
        Self::with(ledger, sessions, "pool_mode = transaction").await
    }

    /// With additional configuration lines.
    pub async fn with(ledger: &Ledger, sessions: usize, lines: &str) -> Self {
        let program = std::env::var("HAPAX_PGBOUNCER").unwrap_or_else(|_| "pgbouncer".to_owned());
        let (bind, proxy, folder) = (free_address(), Proxy::in_front_of(ledger).await, tempfile::tempdir().unwrap());
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, configuration(ledger, &proxy, bind, sessions, lines)).unwrap();
        // PgBouncer refuses to run as root. With `-u` it switches to another user.
        let user = if rustix::process::getuid().is_root() { &["-u", "nobody"][..] } else { &[] };
        let child = Command::new(program).arg("-q").args(user).arg(file).stderr(Stdio::null()).spawn();
        let child = child.expect("PgBouncer, or HAPAX_PGBOUNCER naming it; `make test` fetches it");
        until("the pooler answers", async || TcpStream::connect(bind).await.ok()).await;
        let url = format!("postgres://anyone@{bind}/{}?sslmode=disable", ledger.name);
        Self { child, url, proxy, _folder: folder }
    }

    /// A server that is configured for the pooler.
    pub async fn serve(&self, ledger: &Ledger, settings: &[(&str, &str)]) -> Server {
        let settings = [&[("HAPAX__DATABASE__POOLER", "transaction")], settings].concat();
        Server::start(&self.url, &ledger.token, &settings).await
    }

    /// Another client's connection to the pooler.
    pub async fn connect(&self) -> PgConnection {
        let url = self.url.replace("sslmode=disable", "sslmode=disable&application_name=another");
        let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
        PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap()
    }
}

fn configuration(ledger: &Ledger, proxy: &Proxy, bind: SocketAddr, sessions: usize, lines: &str) -> String {
    let direct = Url::parse(&proxy.url(ledger)).unwrap();
    let user = direct.query_pairs().find(|(name, _)| name == "user").map(|(_, user)| user.into_owned());
    let user = user.unwrap_or_else(|| direct.username().to_owned());
    let password = direct.password().map(|password| format!(" password={password}")).unwrap_or_default();
    format!(
        "[databases]\n{name} = host=127.0.0.1 port={port} user={user}{password}\n\
         [pgbouncer]\nlisten_addr = {ip}\nlisten_port = {own_port}\nunix_socket_dir =\nauth_type = any\n\
         default_pool_size = {sessions}\nmax_prepared_statements = 100\nserver_login_retry = 0.1\n\
         server_tls_sslmode = disable\n{lines}\n",
        name = ledger.name,
        port = direct.port().unwrap(),
        ip = bind.ip(),
        own_port = bind.port(),
    )
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
