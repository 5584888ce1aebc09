//! What an error says about the outcome of a statement.

use std::error::Error;
use std::sync::Arc;

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was lost before the answer arrived. The statement may have been committed.
    Lost,
    /// A pooler had no server connection for the statement. Not executed.
    Away,
    /// The session's prepared statements do not fit the schema, or the server behind a pooler. Not executed.
    Stale,
    /// The server is read-only, for example after a failover that this connection has missed. Not executed.
    ReadOnly,
    /// The statement names a missing schema, table, column, type or function. Not executed, or rolled back.
    Unfit,
    /// Deadlock or serialization failure. Rolled back; retry.
    Collided,
    /// The lock wait expired. Rolled back.
    Locked,
    /// The server is out of resources, or its disk failed. Rolled back.
    Refused,
    /// The statement exceeded `statement_timeout` or was cancelled. Rolled back.
    Cancelled,
    /// A unique constraint was violated. Rolled back.
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

    /// Classifies by SQLSTATE (PostgreSQL, appendix A). A backend that is terminated or panics is `Lost`: it may have
    /// committed just before.
    fn of_database(error: &dyn DatabaseError) -> Self {
        let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
        if let Some(PgSeverity::Fatal | PgSeverity::Panic) = severity {
            return if is_from_opening_a_session(error) { Self::Away } else { Self::Lost };
        }
        match error.code().unwrap_or_default().as_ref() {
            "55P03" => Self::Locked,
            "0A000" | "26000" => Self::Stale,
            "25006" => Self::ReadOnly,
            "40P01" | "40001" => Self::Collided,
            // Severity ERROR, too: Citus and poolers relay the termination of a backend behind them this way, and that
            // backend may have committed.
            "40003" | "57P01" | "57P02" | "57P03" => Self::Lost,
            // The build checks all names in statements, and tests check those in functions, against the migrations. So
            // a missing name means that the schema of the database differs.
            "42P01" | "42703" | "42883" | "42704" | "3F000" => Self::Unfit,
            "23505" => Self::Violation,
            "57014" => Self::Cancelled,
            class if class.starts_with("08") => Self::Lost,
            // 53: out of memory, connections or disk space. 58: the operating system failed, such as EIO (58030).
            class if class.starts_with("53") || class.starts_with("58") => Self::Refused,
            _ => Self::Other,
        }
    }

    /// Whether the connection is still usable after this failure.
    pub fn leaves_a_session(self) -> bool {
        !matches!(self, Self::Lost | Self::Away | Self::Stale | Self::ReadOnly | Self::Unfit)
    }
}

/// The error text for operators. sqlx would add a line number, which refers to PostgreSQL's own source.
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

/// An error and its causes, each text once. sqlx errors repeat their causes in their own text.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut texts = Vec::<String>::new();
    let mut rest = Some(error);
    while let Some(cause) = rest {
        let of_database = cause
            .downcast_ref::<sqlx::Error>()
            .or_else(|| cause.downcast_ref::<Arc<sqlx::Error>>().map(|error| &**error));
        let words = of_database.map_or_else(|| cause.to_string(), words);
        if !texts.last().is_some_and(|last| last.contains(&words)) {
            texts.push(words);
        }
        rest = if of_database.is_some() { None } else { cause.source() };
    }
    texts.join(": ")
}

/// Whether a statement failed because of this constraint.
pub fn violates(error: &sqlx::Error, constraint: &str) -> bool {
    error.as_database_error().and_then(DatabaseError::constraint) == Some(constraint)
}

/// Whether a failure to connect may be temporary.
pub fn may_pass(error: &sqlx::Error) -> bool {
    let starting_or_full = |code: &str| code.starts_with("57") || code.starts_with("53");
    match error.as_database_error() {
        // The database does not exist. A wrong name is far more likely than a database that is just being created.
        Some(error) if error.code().as_deref() == Some("3D000") => false,
        Some(error) => starting_or_full(&error.code().unwrap_or_default()) || is_from_opening_a_session(error),
        None => matches!(error, sqlx::Error::Io(_)),
    }
}

/// Whether the error comes from opening a session, which a pooler reports to the statement that waited for the session.
/// These are PostgreSQL's codes for it (no such database, too many connections, starting up or shutting down) and
/// PgBouncer's messages, which share one code.
fn is_from_opening_a_session(error: &dyn DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    let pgbouncer = ["server login has been failing", "query_wait_timeout"];
    matches!(code.as_ref(), "3D000" | "53300" | "57P03")
        || pgbouncer.iter().any(|message| error.message().starts_with(message))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::fmt;

    use sqlx::error::ErrorKind;

    use super::*;

    /// A database error of severity ERROR with this SQLSTATE.
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
    fn a_sqlstate_determines_the_outcome_of_the_statement() {
        for (code, failure) in [
            // Relayed by Citus or a pooler: the backend is gone and may have committed.
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
