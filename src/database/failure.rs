//! What PostgreSQL's errors tell of the statement that met them.

use std::error::Error;
use std::sync::Arc;

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;
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
    /// What the statement names is not there: the schema is another, or the session's search_path leads elsewhere. Not
    /// executed.
    Unfit,
    /// A deadlock or a serialization failure: rolled back, worth trying again.
    Collided,
    Locked,
    /// The server has no room, or cannot use its disk. Rolled back.
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
            // Of a backend that was told to go, at severity ERROR: Citus and poolers relay the death of one behind them so,
            // and what it was doing may have been committed.
            "40003" | "57P01" | "57P02" | "57P03" => Self::Lost,
            // Every name in our statements was checked against the migrations, so an unknown one is the database's fault.
            "42P01" | "42703" | "42883" | "42704" | "3F000" => Self::Unfit,
            "23505" => Self::Violation,
            "57014" => Self::Cancelled,
            class if class.starts_with("08") => Self::Lost,
            // 53: out of memory, connections or disk space. 58: the operating system failed, such as EIO (58030).
            class if class.starts_with("53") || class.starts_with("58") => Self::Refused,
            _ => Self::Other,
        }
    }

    /// Whether the connection can be used again after it.
    pub fn leaves_a_session(self) -> bool {
        !matches!(self, Self::Lost | Self::Away | Self::Stale | Self::ReadOnly | Self::Unfit)
    }
}

/// What an operator reads of an error. The library would add a line number, which is one of PostgreSQL's own source.
pub fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => format!("{} ({})", error.message(), error.code().unwrap_or_default()),
        sqlx::Error::Migrate(error) => match &**error {
            MigrateError::ExecuteMigration(error, version) => format!("migration {version}: {}", words(error)),
            MigrateError::Execute(error) => words(error),
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

/// An error with its causes, each said once. sqlx's errors repeat their causes in their own text.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut said = Vec::<String>::new();
    let mut rest = Some(error);
    while let Some(cause) = rest {
        let of_database = cause
            .downcast_ref::<sqlx::Error>()
            .or_else(|| cause.downcast_ref::<Arc<sqlx::Error>>().map(|error| &**error));
        let words = of_database.map_or_else(|| cause.to_string(), words);
        if !said.last().is_some_and(|last| last.contains(&words)) {
            said.push(words);
        }
        rest = if of_database.is_some() { None } else { cause.source() };
    }
    said.join(": ")
}

/// Whether a statement failed because it would have violated this constraint.
pub fn violates(error: &sqlx::Error, constraint: &str) -> bool {
    error.as_database_error().and_then(DatabaseError::constraint) == Some(constraint)
}

/// Whether a database that could not be connected to may be there in a moment, without anybody's doing.
pub fn may_pass(error: &sqlx::Error) -> bool {
    let starting_or_full = |code: &str| code.starts_with("57") || code.starts_with("53");
    match error.as_database_error() {
        // No such database. One that is being made is not waited for: a wrong name is by far the likelier.
        Some(error) if error.code().as_deref() == Some("3D000") => false,
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

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::fmt;

    use sqlx::error::ErrorKind;

    use super::*;

    /// An error of severity ERROR with this SQLSTATE.
    #[derive(Debug)]
    struct Coded(&'static str);

    impl fmt::Display for Coded {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Coded {}

    impl DatabaseError for Coded {
        fn message(&self) -> &str {
            "words"
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    #[test]
    fn a_sqlstate_tells_what_became_of_the_statement() {
        for (code, failure) in [
            // Relayed by Citus or a pooler: the backend is gone, and may have committed.
            ("57P01", Failure::Lost),
            ("57P02", Failure::Lost),
            ("57P03", Failure::Lost),
            ("08006", Failure::Lost),
            ("40003", Failure::Lost),
            // EIO, a missing file, a full disk, too many connections.
            ("58030", Failure::Refused),
            ("58P01", Failure::Refused),
            ("53100", Failure::Refused),
            ("53300", Failure::Refused),
            // No such table, column, function, type or schema.
            ("42P01", Failure::Unfit),
            ("42703", Failure::Unfit),
            ("42883", Failure::Unfit),
            ("42704", Failure::Unfit),
            ("3F000", Failure::Unfit),
            ("25006", Failure::ReadOnly),
            ("40P01", Failure::Collided),
            ("55P03", Failure::Locked),
            ("23505", Failure::Violation),
            ("22P05", Failure::Other),
            ("XX001", Failure::Other),
        ] {
            assert_eq!(Failure::of(&sqlx::Error::Database(Box::new(Coded(code)))), failure, "{code}");
        }
    }
}
