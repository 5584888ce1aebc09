//! Group commit for token look-ups: digests that arrive while a statement is in flight go into the next one.
//!
//! Owns the queue and the list of waiting requests. Contains no SQL and no timer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::{Caller, Rejection, TokenDigest};

pub type Answer = Result<Caller, Rejection>;

/// The digests to look up. A digest is looked up once for all requests that wait for it, and dropped if none waits any
/// more.
#[derive(Default)]
pub struct Lookups {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    /// In order of arrival.
    next: VecDeque<TokenDigest>,
    /// Every digest that is in `next` or in flight.
    asked: HashMap<TokenDigest, Asked>,
    closed: bool,
}

#[derive(Default)]
struct Asked {
    /// The requests that wait for the answer. Some may have gone.
    waiters: Vec<oneshot::Sender<Answer>>,
    /// Look it up even if no request waits.
    in_background: bool,
}

/// Maximum digests in one statement: 16 KiB.
const BATCH_MAX: usize = 500;

impl Lookups {
    /// Queues a digest. The receiver gets the answer. It fails when the service shuts down.
    pub fn ask(&self, digest: TokenDigest) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.enqueue(digest, |asked| {
            // Repeated requests for one digest must not grow its list.
            asked.waiters.retain(|waiter| !waiter.is_closed());
            asked.waiters.push(sender);
        });
        receiver
    }

    /// Queues a digest for future requests. No request waits for it.
    pub fn ask_in_background(&self, digest: TokenDigest) {
        self.enqueue(digest, |asked| asked.in_background = true);
    }

    fn enqueue(&self, digest: TokenDigest, change: impl FnOnce(&mut Asked)) {
        let mut queue = self.queue();
        if queue.closed {
            return;
        }
        let Queue { next, asked, .. } = &mut *queue;
        change(asked.entry(digest).or_insert_with(|| {
            next.push_back(digest);
            Asked::default()
        }));
        drop(queue);
        self.arrived.notify_one();
    }

    /// Whether a statement is in flight or about to be sent.
    pub fn is_busy(&self) -> bool {
        let Queue { next, asked, .. } = &*self.queue();
        let in_flight = asked.len() > next.len();
        in_flight || next.iter().any(|digest| asked.get(digest).is_some_and(Asked::is_wanted))
    }

    /// Waits for the next batch of digests; `None` once closed.
    pub async fn next_batch(&self) -> Option<Vec<TokenDigest>> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut queue = self.queue();
                let batch = queue.take_batch();
                if !batch.is_empty() {
                    return Some(batch);
                }
                if queue.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Sends the answer to all requests that wait for a digest.
    pub fn tell(&self, digest: &TokenDigest, answer: &Answer) {
        for waiter in self.queue().asked.remove(digest).unwrap_or_default().waiters {
            // The request may have gone.
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

impl Queue {
    /// Takes the digests of the next statement and drops those that no request waits for. While the database stalls,
    /// requests give up faster than statements end, so the queue fills with digests that nothing needs.
    fn take_batch(&mut self) -> Vec<TokenDigest> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX
            && let Some(digest) = self.next.pop_front()
        {
            if self.asked.get(&digest).is_some_and(Asked::is_wanted) {
                batch.push(digest);
            } else {
                self.asked.remove(&digest);
            }
        }
        batch
    }
}

impl Asked {
    fn is_wanted(&self) -> bool {
        self.in_background || self.waiters.iter().any(|waiter| !waiter.is_closed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Token;

    #[tokio::test]
    async fn a_digest_is_looked_up_once_for_all_requests_that_wait_for_it() {
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
    #[tokio::test]
    async fn an_abandoned_digest_is_not_looked_up() {
        let lookups = Lookups::default();
        let [given_up, waited_for, in_background] = [(); 3].map(|()| Token::mint().digest());
        drop(lookups.ask(given_up));
        assert!(!lookups.is_busy());
        let waiting = lookups.ask(waited_for);
        lookups.ask_in_background(in_background);
        assert!(lookups.next_batch().await.unwrap() == [waited_for, in_background]);
        drop(waiting);
        assert!(lookups.is_busy(), "the statement is in flight");
        [waited_for, in_background].iter().for_each(|digest| lookups.tell(digest, &Err(Rejection::Unknown)));
        assert!(!lookups.is_busy());
        let _waiting = lookups.ask(given_up);
        assert!(lookups.next_batch().await.unwrap() == [given_up]);
    }
}
