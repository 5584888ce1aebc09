//! The idle connections of a pool.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout};

/// Last in, first out, so that few connections stay warm. A task closes the others once they have been idle for
/// [`IDLE_MAX`].
pub struct IdleConnections {
    stack: Mutex<Stack>,
    /// The runtime that owns the pool's connections, also those in use. It outlives every HTTP worker.
    pub runtime: Handle,
}

#[derive(Default)]
struct Stack {
    /// Each with the time since when it is idle. The first has been idle for longest.
    connections: Vec<(PgConnection, Instant)>,
    /// Whether [`close_expired`] runs.
    is_watched: bool,
}

impl IdleConnections {
    pub fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { stack: Mutex::default(), runtime })
    }

    pub fn put(self: &Arc<Self>, connection: PgConnection) {
        let mut stack = self.stack();
        let now = Instant::now();
        stack.connections.push((connection, now));
        if !mem::replace(&mut stack.is_watched, true) {
            self.runtime.spawn(close_expired(Arc::downgrade(self), now + IDLE_MAX));
        }
    }

    /// The most recently used connection, and how long it has been idle.
    pub fn take(&self) -> Option<(PgConnection, Duration)> {
        let (connection, since) = self.stack().connections.pop()?;
        let idle_for = since.elapsed();
        if idle_for < IDLE_MAX {
            return Some((connection, idle_for));
        }
        // After a suspension of the process, this can run before the task does. All others have been idle for longer.
        drop(self.take_all());
        None
    }

    /// All of them. Dropped connections close.
    pub fn take_all(&self) -> Vec<(PgConnection, Instant)> {
        mem::take(&mut self.stack().connections)
    }

    pub fn count(&self) -> usize {
        self.stack().connections.len()
    }

    /// Takes the connections that have been idle for [`IDLE_MAX`]. Also returns when the next one will have been;
    /// `None`, and no longer watched, if there is no other.
    fn take_expired(&self) -> (Vec<(PgConnection, Instant)>, Option<Instant>) {
        let mut stack = self.stack();
        let expired = stack.connections.partition_point(|(_, since)| since.elapsed() >= IDLE_MAX);
        let expired = stack.connections.drain(..expired).collect();
        let next = stack.connections.first().map(|(_, since)| *since + IDLE_MAX);
        stack.is_watched = next.is_some();
        (expired, next)
    }

    fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes connections that have been idle for [`IDLE_MAX`]. Ends when none is idle, so an unused pool has no timer. While
/// a pool is in use, this wakes about once a minute.
async fn close_expired(idle: Weak<IdleConnections>, mut due: Instant) {
    loop {
        sleep_until(due).await;
        let Some(idle) = idle.upgrade() else { return };
        let (expired, next) = idle.take_expired();
        for (connection, _) in expired {
            // Says goodbye first: for a TLS connection that just ends, PostgreSQL logs an error.
            let _ = timeout(GOODBYE_LIMIT, connection.close()).await;
        }
        let Some(next) = next else { return };
        due = next;
    }
}

/// Shorter than the time after which any network drops a silent flow.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A goodbye waits only if the socket's buffer is full.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
