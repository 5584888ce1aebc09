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

/// What happens to a statement whose parameters hold the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The connection is cut before the database sees it.
    CutBefore,
    /// The database answers; the answer is thrown away and the connection cut.
    CutAfter,
    /// The database answers; nothing is ever heard of it, nor of anything after it.
    Swallow,
}

/// Stands between a server and its database and does harm, once, where it is told to.
pub struct Proxy {
    address: SocketAddr,
    plan: Arc<Mutex<VecDeque<Plan>>>,
    swallowing: Arc<AtomicBool>,
    /// In milliseconds.
    delay: Arc<AtomicU64>,
}

struct Plan {
    marker: String,
    /// How many statements with the marker pass before.
    spared: usize,
    treatment: Treatment,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Proxy {
    pub async fn before(ledger: &Ledger) -> Self {
        let options = PgConnectOptions::from_str(&ledger.url).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let plan = Arc::<Mutex<VecDeque<Plan>>>::default();
        let (swallowing, delay) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (shared, hole, slowness) = (Arc::clone(&plan), Arc::clone(&swallowing), Arc::clone(&delay));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let database = connect(&options).await;
                tokio::spawn(pump(client, database, Arc::clone(&shared), Arc::clone(&hole), Arc::clone(&slowness)));
            }
        });
        Self { address, plan, swallowing, delay }
    }

    /// Treats the next statement that carries `marker` so; those after it pass.
    pub fn treat_next(&self, marker: &str, treatment: Treatment) {
        self.treat_after(0, marker, treatment);
    }

    /// Lets some statements with the marker pass before.
    pub fn treat_after(&self, spared: usize, marker: &str, treatment: Treatment) {
        *self.plan.lock().unwrap() = VecDeque::new();
        self.then_after(spared, marker, treatment);
    }

    /// The same, once what was planned before has been done.
    pub fn then_after(&self, spared: usize, marker: &str, treatment: Treatment) {
        self.plan.lock().unwrap().push_back(Plan { marker: marker.to_owned(), spared, treatment });
    }

    /// From now on nothing comes through, in either direction, and nobody is told: a network that drops packets.
    pub fn swallow_everything(&self) {
        self.swallowing.store(true, Ordering::Relaxed);
    }

    /// New connections come through again.
    pub fn pass_everything(&self) {
        self.swallowing.store(false, Ordering::Relaxed);
    }

    /// From now on every answer takes so much longer, as over a link that is slow.
    pub fn delay_answers(&self, by: Duration) {
        self.delay.store(by.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }

    /// Whether the plan has been carried out.
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
    swallowing: Arc<AtomicBool>,
    delay: Arc<AtomicU64>,
) {
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                if swallowing.load(Ordering::Relaxed) {
                    while let Ok(1..) = client.read(&mut asked).await {}
                    return;
                }
                let due = take_if_marked(&plan, &asked[..length]);
                if due == Some(Treatment::CutBefore) {
                    return;
                }
                if database.write_all(&asked[..length]).await.is_err() {
                    return;
                }
                match due {
                    None | Some(Treatment::CutBefore) => {}
                    Some(Treatment::CutAfter) => {
                        let _answer = database.read(&mut answered).await;
                        return;
                    }
                    Some(Treatment::Swallow) => {
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

fn take_if_marked(plan: &Mutex<VecDeque<Plan>>, bytes: &[u8]) -> Option<Treatment> {
    let mut plan = plan.lock().unwrap();
    let current = plan.front_mut()?;
    if !bytes.windows(current.marker.len()).any(|window| window == current.marker.as_bytes()) {
        return None;
    }
    if current.spared > 0 {
        current.spared -= 1;
        return None;
    }
    plan.pop_front().map(|plan| plan.treatment)
}
