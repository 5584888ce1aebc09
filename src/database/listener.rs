//! A connection that receives notifications (LISTEN and NOTIFY).

use std::io::ErrorKind;

use sqlx::pool::{Pool, PoolOptions};
use sqlx::postgres::PgListener;
use sqlx::{Acquire, Connection, PgConnection, Postgres};

use super::{Settings, session_options};

/// After an error, the connection is lost, and this must be dropped.
///
/// It contains `sqlx::PgListener`, because an sqlx connection discards notifications without one. The listener takes its
/// connection from a pool of sqlx. That pool has this one connection and serves no request. ADR 0004 has the reasons
/// against such pools.
pub struct Listener {
    listener: PgListener,
    pool: Pool<Postgres>,
}

impl Listener {
    /// Opens a connection. It receives nothing before a LISTEN on it.
    ///
    /// # Errors
    /// If no connection can be opened within `Settings::connect_timeout`. Within this time, the pool of sqlx tries again
    /// if the server refuses, and its error does not tell why.
    pub async fn open(settings: &Settings) -> sqlx::Result<Self> {
        let pool = PoolOptions::<Postgres>::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(settings.connect_timeout)
            .connect_lazy_with(session_options(settings));
        let mut listener = PgListener::connect_with(&pool).await?;
        // The caller opens another one, and then knows that it may have missed notifications.
        listener.eager_reconnect(false);
        listener.ignore_pool_close_event(true);
        Ok(Self { listener, pool })
    }

    /// The payload of the next notification. If the future is dropped, no notification is lost: sqlx takes only whole
    /// messages out of its buffer.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn receive(&mut self) -> sqlx::Result<String> {
        match self.listener.try_recv().await? {
            Some(notification) => Ok(notification.payload().to_owned()),
            None => Err(sqlx::Error::Io(ErrorKind::UnexpectedEof.into())),
        }
    }

    /// For a statement. Notifications that arrive during the statement are kept for [`Listener::receive`].
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        self.listener.acquire().await
    }

    /// Checks that the server answers.
    ///
    /// # Errors
    /// If it does not. A dead server may also give no answer for a long time.
    pub async fn ping(&mut self) -> sqlx::Result<()> {
        self.connection().await?.ping().await
    }

    /// Says goodbye to the server. Without it, PostgreSQL logs an error for a TLS connection.
    pub async fn close(self) {
        drop(self.listener);
        self.pool.close().await;
    }
}
