//! Group commit: requests that arrive while a statement is in flight go into the next one.
//!
//! There is no timer: a free writer takes what has arrived, so no request waits for later ones. The module knows no SQL.
//! A [`GroupedWrite`] is a statement that many requests can share, such as the one that inserts jobs.

mod batcher;
mod writer;

pub use batcher::Bounds;
pub use writer::Writer;

use std::hash::Hash;
use std::sync::Arc;

use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;

use crate::database::{DatabaseError, Pool, SharedPool, WriteOptions};
use crate::ids::TenantId;
use crate::metrics::Metrics;
use crate::overload::{Shed, Usage};
use batcher::Batcher;

/// A statement that writes for many requests at once. It is safe to send again if the outcome of an attempt is unknown.
pub trait GroupedWrite: Send + Sync + 'static {
    /// Made once, before the first attempt. Every attempt sends the same.
    type Request: Send + Sync + 'static;
    type Outcome: Send + 'static;
    /// Only requests of one group share a statement.
    type Group: Clone + Eq + Hash + Send + 'static;

    /// The name of the statement in its comment and in the metrics.
    const NAME: &'static str;
    /// Whether a group belongs to one tenant. Then one statement of the group is in flight at a time, and the statements
    /// of one tenant use at most half of the writers.
    const OF_ONE_TENANT: bool;

    fn tenant(request: &Self::Request) -> TenantId;

    fn group(request: &Self::Request) -> Self::Group;

    fn size(request: &Self::Request) -> Size;

    /// Of the requests with the same identity, one statement takes only the first.
    fn identity(_: &Self::Request) -> Option<Uuid> {
        None
    }

    /// Returns one outcome for each request, in their order. `None` leaves it to [`GroupedWrite::resolve`].
    fn write(
        &self,
        connection: &mut PgConnection,
        requests: &[Arc<Self::Request>],
        options: WriteOptions,
    ) -> impl Future<Output = sqlx::Result<Vec<Option<Self::Outcome>>>> + Send;

    /// Finds the outcomes that `write` left open, in the order of the requests.
    fn resolve(
        &self,
        _pool: &Pool,
        _requests: Vec<Arc<Self::Request>>,
        _deadline: Instant,
    ) -> impl Future<Output = Vec<Self::Outcome>> + Send {
        std::future::ready(Vec::new())
    }
}

/// How much of a statement a request takes.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub jobs: usize,
    pub bytes: usize,
}

/// A grouped write with its queue and the connections of its writers.
pub struct GroupCommit<W: GroupedWrite> {
    write: Arc<W>,
    batcher: Arc<Batcher<W>>,
    pool: Pool,
    writers: usize,
}

impl<W: GroupedWrite> GroupCommit<W> {
    /// `pool` has a connection for each of the writers.
    pub fn new(write: W, pool: Pool, writers: usize, bounds: Bounds) -> Self {
        Self { write: Arc::new(write), batcher: Arc::new(Batcher::new(bounds, writers)), pool, writers }
    }

    /// Adds a request to the queue and returns its outcome.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest; immediately if the queue is full, and after
    /// [`Bounds::acquire_timeout`] if the request was not sent by then.
    pub async fn enqueue(&self, request: Arc<W::Request>, deadline: Instant) -> Result<W::Outcome, DatabaseError> {
        match self.batcher.enqueue(request, deadline).await {
            Err(DatabaseError::Shed(Shed::Waited)) if self.pool.is_away() => {
                Err(DatabaseError::Unavailable("no connection to the database".to_owned()))
            }
            outcome => outcome,
        }
    }

    /// Writes for one request alone, with a connection of `pool`.
    ///
    /// # Errors
    /// As [`SharedPool::complete`].
    pub async fn write_alone(
        &self,
        request: &Arc<W::Request>,
        options: WriteOptions,
        pool: &SharedPool,
        deadline: Instant,
    ) -> Result<W::Outcome, DatabaseError> {
        let requests = std::slice::from_ref(request);
        let write = async |connection: &mut PgConnection| self.write.write(connection, requests, options).await;
        let mut outcomes = pool.complete(W::NAME, W::tenant(request), deadline, write).await?;
        outcomes.pop().flatten().ok_or(DatabaseError::Unknown)
    }

    /// The writers. Requests are answered only while they run.
    pub fn writers(&self, options: WriteOptions, metrics: &Metrics) -> Vec<Writer<W>> {
        let writer = |_| Writer {
            write: Arc::clone(&self.write),
            batcher: Arc::clone(&self.batcher),
            pool: self.pool.clone(),
            options,
            metrics: metrics.clone(),
        };
        (0..self.writers).map(writer).collect()
    }

    /// Accepts no more requests. The writers end when all accepted ones are answered.
    pub fn close(&self) {
        self.batcher.close();
    }

    /// The jobs of the requests that are not answered yet, and their limit.
    pub fn usage(&self) -> Usage {
        self.batcher.usage()
    }
}
