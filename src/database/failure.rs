//! What PostgreSQL's errors tell of the statement that met them.

/// What an error tells of the statement that met it.
pub enum Failure {
    /// The connection is gone, and with it the answer: the statement may have been committed.
    Lost,
    /// The session's prepared statements no longer fit the schema or the server behind a pooler. Not executed.
    Stale,
    /// A deadlock or a serialization failure: rolled back, worth trying again.
    Collided,
    Locked,
    /// The server cannot write, has no room or no time. Rolled back.
    Refused,
    Other,
}

impl Failure {
    pub fn of(error: &sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = error else {
            return match error {
                sqlx::Error::RowNotFound
                | sqlx::Error::TypeNotFound { .. }
                | sqlx::Error::ColumnIndexOutOfBounds { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::Encode(_)
                | sqlx::Error::Decode(_) => Self::Other,
                _ => Self::Lost,
            };
        };
        let code = database.code().unwrap_or_default();
        match code.as_ref() {
            "55P03" => Self::Locked,
            "0A000" | "26000" => Self::Stale,
            "40P01" | "40001" => Self::Collided,
            "25006" | "57014" => Self::Refused,
            // A backend that is told to go may have committed just before.
            "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => Self::Lost,
            class if class.starts_with("08") => Self::Lost,
            class if class.starts_with("53") => Self::Refused,
            _ => Self::Other,
        }
    }
}
