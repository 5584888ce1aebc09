use hapax::access::Scope;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Client, Ledger, OwnPostgres, Server, hapax};

/// The scale of the attacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Full,
    /// About a tenth, to try the program.
    Small,
}

/// The target of one attack: a database and a server of its own.
pub struct Target {
    pub server: Server,
    pub ledger: Ledger,
    /// Another tenant, which is not attacked.
    pub neighbour: Client,
    size: Size,
}

impl Target {
    pub async fn prepare(postgres: &OwnPostgres, size: Size) -> Self {
        let ledger = postgres.ledger().await;
        let server = serve(&ledger).await;
        let neighbour = server.as_caller(&ledger.token_for("neighbour", &Scope::ALL).await);
        Self { server, ledger, neighbour, size }
    }

    /// One of two counts, depending on the size.
    pub fn count(&self, full: usize, small: usize) -> usize {
        if self.size == Size::Full { full } else { small }
    }
}

/// A server with the default settings, except for the ports and the log format.
async fn serve(ledger: &Ledger) -> Server {
    let mut command = hapax();
    command.args(["serve", "--bind", "127.0.0.1:0"]).env("DATABASE_URL", &ledger.url);
    command.env("HAPAX__METRICS__BIND", "127.0.0.1:0");
    Server::spawn_with_defaults(command, &ledger.token).await
}

/// Raises the limit of file descriptors as far as possible. Servers that are started later inherit it.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.unwrap_or(u64::MAX)
}
