//! The idle connections of a pool.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgConnection;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Last in, first out, so that few connections stay warm.
pub struct IdleConnections {
    /// Each with the time since when it is idle.
    stack: Mutex<Vec<(PgConnection, Instant)>>,
    /// The runtime that owns the pool's connections, also those in use. It outlives every HTTP worker.
    pub runtime: Handle,
}

impl IdleConnections {
    pub fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { stack: Mutex::default(), runtime })
    }

    pub fn put(&self, connection: PgConnection) {
        self.stack().push((connection, Instant::now()));
    }

    /// The most recently used connection, and how long it has been idle.
    pub fn take(&self) -> Option<(PgConnection, Duration)> {
        let (connection, since) = self.stack().pop()?;
        let idle_for = since.elapsed();
        if idle_for < IDLE_MAX {
            return Some((connection, idle_for));
        }
        // All others have been idle for longer.
        drop(self.take_all());
        None
    }

    /// All of them. Dropped connections close.
    pub fn take_all(&self) -> Vec<(PgConnection, Instant)> {
        mem::take(&mut *self.stack())
    }

    pub fn count(&self) -> usize {
        self.stack().len()
    }

    fn stack(&self) -> MutexGuard<'_, Vec<(PgConnection, Instant)>> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shorter than the time after which any network drops a silent flow.
const IDLE_MAX: Duration = Duration::from_secs(60);
