use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};

use private_postgres::{Durability, Options, Place, PrivatePostgres};

use super::Ledger;

/// A PostgreSQL of the test's own, which it may stop and start.
pub struct OwnPostgres {
    /// Commands for the thread that started PostgreSQL. PostgreSQL ends with that thread.
    orders: Sender<Order>,
    pub url: String,
    _folder: tempfile::TempDir,
}

enum Order {
    /// `pg_ctl stop -m immediate`: an abrupt stop, as in a crash.
    StopImmediately(Sender<()>),
    Start(Sender<()>),
}

impl OwnPostgres {
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("hapax-").tempdir().unwrap();
        // As root, PostgreSQL's user must be able to enter the folder.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let place = folder.path().to_owned();
        let (orders, received) = channel();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let options = Options {
                place: Place::Exactly(place),
                durability: Durability::Full,
                role: "postgres".to_owned(),
                programs: std::env::var_os("HAPAX_POSTGRES_BIN").map(PathBuf::from),
                notify: |_| {},
            };
            let start = || PrivatePostgres::start(&options).unwrap();
            let mut running = Some(start());
            tell.send(running.as_ref().unwrap().url("postgres")).unwrap();
            for order in received {
                let done = match order {
                    Order::StopImmediately(done) => {
                        running.take().unwrap().stop_immediately().unwrap();
                        done
                    }
                    Order::Start(done) => {
                        running = Some(start());
                        done
                    }
                };
                done.send(()).unwrap();
            }
        });
        let url = tokio::task::spawn_blocking(move || told.recv().unwrap()).await.unwrap();
        Self { orders, url, _folder: folder }
    }

    pub async fn ledger(&self) -> Ledger {
        Ledger::on(&self.url).await
    }

    pub async fn stop_immediately(&self) {
        self.order(Order::StopImmediately).await;
    }

    pub async fn start_again(&self) {
        self.order(Order::Start).await;
    }

    async fn order(&self, order: impl FnOnce(Sender<()>) -> Order) {
        let (tell, told) = channel();
        self.orders.send(order(tell)).unwrap();
        tokio::task::spawn_blocking(move || told.recv().unwrap()).await.unwrap();
    }
}
