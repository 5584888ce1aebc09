//! Whether a load balancer should send requests here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::Connection;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Problem;
use crate::database::{self, DatabaseError, Durability, Lane, Schema};
use crate::metrics::Shed;

/// Asks the database, once for all who ask at the same time.
pub struct Readiness {
    probes: Lane,
    /// Those that requests are served on.
    serving: Vec<Lane>,
    allow_loss: bool,
    draining: AtomicBool,
    last: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// How long one look at the database counts: `/readyz` needs no token and must not be load.
const LIFE: Duration = Duration::from_millis(500);
/// Longer than this a load balancer would not wait either.
const DEADLINE: Duration = Duration::from_secs(2);
/// For each of four lanes, so that all of them are looked at within that time.
const LANE_DEADLINE: Duration = Duration::from_millis(400);

impl Readiness {
    /// `allow_loss`: whether a server that may lose acknowledged jobs is good enough.
    pub fn new(probes: Lane, serving: Vec<Lane>, allow_loss: bool) -> Self {
        Self { probes, serving, allow_loss, draining: AtomicBool::new(false), last: Mutex::default() }
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
        let mut last = self.last.lock().await;
        let fresh = last.as_ref().filter(|(at, _)| at.elapsed() < LIFE).map(|(_, result)| result.clone());
        let result = match fresh {
            Some(result) => result,
            None => {
                let result = self.look().await;
                *last = Some((Instant::now(), result.clone()));
                result
            }
        };
        result.map_err(Problem::NotReady)
    }

    async fn look(&self) -> Result<(), String> {
        let looking = self.probes.read(Instant::now() + DEADLINE, async |connection| {
            Ok((database::schema(connection).await?, database::durability(connection).await?))
        });
        match looking.await {
            Err(error) => {
                tracing::debug!(error = %error, "the database could not be asked");
                Err("the database is not available".to_owned())
            }
            Ok((Schema::Unfit, _)) => Err("the database's schema is not the one that this release needs".to_owned()),
            Ok((_, Durability::ReadOnly)) => Err("the database takes no writes".to_owned()),
            Ok((_, Durability::Lossy(setting))) if !self.allow_loss => {
                Err(format!("the database may lose what it acknowledges: {setting} is off"))
            }
            Ok(_) => self.look_at_lanes().await,
        }
    }

    /// Whether each lane has a connection, or gets one: that the probes have theirs says nothing of the others.
    async fn look_at_lanes(&self) -> Result<(), String> {
        for lane in &self.serving {
            let connections = lane.count();
            if connections.busy == connections.limit {
                continue;
            }
            match lane.read(Instant::now() + LANE_DEADLINE, async |connection| connection.ping().await).await {
                // Busy is not away, and the load balancer need not know of it.
                Ok(()) | Err(DatabaseError::Shed(Shed::Waited)) => {}
                Err(error) => {
                    tracing::debug!(lane = lane.name(), %error, "a lane could not be tried");
                    return Err(format!("there is no connection to the database for {}", lane.name()));
                }
            }
        }
        Ok(())
    }
}
