use hapax::access::Scope;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Client, Ledger, OwnPostgres, Server, hapax};

/// How much is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Full,
    /// A tenth or so, to try the program.
    Small,
}

/// What one attack is fought on: a database and a server of its own.
pub struct Field {
    pub server: Server,
    pub ledger: Ledger,
    /// A tenant of which nobody wants anything bad.
    pub neighbour: Client,
    size: Size,
}

impl Field {
    pub async fn prepare(postgres: &OwnPostgres, size: Size) -> Self {
        let ledger = postgres.ledger().await;
        let server = serve(&ledger).await;
        let neighbour = server.as_caller(&ledger.token_for("neighbour", &Scope::ALL).await);
        Self { server, ledger, neighbour, size }
    }

    /// One of two counts, by the size.
    pub fn count(&self, full: usize, small: usize) -> usize {
        if self.size == Size::Full { full } else { small }
    }
}

/// A server with its defaults, but for the ports and the log's format.
async fn serve(ledger: &Ledger) -> Server {
    let mut command = hapax();
    command.args(["serve", "--bind", "127.0.0.1:0"]).env("DATABASE_URL", &ledger.url);
    command.env("HAPAX__METRICS__BIND", "127.0.0.1:0");
    Server::spawn_with_defaults(command, &ledger.token).await
}

/// As far as it may be raised; servers that are started later have it, too.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.unwrap_or(u64::MAX)
}
