//! One of the few who write: sends what is waiting as one statement, and tells each what came of it.
//!
//! A batch that fails is split until the guilty one stands alone. It never begins a transaction: a batch is one
//! statement, and may be sent again as it is.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::batcher::{Batcher, Ridden, Ticket};
use super::{Submission, queries};
use crate::database::{DatabaseError, Lane};
use crate::idempotency::{self, Terms};
use crate::metrics::{Metrics, Split};

/// Has a connection of its own among those of `lane`.
pub struct Writer {
    pub batcher: Arc<Batcher>,
    pub lane: Lane,
    /// With a short wait for locks.
    pub terms: Terms,
    pub metrics: Metrics,
}

/// Some who are sent together.
struct Batch {
    tickets: Vec<Arc<Ticket>>,
    /// The last of theirs.
    deadline: Instant,
    /// An attempt to send them was lost, and may have been committed.
    after_loss: bool,
}

/// Into how many parts a batch is split. A key that is held elsewhere costs its neighbours a lock wait for each time that
/// they are split with it: nine times for 512 jobs if by 2, three times if by 8.
const PARTS: usize = 8;

impl Writer {
    /// Writes until the queue is closed and empty.
    pub async fn run(self) {
        while let Some(tickets) = self.batcher.next_batch().await {
            // A defect that one batch brings to light must not stop the others.
            if AssertUnwindSafe(self.write(tickets)).catch_unwind().await.is_err() {
                tracing::error!("the writing of a batch panicked; what became of it is unknown");
            }
        }
    }

    async fn write(&self, tickets: Vec<Arc<Ticket>>) {
        if let Some(first) = tickets.first() {
            self.metrics.observe_intake_wait(first.since.elapsed());
        }
        let deadline = tickets.iter().map(|ticket| ticket.deadline).max().unwrap_or_else(Instant::now);
        let mut batches = VecDeque::from([Batch { tickets, deadline, after_loss: false }]);
        while let Some(batch) = batches.pop_front() {
            if let Err(error) = self.send(&batch).await {
                batches.extend(self.split(batch, error));
            }
        }
    }

    /// Sends a batch, and tells everybody in it.
    async fn send(&self, batch: &Batch) -> Result<(), DatabaseError> {
        let (tickets, terms) = (batch.tickets.clone(), self.terms);
        // Whoever has left by the first attempt is not in it, and whoever is in it is in all.
        let write = async move |connection: &mut _| {
            let submissions = aboard(&tickets);
            match submissions.is_empty() {
                true => Ok(Default::default()),
                false => queries::submit_all(connection, &submissions, terms).await,
            }
        };
        let made = self.lane.complete(batch.deadline, write).await?;
        let mut met = Vec::new();
        for ticket in &batch.tickets {
            let Some(submission) = ticket.board() else { continue };
            match made.get(&submission.draft.answer.job_id) {
                Some(expires_at) => ticket.tell(Ok(Ridden::Made(*expires_at))),
                None => met.push(Arc::clone(ticket)),
            }
        }
        self.metrics.observe_batch(made.len() + met.len());
        if !met.is_empty() {
            self.look(met, batch.deadline).await;
        }
        Ok(())
    }

    /// Tells those whose keys are taken by what. A statement of its own: the first one's snapshot is older than whatever it
    /// has waited for.
    async fn look(&self, tickets: Vec<Arc<Ticket>>, deadline: Instant) {
        let submissions = aboard(&tickets);
        let find = async move |connection: &mut _| {
            let keys = submissions.iter().map(|submission| &submission.keyed.key);
            idempotency::queries::find_all(connection, keys).await
        };
        let mut found = self.lane.complete(deadline, find).await.unwrap_or_else(|error| {
            // Each of them looks for himself, and is told why if he cannot either.
            tracing::debug!(%error, "what stands under some keys could not be read together");
            Default::default()
        });
        for (place, ticket) in tickets.iter().enumerate() {
            ticket.tell(Ok(found.remove(&place).map_or(Ridden::Not, Ridden::Met)));
        }
    }

    /// What is to be sent again after an error; nothing if it was everybody's, who are told so.
    fn split(&self, mut batch: Batch, error: DatabaseError) -> Vec<Batch> {
        let reason = match &error {
            DatabaseError::Locked { after_loss } => {
                batch.after_loss |= after_loss;
                Some(Split::Locked)
            }
            DatabaseError::Violation(_) | DatabaseError::Statement(_) => Some(Split::Refused),
            DatabaseError::Unavailable(_) | DatabaseError::Shed(_) | DatabaseError::Unknown => None,
        };
        batch.tickets.retain(|ticket| ticket.board().is_some());
        match reason {
            Some(reason) if batch.tickets.len() > 1 => {
                self.metrics.count_split(reason);
                let size = batch.tickets.len().div_ceil(PARTS);
                batch.tickets.chunks(size).map(|tickets| Batch { tickets: tickets.to_vec(), ..batch }).collect()
            }
            _ => {
                let error = match error {
                    DatabaseError::Locked { .. } => DatabaseError::Locked { after_loss: batch.after_loss },
                    _ if batch.after_loss => DatabaseError::Unknown,
                    error => error,
                };
                batch.tickets.iter().for_each(|ticket| ticket.tell(Err(error.clone())));
                Vec::new()
            }
        }
    }
}

fn aboard(tickets: &[Arc<Ticket>]) -> Vec<Arc<Submission>> {
    tickets.iter().filter_map(|ticket| ticket.board()).collect()
}
