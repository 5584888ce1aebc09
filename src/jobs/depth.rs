//! Queue depths, a page at a time.
//!
//! Owns what the API shows of a queue; the SQL is in `depth_queries`. A queue exists while a job waits in it.

use serde::Serialize;
use sqlx::PgConnection;

use super::depth_queries::{self, Counted};
use crate::ids::TenantId;

/// A queue as the API shows it.
#[derive(Debug, Serialize)]
pub struct Depth {
    pub queue: String,
    /// The number of waiting jobs. If `depth_capped`, the number that was counted before the limit.
    pub depth: i64,
    pub depth_capped: bool,
    /// The age of the job that was accepted first, among those counted.
    pub oldest_age_seconds: f64,
}

/// Queues in the order of their names. A page that would read too many rows ends before its limit.
#[derive(Debug)]
pub struct Depths {
    pub queues: Vec<Depth>,
    /// The name at which the next page starts; `None` after the last page.
    pub next: Option<String>,
}

impl Depths {
    /// Reads up to `limit` queues, from this name on.
    ///
    /// # Errors
    /// The database's error.
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
