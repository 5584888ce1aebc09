//! Who owns the session behind a connection: Hapax, or a pooler that shares it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{Settings, connect, queries};

/// What is between Hapax and PostgreSQL, in the words of PgBouncer's `pool_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooler {
    /// Nothing: Hapax owns the session and sets its parameters.
    #[default]
    None,
    /// The session is ours while the connection is open, but not its parameters.
    Session,
    /// The session is ours for one statement. The pooler must keep the prepared statements of its clients apart.
    Transaction,
}

/// What a check of the sessions behind connections found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// Started by Hapax, with its parameters.
    Ours,
    /// Started by a pooler. As far as can be seen, each connection has its own session.
    Lent,
    /// Shared by a pooler that renames prepared statements.
    Shared,
    /// Shared by a pooler that does not rename them: one client's statement may be executed for another.
    Confused,
}

/// Inspects the session behind a connection and, if necessary, the session behind a second one. `Lent` is certain only
/// if no other client uses the pooler at that moment. The other results are always certain.
///
/// # Errors
/// If the database cannot be asked.
pub async fn sessions(settings: &Settings, connection: &mut PgConnection) -> sqlx::Result<Sessions> {
    match look(settings, connection).await {
        Err(error) if is_confusion(&error) => Ok(Sessions::Confused),
        seen => seen,
    }
}

async fn look(settings: &Settings, connection: &mut PgConnection) -> sqlx::Result<Sessions> {
    if queries::renames_statements(connection).await? {
        return Ok(Sessions::Shared);
    }
    if queries::has_session_mark(connection).await? {
        return Ok(Sessions::Ours);
    }
    let mut another = connect(settings).await?;
    let shared = queries::backend(connection).await? == queries::backend(&mut another).await?;
    Ok(if shared { Sessions::Confused } else { Sessions::Lent })
}

/// The session's statement timeout; `None`: no limit.
pub async fn statement_timeout(connection: &mut PgConnection) -> sqlx::Result<Option<Duration>> {
    let milliseconds = queries::statement_timeout_milliseconds(connection).await?;
    Ok(u64::try_from(milliseconds).ok().filter(|limit| *limit > 0).map(Duration::from_millis))
}

/// Whether a pooler refused the startup parameters of our sessions.
pub fn is_refused_by_pooler(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().starts_with("unsupported startup parameter"))
}

/// Whether a prepared statement's name already exists in this session, or is missing.
fn is_confusion(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("42P05" | "26000"))
}
