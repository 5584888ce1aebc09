//! Which problem each error of the domain is to the client.

use super::problem::{Problem, Unauthenticated};
use crate::access::Rejection;
use crate::changes::Refusal;
use crate::claims::InvalidReports;
use crate::database::DatabaseError;
use crate::idempotency::{InvalidKey, KeyedError};
use crate::jobs::InvalidMember;
use crate::json::InvalidJson;
use crate::overload::Shed;

impl From<InvalidKey> for Problem {
    fn from(error: InvalidKey) -> Self {
        Self::InvalidKey(error)
    }
}

impl From<InvalidJson> for Problem {
    fn from(error: InvalidJson) -> Self {
        Self::InvalidJson(error)
    }
}

impl From<InvalidMember> for Problem {
    fn from(error: InvalidMember) -> Self {
        Self::InvalidJob(error)
    }
}

impl From<InvalidReports> for Problem {
    fn from(invalid: InvalidReports) -> Self {
        match invalid {
            InvalidReports::Invalid(error) => Self::InvalidResults(error),
            InvalidReports::TooLarge { pointer, limit_bytes } => Self::ResultTooLarge { pointer, limit_bytes },
        }
    }
}

impl From<Shed> for Problem {
    fn from(reason: Shed) -> Self {
        Self::Shed(reason)
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Unknown => Self::Unauthenticated(Unauthenticated::Unknown),
            Rejection::Unavailable | Rejection::TimedOut | Rejection::Failed => Self::TokenUnverified { unfit: false },
            Rejection::Unfit => Self::TokenUnverified { unfit: true },
            Rejection::Shed(reason) => Self::Shed(reason),
        }
    }
}

impl From<KeyedError> for Problem {
    fn from(error: KeyedError) -> Self {
        match error {
            KeyedError::KeyReused { first, pointers } => {
                Self::KeyReused { job_id: first.answer.job_id, first_path: None, pointers }
            }
            KeyedError::InFlight => Self::RequestInFlight,
            KeyedError::Unavailable(reason) => Self::Unavailable(reason),
            KeyedError::TimedOut => Self::StatementTimeout,
            KeyedError::Unfit(reason) => Self::Unfit(reason),
            KeyedError::Shed(reason) => Self::Shed(reason),
            KeyedError::OutcomeUnknown => Self::OutcomeUnknown,
            KeyedError::Failed(_) => Self::Internal(error.into()),
        }
    }
}

/// The same rules with a key and without one, so that a failure has the same answer on every route.
impl From<DatabaseError> for Problem {
    fn from(error: DatabaseError) -> Self {
        KeyedError::from(error).into()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::JobNotFound,
            Refusal::Deleted => Self::JobDeleted,
            Refusal::NotWaiting { id, state } => Self::JobNotWaiting { job_id: id, state },
            Refusal::NotFinished { id, state } => Self::JobNotFinished { job_id: id, state },
            Refusal::ContentTaken { id } => Self::ContentTaken { job_id: id },
            Refusal::NoAttemptLeft { attempt } => Self::InvalidJob(InvalidMember {
                pointer: "/max_attempts".to_owned(),
                detail: format!(
                    "the job has been started {attempt} times; expected a larger number, so that it can start again"
                ),
            }),
            Refusal::Stale { id, version } => Self::PreconditionFailed { job_id: id, version, only_weak_tags: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_database_error_has_one_answer_on_routes_with_a_key_and_without_one() {
        let failed = || Arc::new(sqlx::Error::PoolClosed);
        for (error, code) in [
            (DatabaseError::Unavailable("it is away".to_owned()), "database-unavailable"),
            (DatabaseError::Shed(Shed::Waited), "overloaded"),
            (DatabaseError::Unknown, "outcome-unknown"),
            (DatabaseError::Locked { after_loss: false }, "request-in-flight"),
            (DatabaseError::Locked { after_loss: true }, "outcome-unknown"),
            (DatabaseError::Violation(failed()), "internal-error"),
            (DatabaseError::Statement(failed()), "internal-error"),
        ] {
            let keyed = Problem::from(KeyedError::from(error.clone()));
            assert_eq!((Problem::from(error).code(), keyed.code()), (code, code));
        }
    }
}
