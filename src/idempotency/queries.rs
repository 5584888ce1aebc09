//! The SQL of keys. Whoever calls brings the connection.

use std::time::Duration;

use sqlx::PgConnection;

use super::{Fingerprint, Outcome, ScopedKey};
use crate::ids::{JobId, RequestId};

/// What stands under a key.
#[derive(Debug)]
pub struct Stored {
    pub outcome: Outcome,
    /// By PostgreSQL's clock. The row then counts for nothing, whether or not the purger has come by.
    pub expired: bool,
}

/// Looks a key up, in a snapshot of its own: the statement that lost a race for the key cannot see who won it.
pub async fn find(connection: &mut PgConnection, key: &ScopedKey) -> sqlx::Result<Option<Stored>> {
    let row = sqlx::query!(
        r#"
        select
            fingerprint, job_id, location, body, request_id, created_at, expires_at,
            expires_at <= clock_timestamp() as "expired!"
        from idempotency_keys
        where tenant_id = $1 and route = $2 and key = $3
        "#,
        key.tenant.0,
        key.route.0,
        key.key.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        let fingerprint = Fingerprint::stored(&row.fingerprint);
        Ok(Stored {
            outcome: Outcome {
                fingerprint: fingerprint.ok_or_else(|| sqlx::Error::Decode("a fingerprint has 32 bytes".into()))?,
                job_id: JobId(row.job_id),
                location: row.location,
                body: row.body.into(),
                request_id: RequestId::stored(row.request_id),
                created_at: row.created_at,
                expires_at: row.expires_at,
            },
            expired: row.expired,
        })
    })
    .transpose()
}

/// Deletes up to `limit` expired keys and says how many. Rows that anyone else holds are skipped, so it waits for
/// nobody, and any number of purgers may run.
pub async fn purge(connection: &mut PgConnection, limit: i64) -> sqlx::Result<u64> {
    // now() and not clock_timestamp(): the index serves only what does not change within the statement, and in a
    // statement of its own it is a moment early, never late. By ctid, which a locked row keeps: a join by key is
    // planned as a scan of the whole table once statistics are stale.
    let done = sqlx::query!(
        r#"
        delete from idempotency_keys
        where ctid = any(array(
            select ctid
            from idempotency_keys
            where expires_at <= now()
            order by expires_at
            limit $1
            for update skip locked
        ))
        "#,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// How long the oldest expired key has been waiting for the purger; zero when none is.
pub async fn purge_lag(connection: &mut PgConnection) -> sqlx::Result<Duration> {
    let seconds = sqlx::query_scalar!(
        r#"
        select greatest(0, extract(epoch from now() - min(expires_at)))::double precision as "seconds"
        from idempotency_keys
        "#,
    )
    .fetch_one(connection)
    .await?;
    Ok(Duration::from_secs_f64(seconds.unwrap_or(0.0)))
}
