//! What PostgreSQL's errors tell of the statement that met them.

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection is gone, and with it the answer: the statement may have been committed.
    Lost,
    /// A pooler had no server to send it to. Not executed.
    Away,
    /// The session's prepared statements no longer fit the schema or the server behind a pooler. Not executed.
    Stale,
    /// The server takes no writes, as after a failover that this connection has missed. Not executed.
    ReadOnly,
    /// A deadlock or a serialization failure: rolled back, worth trying again.
    Collided,
    Locked,
    /// The server has no room. Rolled back.
    Refused,
    /// The statement took longer than `statement_timeout`, or somebody cancelled it. Rolled back.
    Cancelled,
    /// A unique constraint was in the way. Rolled back.
    Violation,
    Other,
}

impl Failure {
    pub fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => Self::of_database(&**error),
            sqlx::Error::RowNotFound
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_) => Self::Other,
            _ => Self::Lost,
        }
    }

    /// By SQLSTATE (PostgreSQL, appendix A), unless the backend is going: one that is told to go, or panics, may have
    /// committed just before.
    fn of_database(error: &dyn DatabaseError) -> Self {
        let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
        if let Some(PgSeverity::Fatal | PgSeverity::Panic) = severity {
            return if is_from_before_a_session(error) { Self::Away } else { Self::Lost };
        }
        match error.code().unwrap_or_default().as_ref() {
            "55P03" => Self::Locked,
            "0A000" | "26000" => Self::Stale,
            "25006" => Self::ReadOnly,
            "40P01" | "40001" => Self::Collided,
            "40003" => Self::Lost,
            "23505" => Self::Violation,
            "57014" => Self::Cancelled,
            class if class.starts_with("08") => Self::Lost,
            class if class.starts_with("53") => Self::Refused,
            _ => Self::Other,
        }
    }
}

/// What an operator reads of an error. The library would add a line number, which is one of PostgreSQL's own source.
pub fn words(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().unwrap_or_default()),
        None => error.to_string(),
    }
}

/// Whether a statement failed because it would have violated this constraint.
pub fn violates(error: &sqlx::Error, constraint: &str) -> bool {
    error.as_database_error().and_then(DatabaseError::constraint) == Some(constraint)
}

/// Whether a database that could not be connected to may be there in a moment, without anybody's doing.
pub fn may_pass(error: &sqlx::Error) -> bool {
    let starting_or_full = |code: &str| code.starts_with("57") || code.starts_with("53");
    match error.as_database_error() {
        Some(error) => starting_or_full(&error.code().unwrap_or_default()) || is_from_before_a_session(error),
        None => matches!(error, sqlx::Error::Io(_)),
    }
}

/// Whether it ended the making of a session, which a pooler tells to the statement that waited for one. PostgreSQL's
/// codes for that (no such database, too many connections, starting up or going down) and PgBouncer's own words, which
/// all bear one code.
fn is_from_before_a_session(error: &dyn DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    let (words, pooler_s) = (error.message(), ["server login has been failing", "query_wait_timeout"]);
    matches!(code.as_ref(), "3D000" | "53300" | "57P03") || pooler_s.iter().any(|own| words.starts_with(own))
}
