//! Readiness: whether a load balancer should send requests to this replica.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::Connection;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Problem;
use crate::database::{self, DatabaseError, Durability, Pool, Schema};
use crate::overload::Shed;

/// Answers within a second whether the replica is ready, even if the database is slow.
///
/// A probe does not query the database itself. It requests a check, waits a short time for its result, and otherwise
/// answers with the result of the last check. The check continues, so a slow link does not make a replica unready.
pub struct Readiness {
    probes: Pool,
    /// The pools that serve requests.
    serving: Vec<Pool>,
    allow_loss: bool,
    draining: AtomicBool,
    wanted: Notify,
    seen: watch::Sender<Option<Seen>>,
}

/// The result of a check.
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

/// How long the result of a check is fresh. `/readyz` needs no token, so it must not put load on the database.
const LIFE: Duration = Duration::from_millis(500);
/// How long a probe waits for a check. A load balancer gives up after a second or two.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);
/// The time limit of a check. After it, the database counts as unavailable.
const CHECK_DEADLINE: Duration = Duration::from_secs(2);
/// How long a result is used while the next check runs: the time limit of that check, and some more for rare probes.
const STALE_LIFE: Duration = Duration::from_secs(5);

/// The reason for a database that does not answer, or not in time.
const UNAVAILABLE: &str = "the database is not reachable or does not answer";

impl Readiness {
    /// `allow_loss`: whether a database that may lose acknowledged jobs counts as ready.
    pub fn new(probes: Pool, serving: Vec<Pool>, allow_loss: bool) -> Self {
        let (draining, wanted, seen) = (AtomicBool::new(false), Notify::new(), watch::Sender::new(None));
        Self { probes, serving, allow_loss, draining, wanted, seen }
    }

    /// Makes the replica not ready from now on, because the process is about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// # Errors
    /// [`Problem::NotReady`] with the reason, or [`Problem::ShuttingDown`].
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
            Some(seen) if seen.is_younger_than(STALE_LIFE) => seen.result.clone(),
            _ => Err(UNAVAILABLE.to_owned()),
        };
        result.map_err(Problem::NotReady)
    }

    /// Checks the database whenever a probe requests it, one check at a time, until `ending`.
    pub async fn watch(&self, ending: CancellationToken) {
        while ending.run_until_cancelled(self.wanted.notified()).await.is_some() {
            let result = self.check_database().await;
            if let Err(reason) = &result {
                // Logged per check, not per probe, because anybody can send probes.
                tracing::warn!(%reason, "the service is not ready");
            }
            self.seen.send_replace(Some(Seen { at: Instant::now(), result }));
        }
    }

    async fn check_database(&self) -> Result<(), String> {
        let deadline = Instant::now() + CHECK_DEADLINE;
        let checking =
            self.probes.read("database_condition", deadline, async |connection| database::fitness(connection).await);
        let pools = self.check_pools(deadline);
        let (checked, pools) = match self.probes.count().idle {
            // The probes connect first. If PostgreSQL has only one free connection, they must get it, because they find
            // out the reason.
            0 => (checking.await, pools.await),
            _ => tokio::join!(checking, pools),
        };
        match checked {
            Err(error) => {
                tracing::debug!(error = %error, "the readiness check could not query the database");
                Err(UNAVAILABLE.to_owned())
            }
            Ok((Schema::Unfit, _)) => Err(
                "the database does not have the schema that this release needs. An operator must run `hapax migrate`"
                    .to_owned(),
            ),
            Ok((_, Durability::ReadOnly)) => {
                Err("the database is read-only. Connect the service to the primary server".to_owned())
            }
            Ok((_, Durability::Lossy(setting))) if !self.allow_loss => {
                Err(format!("the database may lose committed jobs, because {setting} is off. Turn it on"))
            }
            Ok(_) => pools,
        }
    }

    /// Checks that each pool has a connection or can open one. A working probe connection does not show that.
    async fn check_pools(&self, deadline: Instant) -> Result<(), String> {
        let checks = self.serving.iter().map(|pool| check_pool(pool, deadline));
        join_all(checks).await.into_iter().collect()
    }
}

async fn check_pool(pool: &Pool, deadline: Instant) -> Result<(), String> {
    let connections = pool.count();
    if connections.busy == connections.limit {
        return Ok(());
    }
    match pool.read("ping", deadline, async |connection| connection.ping().await).await {
        // A busy pool is no reason for a load balancer to remove the replica.
        Ok(()) | Err(DatabaseError::Shed(Shed::Waited)) => Ok(()),
        Err(error) => {
            tracing::debug!(pool = pool.name(), %error, "the readiness check could not use a connection pool");
            Err(format!("no connection to the database is available for the pool {}", pool.name()))
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
    async fn a_probe_is_answered_within_a_second_while_a_check_hangs() {
        let (readiness, asked_at) = (readiness(), Instant::now());
        assert!(matches!(readiness.check().await, Err(Problem::NotReady(_))));
        assert!(asked_at.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_result_is_used_for_a_limited_time_while_a_slow_check_runs() {
        let readiness = readiness();
        readiness.seen.send_replace(Some(Seen { at: Instant::now(), result: Ok(()) }));
        tokio::time::advance(LIFE).await;
        assert!(readiness.check().await.is_ok());
        tokio::time::advance(STALE_LIFE).await;
        assert!(matches!(readiness.check().await, Err(Problem::NotReady(_))));
    }
}
