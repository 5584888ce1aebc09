//! A connection in use.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::{Connection, PgConnection};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::idle::IdleConnections;

/// A borrowed connection and its permits. [`Lease::release`] returns it, [`Lease::close`] closes it. If a lease is
/// dropped while a statement is in flight, because the request timed out, the statement finishes first: see [`finish`].
pub struct Lease {
    connection: Option<PgConnection>,
    place: Option<Place>,
    idle: Arc<IdleConnections>,
    /// When the statement in flight must have ended. `None` before the first statement.
    pub attempt_ends: Option<Instant>,
}

/// The permits of a connection in use. They are held until the connection is idle or closed, even if the request ends
/// earlier.
pub struct Place {
    _in_pool: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// One of a tenant's permits in a pool.
pub type Share = Arc<OwnedSemaphorePermit>;

impl Place {
    pub fn new(in_pool: OwnedSemaphorePermit, share: Option<Share>) -> Self {
        Self { _in_pool: in_pool, _share: share }
    }
}

impl Lease {
    /// `idle`: where the connection returns to.
    pub fn new(connection: PgConnection, place: Place, idle: Arc<IdleConnections>) -> Self {
        Self { connection: Some(connection), place: Some(place), idle, attempt_ends: None }
    }

    pub fn release(mut self) {
        if let Some(connection) = self.connection.take() {
            self.idle.put(connection);
        }
    }

    /// Closes the connection. Returns its permits for another one.
    pub fn close(mut self) -> Option<Place> {
        self.connection = None;
        self.place.take()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(connection), Some(ends)) = (self.connection.take(), self.attempt_ends) {
            let idle = Arc::clone(&self.idle);
            self.idle.runtime.spawn(finish(connection, self.place.take(), ends, idle));
        }
    }
}

/// Reads the rest of an answer whose request has gone, then returns the connection to the idle ones. Until then it keeps
/// its permits. A connection that has not answered by `ends` is closed.
///
/// Dropping an sqlx future in the middle of a statement is sound: sqlx writes whole messages to a buffer before it
/// waits, counts the pending answers, and reads them all before it sends the next statement. See ADR 0020.
async fn finish(mut connection: PgConnection, place: Option<Place>, ends: Instant, idle: Arc<IdleConnections>) {
    // An error answer ends the ping early; the next ping reads the rest.
    for _ in 0..2 {
        match timeout_at(ends, connection.ping()).await {
            Ok(Ok(())) => return idle.put(connection),
            Ok(Err(error)) if Failure::of(&error).leaves_a_session() => {}
            _ => break,
        }
    }
    drop((connection, place));
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("only release and close take it, and they consume the lease")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("only release and close take it, and they consume the lease")
    }
}
