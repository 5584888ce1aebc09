//! Whether a load balancer should send requests here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::Connection;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Problem;
use crate::database::{self, DatabaseError, Durability, Pool, Schema};
use crate::metrics::Shed;

/// Says within a second whether requests can be served, however long the database takes to answer.
///
/// A probe does not ask the database itself: it asks for a look, waits for a short time, and otherwise answers with what
/// the last look has seen. The look goes on meanwhile, so a slow link does not make a replica unready.
pub struct Readiness {
    probes: Pool,
    /// Those that requests are served on.
    serving: Vec<Pool>,
    allow_loss: bool,
    draining: AtomicBool,
    wanted: Notify,
    seen: watch::Sender<Option<Seen>>,
}

/// What a look has come to.
#[derive(Clone)]
struct Seen {
    at: Instant,
    result: Result<(), String>,
}

impl Seen {
    fn is_younger_than(&self, age: Duration) -> bool {
        self.at.elapsed() < age
    }
}

/// How long one look at the database counts: `/readyz` needs no token and must not be load.
const LIFE: Duration = Duration::from_millis(500);
/// How long a probe waits for a look: a load balancer gives up after a second or two.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);
/// When a look is given up, and the database is taken for gone.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// How long a look counts while the next one is under way: that one's time, and some more for probes that come rarely.
const LIFE_MEANWHILE: Duration = Duration::from_secs(5);

/// What is said of a database that does not answer, or not in time.
const UNAVAILABLE: &str = "the database is not available";

impl Readiness {
    /// `allow_loss`: whether a server that may lose acknowledged jobs is good enough.
    pub fn new(probes: Pool, serving: Vec<Pool>, allow_loss: bool) -> Self {
        let (draining, wanted, seen) = (AtomicBool::new(false), Notify::new(), watch::Sender::new(None));
        Self { probes, serving, allow_loss, draining, wanted, seen }
    }

    /// From now on the answer is no: the process is about to go.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// # Errors
    /// [`Problem::NotReady`] says why.
    pub async fn check(&self) -> Result<(), Problem> {
        if self.is_draining() {
            return Err(Problem::ShuttingDown);
        }
        let mut seen = self.seen.subscribe();
        let younger_than = |age| move |seen: &Option<Seen>| seen.as_ref().is_some_and(|seen| seen.is_younger_than(age));
        if !younger_than(LIFE)(&seen.borrow()) {
            self.wanted.notify_one();
            let _in_time = timeout(PROBE_TIMEOUT, seen.wait_for(younger_than(LIFE))).await;
        }
        let result = match &*seen.borrow() {
            Some(seen) if seen.is_younger_than(LIFE_MEANWHILE) => seen.result.clone(),
            _ => Err(UNAVAILABLE.to_owned()),
        };
        result.map_err(Problem::NotReady)
    }

    /// Looks at the database whenever a probe asks for it, one look at a time, until `ending`.
    pub async fn watch(&self, ending: CancellationToken) {
        while ending.run_until_cancelled(self.wanted.notified()).await.is_some() {
            let result = self.look().await;
            if let Err(reason) = &result {
                // Not by each probe, which anybody may send.
                tracing::warn!(%reason, "the service is not ready");
            }
            self.seen.send_replace(Some(Seen { at: Instant::now(), result }));
        }
    }

    async fn look(&self) -> Result<(), String> {
        let deadline = Instant::now() + LOOK_DEADLINE;
        let looking = self.probes.read(deadline, async |connection| database::fitness(connection).await);
        let pools = self.check_pools(deadline);
        let (looked, pools) = match self.probes.count().idle {
            // Of the last connection that can be had, the probes make the best use: they say why.
            0 => (looking.await, pools.await),
            _ => tokio::join!(looking, pools),
        };
        match looked {
            Err(error) => {
                tracing::debug!(error = %error, "the database could not be asked");
                Err(UNAVAILABLE.to_owned())
            }
            Ok((Schema::Unfit, _)) => Err("the database's schema is not the one that this release needs".to_owned()),
            Ok((_, Durability::ReadOnly)) => Err("the database takes no writes".to_owned()),
            Ok((_, Durability::Lossy(setting))) if !self.allow_loss => {
                Err(format!("the database may lose what it acknowledges: {setting} is off"))
            }
            Ok(_) => pools,
        }
    }

    /// Whether each pool has a connection, or gets one: that the probes have theirs says nothing of the others.
    async fn check_pools(&self, deadline: Instant) -> Result<(), String> {
        let looks = self.serving.iter().map(|pool| check_pool(pool, deadline));
        join_all(looks).await.into_iter().collect()
    }
}

async fn check_pool(pool: &Pool, deadline: Instant) -> Result<(), String> {
    let connections = pool.count();
    if connections.busy == connections.limit {
        return Ok(());
    }
    match pool.read(deadline, async |connection| connection.ping().await).await {
        // Busy is not away, and the load balancer need not know of it.
        Ok(()) | Err(DatabaseError::Shed(Shed::Waited)) => Ok(()),
        Err(error) => {
            tracing::debug!(pool = pool.name(), %error, "a pool could not be tried");
            Err(format!("there is no connection to the database for {}", pool.name()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness() -> Readiness {
        Readiness::new(Pool::to_nowhere(), Vec::new(), true)
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_is_answered_within_a_second_while_no_look_comes_to_an_end() {
        let (readiness, asked_at) = (readiness(), Instant::now());
        assert!(matches!(readiness.check().await, Err(Problem::NotReady(_))));
        assert!(asked_at.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_seen_last_counts_while_a_slow_look_is_under_way_but_not_for_ever() {
        let readiness = readiness();
        readiness.seen.send_replace(Some(Seen { at: Instant::now(), result: Ok(()) }));
        tokio::time::advance(LIFE).await;
        assert!(readiness.check().await.is_ok());
        tokio::time::advance(LIFE_MEANWHILE).await;
        assert!(matches!(readiness.check().await, Err(Problem::NotReady(_))));
    }
}
