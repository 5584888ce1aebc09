//! From a token to a caller, without a database round trip per request.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{Caller, TokenDigest, UseTimes, queries};
use crate::database::{DatabaseError, Lane};
use crate::metrics::{Metrics, Shed, TokenLookup};

/// Why a token admits nobody.
#[derive(Debug, Error)]
pub enum Rejection {
    #[error("the token is unknown, expired or revoked")]
    Unknown,
    /// Nobody could be asked.
    #[error("the token could not be verified: {0}")]
    Unavailable(String),
    /// Nobody was asked, to keep the rest going.
    #[error("{0}")]
    Shed(Shed),
}

/// Answers from memory for [`Verifier::new`]'s `life`, within which a revocation takes effect.
///
/// Unknown digests are remembered apart from known ones and looked up one at a time, so that a flood of garbage neither
/// evicts a caller nor keeps one waiting: a known digest whose entry has grown old does not queue with it.
pub struct Verifier {
    lane: Lane,
    life: Duration,
    known: Cache<TokenDigest, Verified>,
    unknown: Cache<TokenDigest, Instant>,
    /// For each digest, whose turn it is to ask; the others wait for that answer.
    turns: Cache<TokenDigest, Arc<tokio::sync::Mutex<()>>>,
    unknown_lookups: Semaphore,
    unknown_waiting: Semaphore,
    use_times: UseTimes,
    metrics: Metrics,
}

#[derive(Clone)]
struct Verified {
    caller: Caller,
    since: Instant,
}

/// For a row that is found by its index; a database that takes longer would not do the request's own work either.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(2);
/// More tokens than one replica meets within their life.
const KNOWN_MAX: usize = 100_000;
/// Garbage remembered; what is older costs another look-up.
const UNKNOWN_MAX: usize = 100_000;
/// Look-ups of digests never seen before, at once: fewer than [`Verifier::CONNECTIONS`].
const UNKNOWN_LOOKUPS: usize = 1;
/// Who may wait for that: what is looked up in a fraction of a second.
const UNKNOWN_WAITING: usize = 100;

impl Verifier {
    /// What its lane should have: one connection for digests that were known, one for those never seen.
    pub const CONNECTIONS: usize = 2;

    /// `lane` is for the verifier alone.
    pub fn new(lane: Lane, life: Duration, use_times: UseTimes, metrics: Metrics) -> Self {
        Self {
            lane,
            life,
            known: Cache::new(KNOWN_MAX),
            unknown: Cache::new(UNKNOWN_MAX),
            turns: Cache::new(KNOWN_MAX),
            unknown_lookups: Semaphore::new(UNKNOWN_LOOKUPS),
            unknown_waiting: Semaphore::new(UNKNOWN_WAITING),
            use_times,
            metrics,
        }
    }

    /// # Errors
    /// [`Rejection`], at `deadline` at the latest, and much sooner if the database is slow.
    pub async fn verify(&self, digest: TokenDigest, deadline: Instant) -> Result<Caller, Rejection> {
        if let Some(answer) = self.remembered(&digest) {
            return answer;
        }
        let deadline = deadline.min(Instant::now() + LOOK_UP_DEADLINE);
        let Ok(turn) = self.turns.get_or_insert_with(&digest, || Ok::<_, Infallible>(Arc::default()));
        let _turn = timeout_at(deadline, turn.lock()).await.map_err(|_| out_of_time())?;
        if let Some(answer) = self.remembered(&digest) {
            return answer;
        }
        if self.known.peek(&digest).is_some() {
            return self.look_up(digest, deadline).await;
        }
        // Never seen: it queues with garbage.
        let _waiting = self.unknown_waiting.try_acquire().map_err(|_| Rejection::Shed(Shed::UnknownTokens))?;
        let place = timeout_at(deadline, self.unknown_lookups.acquire()).await;
        let _place = place.map_err(|_| out_of_time())?;
        self.look_up(digest, deadline).await
    }

    fn remembered(&self, digest: &TokenDigest) -> Option<Result<Caller, Rejection>> {
        if let Some(verified) = self.known.get(digest).filter(|verified| verified.age() < self.life) {
            return Some(Ok(verified.caller));
        }
        let unknown = self.unknown.get(digest).is_some_and(|since| since.elapsed() < self.life);
        unknown.then_some(Err(Rejection::Unknown))
    }

    async fn look_up(&self, digest: TokenDigest, deadline: Instant) -> Result<Caller, Rejection> {
        // Taken before the question is asked: the answer may be as old as that.
        let since = Instant::now();
        let found = self.lane.read(deadline, async |connection| queries::find_caller(connection, &digest).await).await;
        match found {
            Ok(Some(caller)) => {
                self.metrics.count_token_lookup(TokenLookup::Known);
                self.use_times.note(digest);
                self.known.insert(digest, Verified { caller: caller.clone(), since });
                Ok(caller)
            }
            Ok(None) => {
                self.metrics.count_token_lookup(TokenLookup::Unknown);
                self.known.remove(&digest);
                self.unknown.insert(digest, since);
                Err(Rejection::Unknown)
            }
            Err(error) => {
                self.metrics.count_token_lookup(TokenLookup::Failed);
                Err(match error {
                    DatabaseError::Shed(reason) => Rejection::Shed(reason),
                    _ => Rejection::Unavailable(reason(&error)),
                })
            }
        }
    }
}

impl Verified {
    /// How long ago it was verified; for ever, once the token has expired.
    fn age(&self) -> Duration {
        let age = self.since.elapsed();
        if self.caller.token_life.is_some_and(|life| age >= life) { Duration::MAX } else { age }
    }
}

fn out_of_time() -> Rejection {
    Rejection::Unavailable("no answer came in time".to_owned())
}

fn reason(error: &DatabaseError) -> String {
    match error {
        DatabaseError::Statement(source) => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Scopes;
    use crate::ids::TenantId;

    #[tokio::test(start_paused = true)]
    async fn what_was_verified_is_old_for_ever_once_its_token_has_expired() {
        for token_life in [None, Some(Duration::from_secs(5))] {
            let tenant = TenantId(uuid::Uuid::nil());
            let (tenant_name, scopes) = ("acme".into(), Scopes::all());
            let caller = Caller { tenant, tenant_name, scopes, key_time_to_live: None, token_life };
            let verified = Verified { caller, since: Instant::now() };
            tokio::time::advance(Duration::from_secs(4)).await;
            assert_eq!(verified.age(), Duration::from_secs(4));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(verified.age(), token_life.map_or(Duration::from_secs(5), |_| Duration::MAX));
        }
    }
}
