//! The task that sends and receives notifications, on a connection of its own.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::payload::{self, Counted, Sender};
use super::{Event, Outbox, queries};
use crate::database::{self, Listener, Settings};
use crate::metrics::{Metrics, Notified};

/// What a replica learns from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// This has happened on another replica, about so many times.
    Event(Event, usize),
    /// Notifications may have been missed, because the connection is new.
    Gap,
}

/// Sends what is in `outbox`, and passes what other replicas send to `incoming`, until `shutdown`. Never ends because of
/// the database: it opens another connection.
pub async fn run(
    settings: Settings,
    outbox: Arc<Outbox>,
    metrics: Metrics,
    incoming: impl Fn(Incoming) + Send + Sync,
    shutdown: CancellationToken,
) {
    let limit = settings.statement_timeout + GRACE;
    let own = Sender(rand::random());
    let (unsent, outage) = (Vec::new(), Outage::default());
    let mut exchange = Exchange { outbox, metrics, incoming, own, limit, unsent, outage };
    loop {
        let Some(opened) = shutdown.run_until_cancelled(Listener::open(&settings)).await else { return };
        let error = match opened {
            Ok(mut listener) => {
                let began = Instant::now();
                let ended = shutdown.run_until_cancelled(exchange.keep_up(&mut listener)).await;
                exchange.metrics.set_notifications_connected(false);
                let Some(Err(error)) = ended else { return exchange.finish(listener).await };
                if began.elapsed() >= STABLE {
                    exchange.outage = Outage::default();
                }
                error
            }
            Err(error) => error,
        };
        exchange.outage.report(&error);
        if shutdown.run_until_cancelled(sleep(exchange.outage.pause())).await.is_none() {
            return;
        }
    }
}

/// The time between two statements. At most 200 a second, because each takes a transaction id and, for its commit, a
/// lock that all other notifying transactions wait for.
const SEND_INTERVAL: Duration = Duration::from_millis(5);
/// The time without a word of the server after which the connection is checked. sqlx sets no keepalive on its sockets,
/// and a connection that only listens would not notice that the server has vanished.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// The time for the last notifications at the end, and for closing the connection.
const FINISH_LIMIT: Duration = Duration::from_secs(1);
/// Allowance for the network, on top of PostgreSQL's own statement timeout.
const GRACE: Duration = Duration::from_millis(500);
/// A connection that has lived for this long ends an outage.
const STABLE: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

struct Exchange<F> {
    outbox: Arc<Outbox>,
    metrics: Metrics,
    incoming: F,
    own: Sender,
    /// The time limit of a statement.
    limit: Duration,
    /// Taken out of the outbox, and perhaps not sent. Sent again on the next connection. A repetition only costs the
    /// others a look.
    unsent: Vec<Counted>,
    outage: Outage,
}

enum Next {
    Receive(String),
    Send,
    Check,
}

impl<F: Fn(Incoming)> Exchange<F> {
    /// Sends and receives until the connection is lost.
    async fn keep_up(&mut self, listener: &mut Listener) -> sqlx::Result<Infallible> {
        self.within_limit(async { queries::listen(listener.connection().await?).await }).await?;
        // Only now, so that no event is missed between the looks that this causes and the first notification.
        (self.incoming)(Incoming::Gap);
        self.metrics.set_notifications_connected(true);
        self.outage.report_end();
        self.send(listener).await?;
        let mut next_send = Instant::now();
        loop {
            let check_at = Instant::now() + QUIET_MAX;
            let due = async {
                self.outbox.filled().await;
                sleep_until(next_send).await;
            };
            let next = tokio::select! {
                payload = listener.receive() => Next::Receive(payload?),
                () = due => Next::Send,
                () = sleep_until(check_at) => Next::Check,
            };
            match next {
                Next::Receive(payload) => self.receive(&payload),
                Next::Send => {
                    // An event on a quiet replica is sent at once. Those of the next 5 ms go together.
                    next_send = Instant::now() + SEND_INTERVAL;
                    self.send(listener).await?;
                }
                Next::Check => self.within_limit(listener.ping()).await?,
            }
        }
    }

    async fn send(&mut self, listener: &mut Listener) -> sqlx::Result<()> {
        if self.unsent.is_empty() {
            self.unsent = self.outbox.take();
        }
        if self.unsent.is_empty() {
            return Ok(());
        }
        let payloads = payload::encode(self.own, &self.unsent);
        let started = Instant::now();
        self.within_limit(async { queries::notify(listener.connection().await?, &payloads).await }).await?;
        self.metrics.observe_statement("notify", started.elapsed());
        self.metrics.count_notified(Notified::Sent, self.unsent.len());
        self.unsent.clear();
        Ok(())
    }

    fn receive(&self, payload: &str) {
        let Some((sender, events)) = payload::decode(payload) else {
            tracing::debug!("a notification that no Hapax sent");
            return;
        };
        // PostgreSQL also sends a session its own notifications.
        if sender == self.own {
            return;
        }
        self.metrics.count_notified(Notified::Received, events.len());
        for (event, count) in events {
            (self.incoming)(Incoming::Event(event, usize::from(count)));
        }
    }

    /// Sends what is left, and closes the connection.
    async fn finish(mut self, mut listener: Listener) {
        let finishing = async {
            // First what a statement that the shutdown interrupted has perhaps not sent, then the rest.
            for _ in 0..2 {
                self.send(&mut listener).await?;
            }
            listener.close().await;
            Ok::<_, sqlx::Error>(())
        };
        // Without them, other replicas find the last jobs by their next look.
        if !matches!(timeout(FINISH_LIMIT, finishing).await, Ok(Ok(()))) {
            tracing::debug!("the last notifications were not sent");
        }
    }

    async fn within_limit<T>(&self, statement: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
        let ended = timeout(self.limit, statement).await;
        ended.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
    }
}

/// The time without a connection, or with connections that are lost at once.
#[derive(Default)]
struct Outage {
    failures: u32,
}

impl Outage {
    /// Logs the first failure of an outage.
    fn report(&mut self, error: &sqlx::Error) {
        let error = database::with_causes(error);
        if self.failures == 0 {
            tracing::warn!(
                error,
                "no connection for notifications: until there is one, waiting requests find jobs and ends of jobs of \
                 other replicas only each claims.poll_interval"
            );
        } else {
            tracing::debug!(error, "still no connection for notifications");
        }
        self.failures = self.failures.saturating_add(1);
    }

    fn report_end(&self) {
        if self.failures > 0 {
            tracing::info!("there is a connection for notifications again");
        }
    }

    /// The time until the next attempt. It doubles with each, and a random part is left out, so that replicas do not
    /// come at the same moment.
    fn pause(&self) -> Duration {
        let doubled = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(self.failures.saturating_sub(1)));
        doubled.min(PAUSE_MAX).mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_between_attempts_grows_up_to_a_bound() {
        let mut outage = Outage::default();
        let error = sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        let mut pauses = Vec::new();
        for _ in 0..100 {
            outage.report(&error);
            pauses.push(outage.pause());
        }
        assert!((PAUSE_MIN / 2..PAUSE_MIN).contains(&pauses[0]), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause < PAUSE_MAX), "{pauses:?}");
        assert!(pauses[10..].iter().all(|pause| *pause >= PAUSE_MAX / 2), "{pauses:?}");
    }
}
