//! How much waits in each queue, a page at a time.
//!
//! Owns what is told of a queue; the SQL is in `depth_queries`. A queue is there while a job waits in it.

use serde::Serialize;
use sqlx::PgConnection;

use super::depth_queries::{self, Counted};
use crate::ids::TenantId;

/// A queue as the API shows it.
#[derive(Debug, Serialize)]
pub struct Depth {
    pub queue: String,
    /// How many jobs wait, if `depth_capped` is false; else as many as were counted.
    pub depth: i64,
    pub depth_capped: bool,
    /// Of those that were counted, how long the one has been waiting that was accepted first.
    pub oldest_age_seconds: f64,
}

/// Some queues, in the order of their names. A page that would cost too many rows ends before the limit.
#[derive(Debug)]
pub struct Depths {
    pub queues: Vec<Depth>,
    /// The name at which the next page begins; `None` after the last.
    pub next: Option<String>,
}

impl Depths {
    /// The queues from this name on, up to so many.
    ///
    /// # Errors
    /// The database's.
    pub async fn read(
        connection: &mut PgConnection,
        tenant: TenantId,
        from: Option<&str>,
        limit: u16,
    ) -> sqlx::Result<Self> {
        let from = from.unwrap_or_default();
        let (mut queues, mut next) = (Vec::new(), None);
        for counted in depth_queries::depths(connection, tenant, from, i64::from(limit)).await? {
            let Counted { queue, depth, depth_capped, oldest_age_seconds } = counted;
            match depth {
                Some(depth) => queues.push(Depth { queue, depth, depth_capped, oldest_age_seconds }),
                None => {
                    next = Some(queue);
                    break;
                }
            }
        }
        Ok(Self { queues, next })
    }
}
