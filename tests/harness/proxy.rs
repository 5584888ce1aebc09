use std::collections::VecDeque;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use url::Url;

use super::Ledger;

/// What happens to a statement that contains the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Cut the connection before the database sees the statement.
    CutBefore,
    /// Let the database execute the statement, drop its answer and cut the connection.
    CutAfter,
    /// Let the database execute the statement, then drop everything that follows.
    BlackHole,
}

/// A TCP proxy between a server and its database that injects faults.
pub struct Proxy {
    address: SocketAddr,
    plan: Arc<Mutex<VecDeque<Plan>>>,
    black_hole: Arc<AtomicBool>,
    /// In milliseconds.
    delay: Arc<AtomicU64>,
}

struct Plan {
    marker: String,
    /// How many statements with the marker pass first.
    spared: usize,
    fault: Fault,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Proxy {
    pub async fn in_front_of(ledger: &Ledger) -> Self {
        let options = PgConnectOptions::from_str(&ledger.url).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let plan = Arc::<Mutex<VecDeque<Plan>>>::default();
        let (black_hole, delay) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (shared, hole, slowness) = (Arc::clone(&plan), Arc::clone(&black_hole), Arc::clone(&delay));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let database = connect(&options).await;
                tokio::spawn(pump(client, database, Arc::clone(&shared), Arc::clone(&hole), Arc::clone(&slowness)));
            }
        });
        Self { address, plan, black_hole, delay }
    }

    /// Applies a fault to the next statement that contains `marker`. Later statements pass.
    pub fn fail_next(&self, marker: &str, fault: Fault) {
        self.fail_after(0, marker, fault);
    }

    /// The same after `spared` statements with the marker.
    pub fn fail_after(&self, spared: usize, marker: &str, fault: Fault) {
        *self.plan.lock().unwrap() = VecDeque::new();
        self.then_fail_after(spared, marker, fault);
    }

    /// Adds a fault that follows the ones already planned.
    pub fn then_fail_after(&self, spared: usize, marker: &str, fault: Fault) {
        self.plan.lock().unwrap().push_back(Plan { marker: marker.to_owned(), spared, fault });
    }

    /// Drops all packets in both directions from now on, without closing connections.
    pub fn start_black_hole(&self) {
        self.black_hole.store(true, Ordering::Relaxed);
    }

    /// Lets new connections through again.
    pub fn end_black_hole(&self) {
        self.black_hole.store(false, Ordering::Relaxed);
    }

    /// Delays every answer, as a slow network would.
    pub fn delay_answers(&self, by: Duration) {
        self.delay.store(by.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }

    /// Whether all planned faults have occurred.
    pub fn is_done(&self) -> bool {
        self.plan.lock().unwrap().is_empty()
    }

    pub fn url(&self, ledger: &Ledger) -> String {
        let mut url = Url::parse(&ledger.url).unwrap();
        let kept: Vec<_> =
            url.query_pairs().into_owned().filter(|(name, _)| name != "host" && name != "sslmode").collect();
        url.query_pairs_mut().clear().extend_pairs(kept).append_pair("sslmode", "disable");
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.into()
    }
}

async fn connect(options: &PgConnectOptions) -> Box<dyn Stream> {
    match options.get_socket() {
        Some(folder) => {
            let path = folder.join(format!(".s.PGSQL.{}", options.get_port()));
            Box::new(UnixStream::connect(path).await.unwrap())
        }
        None => Box::new(TcpStream::connect((options.get_host(), options.get_port())).await.unwrap()),
    }
}

async fn pump(
    mut client: TcpStream,
    mut database: Box<dyn Stream>,
    plan: Arc<Mutex<VecDeque<Plan>>>,
    black_hole: Arc<AtomicBool>,
    delay: Arc<AtomicU64>,
) {
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                if black_hole.load(Ordering::Relaxed) {
                    while let Ok(1..) = client.read(&mut asked).await {}
                    return;
                }
                let due = take_if_marked(&plan, &asked[..length]);
                if due == Some(Fault::CutBefore) {
                    return;
                }
                if database.write_all(&asked[..length]).await.is_err() {
                    return;
                }
                match due {
                    None | Some(Fault::CutBefore) => {}
                    Some(Fault::CutAfter) => {
                        let _answer = database.read(&mut answered).await;
                        return;
                    }
                    Some(Fault::BlackHole) => {
                        while let Ok(1..) = client.read(&mut asked).await {}
                        return;
                    }
                }
            }
            read = database.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                tokio::time::sleep(Duration::from_millis(delay.load(Ordering::Relaxed))).await;
                if client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn take_if_marked(plan: &Mutex<VecDeque<Plan>>, bytes: &[u8]) -> Option<Fault> {
    let mut plan = plan.lock().unwrap();
    let current = plan.front_mut()?;
    if !bytes.windows(current.marker.len()).any(|window| window == current.marker.as_bytes()) {
        return None;
    }
    if current.spared > 0 {
        current.spared -= 1;
        return None;
    }
    plan.pop_front().map(|plan| plan.fault)
}
