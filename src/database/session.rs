//! Whose the session behind a connection is: ours, or a pooler's that it lends to whoever comes.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{Settings, connect, queries};

/// What stands between us and PostgreSQL, in the words of PgBouncer's `pool_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooler {
    /// Nothing: a session is ours from its start, with the settings that we start it with.
    #[default]
    None,
    /// A session is ours for as long as the connection is open; its settings are not.
    Session,
    /// A session is ours for one statement. The pooler must keep the prepared statements of its clients apart.
    Transaction,
}

/// What can be seen of the sessions behind connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// Started by us, with our settings.
    Ours,
    /// Started by a pooler. As far as can be seen, each connection has one of its own.
    Lent,
    /// Shared by a pooler that gives each prepared statement a name of its own.
    Shared,
    /// Shared by a pooler that does not: one client's statement is executed for another.
    Confused,
}

/// Looks at the session behind a connection, and where that is not enough, at that of another beside it. `Lent` is sure
/// only of a pooler that nobody else uses at the moment; the others always are.
///
/// # Errors
/// When the database cannot be asked.
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
    if queries::bears_our_mark(connection).await? {
        return Ok(Sessions::Ours);
    }
    let mut another = connect(settings).await?;
    let shared = queries::backend(connection).await? == queries::backend(&mut another).await?;
    Ok(if shared { Sessions::Confused } else { Sessions::Lent })
}

/// The longest that the session lets a statement run; `None`: for ever.
pub async fn statement_timeout(connection: &mut PgConnection) -> sqlx::Result<Option<Duration>> {
    let milliseconds = queries::statement_timeout_milliseconds(connection).await?;
    Ok(u64::try_from(milliseconds).ok().filter(|limit| *limit > 0).map(Duration::from_millis))
}

/// Whether a pooler has refused the settings that a session of ours starts with.
pub fn is_refused_by_pooler(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().starts_with("unsupported startup parameter"))
}

/// Our name for a prepared statement is taken on this session, or unknown on it.
fn is_confusion(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("42P05" | "26000"))
}
