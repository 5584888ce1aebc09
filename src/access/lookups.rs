//! Group commit for look-ups: digests that arrive while a statement is in flight go into the next one.
//!
//! Owns the queue and who waits in it. It knows no SQL. There is no timer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::{Caller, Rejection, TokenDigest};

pub type Answer = Result<Caller, Rejection>;

/// Digests to be looked up, each once for all requests that wait for it.
#[derive(Default)]
pub struct Lookups {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    /// In the order of arrival.
    next: VecDeque<TokenDigest>,
    /// Who waits for a digest that is in `next` or under way.
    waiting: HashMap<TokenDigest, Vec<oneshot::Sender<Answer>>>,
    closed: bool,
}

/// How many digests one statement may carry: 16 KiB of them.
const BATCH_MAX: usize = 500;

impl Lookups {
    /// Asks for a digest. What is returned gets the answer; it fails if the service is shutting down.
    pub fn ask(&self, digest: TokenDigest) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let mut queue = self.queue();
        if queue.closed {
            return receiver;
        }
        let Queue { next, waiting, .. } = &mut *queue;
        let waiters = waiting.entry(digest).or_insert_with(|| {
            next.push_back(digest);
            Vec::new()
        });
        // Those who ask again and again for one digest do not grow its list.
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(sender);
        drop(queue);
        self.arrived.notify_one();
        receiver
    }

    /// Whether a statement is in flight, or about to be sent.
    pub fn is_busy(&self) -> bool {
        !self.queue().waiting.is_empty()
    }

    /// What is asked next, as soon as there is anything; `None` once closed.
    pub async fn next_batch(&self) -> Option<Vec<TokenDigest>> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut queue = self.queue();
                let size = queue.next.len().min(BATCH_MAX);
                if size > 0 {
                    return Some(queue.next.drain(..size).collect());
                }
                if queue.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Tells everybody who waits for a digest.
    pub fn tell(&self, digest: &TokenDigest, answer: &Answer) {
        for waiter in self.queue().waiting.remove(digest).unwrap_or_default() {
            // A request that is gone needs no answer.
            let _gone = waiter.send(answer.clone());
        }
    }

    pub fn close(&self) {
        self.queue().closed = true;
        self.arrived.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Token;

    #[tokio::test]
    async fn a_digest_is_asked_once_for_all_who_wait_for_it() {
        let (lookups, one, other) = (Lookups::default(), Token::mint().digest(), Token::mint().digest());
        let waiting = [lookups.ask(one), lookups.ask(other), lookups.ask(one)];
        assert_eq!(lookups.next_batch().await.unwrap().len(), 2);
        let late = lookups.ask(one);
        lookups.tell(&one, &Err(Rejection::Unknown));
        lookups.tell(&other, &Err(Rejection::Unknown));
        for answer in waiting.into_iter().chain([late]) {
            assert!(matches!(answer.await, Ok(Err(Rejection::Unknown))));
        }
        assert!(!lookups.is_busy());
        lookups.close();
        assert!(lookups.next_batch().await.is_none());
        assert!(lookups.ask(one).await.is_err());
    }
}
