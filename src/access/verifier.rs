//! Turns a token into a caller without a database round trip per request.

use std::time::Duration;

use quick_cache::sync::Cache;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::failure_log::FailureLog;
use super::lookups::{Answer, Lookups};
use super::{Caller, TokenDigest, UseTimes, queries};
use crate::database::{DatabaseError, Pool};
use crate::metrics::{Metrics, TokenLookup};
use crate::overload::Shed;

/// Why a token was rejected. The verifier has already logged database failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    #[error("the token is unknown, expired or revoked")]
    Unknown,
    /// The database did not answer.
    #[error("the token could not be verified")]
    Unavailable,
    /// No answer within `LOOK_UP_DEADLINE`, or before the request's own deadline.
    #[error("the token could not be verified in time")]
    TimedOut,
    #[error("the token could not be verified: the database's schema does not fit")]
    Unfit,
    /// The database was not asked, because of overload or an open circuit breaker.
    #[error("{0}")]
    Shed(Shed),
    /// The look-up failed, and a retry would fail, too.
    #[error("the look-up of the token failed")]
    Failed,
}

impl Rejection {
    /// Whether the failure is temporary, so that the previous answer stays valid.
    fn may_pass(self) -> bool {
        matches!(self, Self::Unavailable | Self::TimedOut | Self::Shed(_))
    }
}

/// What this replica remembers of a token.
pub enum Recalled {
    /// Verified within the cache's lifetime.
    Verified(Caller),
    /// Verified earlier; must be verified again with [`Verifier::renew`].
    Known(Caller),
    /// Found to be unknown within the cache's lifetime.
    Unknown,
    /// Never seen; must be verified with [`Verifier::verify`].
    Nothing,
}

/// How long a database answer about a token is trusted.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// Without asking again. A revocation takes effect within this time.
    pub cache: Duration,
    /// For a valid token, while the database does not answer. Revocations have no effect meanwhile.
    pub outage: Duration,
}

/// Caches what the database said about tokens, and looks tokens up in batches.
///
/// Known and unknown tokens have separate queues, connection pools and caches. So a flood of random tokens neither
/// evicts nor delays a valid caller.
pub struct Verifier {
    pools: TokenPools,
    lives: Lives,
    known: Cache<TokenDigest, Verified>,
    unknown: Cache<TokenDigest, Instant>,
    renewals: Lookups,
    first_lookups: Lookups,
    /// Limits the requests that wait for the look-up of an unseen token.
    unverified: Semaphore,
    failures: FailureLog,
    use_times: UseTimes,
    metrics: Metrics,
}

/// The connection pools for token look-ups. Nothing else uses them.
///
/// A statement that is abandoned after `LOOK_UP_DEADLINE` keeps its connection until it ends. With one pool, two such
/// statements for unseen tokens would leave no connection for renewals.
#[derive(Clone)]
pub struct TokenPools {
    /// For tokens that were valid before.
    pub known: Pool,
    /// For tokens that this replica has never seen.
    pub unknown: Pool,
}

#[derive(Clone)]
struct Verified {
    caller: Caller,
    since: Instant,
    /// When the last renewal failed.
    renewal_failed: Option<Instant>,
}

/// The rows are found by index. A database that takes longer would not do the request's own work either.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(2);
/// After a failed renewal, requests do not wait for the next one for this long.
const FAILURE_LIFE: Duration = Duration::from_secs(5);
/// More tokens than one replica sees within their cache lifetime.
const KNOWN_MAX: usize = 100_000;
/// Unknown tokens to remember. An evicted one costs another look-up.
const UNKNOWN_MAX: usize = 100_000;
/// How many requests may wait for the look-up of an unseen token. They do not count as requests in flight, and their
/// bodies have not been read.
const UNVERIFIED_MAX: usize = 1000;

impl Verifier {
    /// No look-up is sent until [`Verifier::run`] runs.
    pub fn new(pools: TokenPools, lives: Lives, use_times: UseTimes, metrics: Metrics) -> Self {
        Self {
            pools,
            lives,
            known: Cache::new(KNOWN_MAX),
            unknown: Cache::new(UNKNOWN_MAX),
            renewals: Lookups::default(),
            first_lookups: Lookups::default(),
            unverified: Semaphore::new(UNVERIFIED_MAX),
            failures: FailureLog::default(),
            use_times,
            metrics,
        }
    }

    /// Sends look-ups until [`Verifier::close`].
    pub async fn run(&self) {
        tokio::join!(self.send(&self.renewals, &self.pools.known), self.send(&self.first_lookups, &self.pools.unknown));
    }

    /// Accepts no more look-ups. Queued ones are still answered.
    pub fn close(&self) {
        self.renewals.close();
        self.first_lookups.close();
    }

    pub fn recall(&self, digest: &TokenDigest) -> Recalled {
        if let Some(verified) = self.known.get(digest) {
            return if verified.age() < self.lives.cache {
                Recalled::Verified(verified.caller)
            } else {
                Recalled::Known(verified.caller)
            };
        }
        match self.unknown.get(digest).is_some_and(|since| since.elapsed() < self.lives.cache) {
            true => Recalled::Unknown,
            false => Recalled::Nothing,
        }
    }

    /// Verifies a token that was verified before. If the database does not answer, the token stays valid for
    /// `Lives::outage`, and requests do not wait for each renewal.
    ///
    /// # Errors
    /// [`Rejection`], by `deadline` at the latest.
    pub async fn renew(&self, digest: TokenDigest, deadline: Instant) -> Answer {
        let honoured = self.known.peek(&digest).filter(|known| known.age() < self.lives.outage);
        if let Some(known) = &honoured {
            let failed = known.renewal_failed.is_some_and(|at| at.elapsed() < FAILURE_LIFE);
            if failed || self.pools.known.refuses() {
                self.renewals.ask_in_background(digest);
                return Ok(known.caller.clone());
            }
        }
        match (wait(self.renewals.ask(digest), deadline).await, honoured) {
            (Err(rejection), Some(known)) if rejection.may_pass() => Ok(known.caller),
            (answer, _) => answer,
        }
    }

    /// Verifies a token that was never seen.
    ///
    /// # Errors
    /// [`Rejection`], by `deadline` at the latest. It is immediate if too many requests wait for such look-ups, or if
    /// the circuit breaker is open and another look-up is in flight. A timeout is [`Rejection::Shed`], so that
    /// unauthenticated requests do not fill the log.
    pub async fn verify(&self, digest: TokenDigest, deadline: Instant) -> Answer {
        let pool = &self.pools.unknown;
        if pool.refuses() && self.first_lookups.is_busy() {
            return Err(Rejection::Shed(Shed::Outage));
        }
        let _place = self.unverified.try_acquire().map_err(|_| Rejection::Shed(Shed::UnknownTokens))?;
        match wait(self.first_lookups.ask(digest), deadline).await {
            Err(Rejection::TimedOut) if pool.is_away() => Err(Rejection::Shed(Shed::Outage)),
            Err(Rejection::TimedOut) => Err(Rejection::Shed(Shed::UnknownTokens)),
            answer => answer,
        }
    }

    async fn send(&self, lookups: &Lookups, pool: &Pool) {
        while let Some(digests) = lookups.next_batch().await {
            self.look_up(&digests, lookups, pool).await;
        }
    }

    async fn look_up(&self, digests: &[TokenDigest], lookups: &Lookups, pool: &Pool) {
        // Before the query: the answer may be as old as this.
        let since = Instant::now();
        let ends = since + LOOK_UP_DEADLINE;
        let asked = digests.to_vec();
        let find = async move |connection: &mut _| queries::find_callers(connection, &asked).await;
        match pool.read("find_callers", ends, find).await {
            Ok(mut callers) => {
                for digest in digests {
                    let answer = callers.remove(digest).ok_or(Rejection::Unknown);
                    self.remember(digest, &answer, since);
                    lookups.tell(digest, &answer);
                }
            }
            Err(error) => {
                let rejection = match error {
                    DatabaseError::Statement(_) => Rejection::Failed,
                    DatabaseError::Unfit(_) => Rejection::Unfit,
                    _ if Instant::now() >= ends => Rejection::TimedOut,
                    DatabaseError::Shed(reason) => Rejection::Shed(reason),
                    _ => Rejection::Unavailable,
                };
                if !matches!(rejection, Rejection::Shed(_)) {
                    self.failures.write(&error);
                }
                for digest in digests {
                    self.metrics.count_token_lookup(TokenLookup::Failed);
                    if let Some(known) = self.known.peek(digest).filter(|_| rejection.may_pass()) {
                        self.known.insert(*digest, Verified { renewal_failed: Some(Instant::now()), ..known });
                    }
                    lookups.tell(digest, &Err(rejection));
                }
            }
        }
    }

    fn remember(&self, digest: &TokenDigest, answer: &Answer, since: Instant) {
        match answer {
            Ok(caller) => {
                self.metrics.count_token_lookup(TokenLookup::Known);
                self.use_times.record(*digest);
                self.known.insert(*digest, Verified { caller: caller.clone(), since, renewal_failed: None });
            }
            Err(_) => {
                self.metrics.count_token_lookup(TokenLookup::Unknown);
                self.known.remove(digest);
                self.unknown.insert(*digest, since);
            }
        }
    }
}

impl Verified {
    /// The time since the verification; unlimited once the token has expired.
    fn age(&self) -> Duration {
        let age = self.since.elapsed();
        if self.caller.token_life.is_some_and(|life| age >= life) { Duration::MAX } else { age }
    }
}

async fn wait(answer: tokio::sync::oneshot::Receiver<Answer>, deadline: Instant) -> Answer {
    match timeout_at(deadline.min(Instant::now() + LOOK_UP_DEADLINE), answer).await {
        Ok(Ok(answer)) => answer,
        // The service is shutting down.
        Ok(Err(_)) => Err(Rejection::Unavailable),
        Err(_) => Err(Rejection::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Scopes, TenantSettings};
    use crate::ids::TenantId;

    #[tokio::test(start_paused = true)]
    async fn an_expired_token_is_older_than_any_cache_lifetime() {
        for token_life in [None, Some(Duration::from_secs(5))] {
            let tenant = TenantId(uuid::Uuid::nil());
            let (tenant_name, scopes) = ("acme".into(), Scopes::all());
            let settings = TenantSettings::default();
            let caller = Caller { tenant, tenant_name, scopes, settings, token_life };
            let verified = Verified { caller, since: Instant::now(), renewal_failed: None };
            tokio::time::advance(Duration::from_secs(4)).await;
            assert_eq!(verified.age(), Duration::from_secs(4));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(verified.age(), token_life.map_or(Duration::from_secs(5), |_| Duration::MAX));
        }
    }
}
