//! The SQL of idempotency keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use super::{Answer, Effect, Fingerprint, Outcome, ScopedKey};
use crate::database::WriteOptions;
use crate::ids::{JobId, RequestId};

/// The row of a key.
#[derive(Debug)]
pub struct Stored {
    pub outcome: Arc<Outcome>,
    /// The time until the key expires, by PostgreSQL's clock. `None` if that has passed, and the key was neither deleted
    /// nor extended yet.
    pub life: Option<Duration>,
    /// Whether the key still stands for its job: it has not expired, or is kept because its job is not over.
    pub is_kept: bool,
}

/// Reads the row of a key. A write needs this as a second statement if the key is taken: an insert that lost a race for
/// the key cannot see the winner's row.
pub async fn find(connection: &mut PgConnection, key: &ScopedKey) -> sqlx::Result<Option<Stored>> {
    Ok(find_all(connection, std::iter::once(key)).await?.remove(&0))
}

/// Reads the rows of many keys. The result maps the position of a key to its row. The lateral join with `limit 1` makes
/// the planner use the index for each key, whatever number of keys it expects.
pub async fn find_all<'k>(
    connection: &mut PgConnection,
    keys: impl Iterator<Item = &'k ScopedKey> + Clone,
) -> sqlx::Result<HashMap<usize, Stored>> {
    let rows = sqlx::query!(
        r#"
        /* find_keys */
        select
            wanted.place as "place!", stored.fingerprint, stored.request_id, stored.effect, stored.job_id,
            stored.job_version, stored.body, stored.created_at, kept.until as "expires_at!",
            extract(epoch from stored.expires_at - clock_timestamp())::double precision as "life_seconds!",
            kept.until > clock_timestamp() as "is_kept!"
        from unnest($1::uuid [], $2::text [], $3::text []) with ordinality as wanted (tenant_id, route, key, place)
        cross join lateral (
            select
                fingerprint, request_id, effect, job_id, job_version, body, created_at, expires_at, time_to_live_seconds
            from hapax.idempotency_keys
            where tenant_id = wanted.tenant_id and route = wanted.route and key = wanted.key
            limit 1
        ) as stored
        cross join lateral (
            select
                case
                    when stored.expires_at > clock_timestamp() then stored.expires_at
                    else hapax.key_kept_until(
                        wanted.tenant_id, stored.job_id, stored.expires_at, stored.time_to_live_seconds
                    )
                end as until
        ) as kept
        "#,
        &keys.clone().map(|key| key.tenant.0).collect::<Vec<_>>(),
        &keys.clone().map(|key| key.route.0).collect::<Vec<_>>() as &[&str],
        &keys.map(|key| key.key.as_str()).collect::<Vec<_>>() as &[&str],
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let fingerprint = Fingerprint::stored(&row.fingerprint);
            let outcome = Outcome {
                fingerprint: fingerprint.ok_or_else(|| sqlx::Error::Decode("a fingerprint has 32 bytes".into()))?,
                answer: Answer {
                    effect: Effect::parse(&row.effect)
                        .ok_or_else(|| sqlx::Error::Decode("the effect of a key is unknown".into()))?,
                    job_id: JobId(row.job_id),
                    job_version: row.job_version,
                    body: row.body.into(),
                },
                request_id: RequestId::stored(row.request_id),
                created_at: row.created_at,
                expires_at: row.expires_at,
            };
            let life = Duration::try_from_secs_f64(row.life_seconds).ok().filter(|life| !life.is_zero());
            let place = usize::try_from(row.place - 1).map_err(|error| sqlx::Error::Decode(error.into()))?;
            Ok((place, Stored { outcome: Arc::new(outcome), life, is_kept: row.is_kept }))
        })
        .collect()
}

/// Deletes a key if it has expired and the purger has not deleted it yet. So it can be used again immediately. Extends
/// the life of a key that is kept for its job.
pub async fn expire(connection: &mut PgConnection, key: &ScopedKey, options: WriteOptions) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        /* expire_key */
        select hapax.expire_key(
            p_tenant_id => $1,
            p_route => $2,
            p_key => $3,
            p_lock_timeout_ms => $4,
            p_insist_on_durability => $5
        )
        "#,
        key.tenant.0,
        key.route.0,
        key.key.as_str(),
        options.lock_timeout_ms(),
        options.insist_on_durability,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// What a purge statement did.
pub struct Purged {
    pub deleted: u64,
    /// Keys that are kept for their jobs. Their expiry was moved.
    pub kept: u64,
}

/// Deletes or extends up to `limit` expired keys. It skips rows that another transaction has locked, so several purgers
/// may run at once. It fails if the table is locked for a second.
pub async fn purge(connection: &mut PgConnection, limit: i32) -> sqlx::Result<Purged> {
    let row = sqlx::query!(
        r#"
        /* purge */
        select deleted as "deleted!", kept as "kept!"
        from hapax.purge_keys(p_limit => $1)
        "#,
        limit,
    )
    .fetch_one(connection)
    .await?;
    Ok(Purged { deleted: row.deleted.unsigned_abs(), kept: row.kept.unsigned_abs() })
}

/// How late the background tasks are that clean the whole database. Zero: nothing is due.
pub struct Lags {
    /// The time since the expiry of the oldest key that is expired and not deleted.
    pub purge: Duration,
    /// The time since the reclaimer should have looked at the claim that is due for longest.
    pub reclaim: Duration,
}

/// One statement, because a scrape must not take long.
pub async fn lags(connection: &mut PgConnection) -> sqlx::Result<Lags> {
    let row = sqlx::query!(
        r#"
        /* lags */
        select
            (
                select greatest(0, extract(epoch from now() - min(expires_at)))::double precision
                from hapax.idempotency_keys
            ) as "purge",
            (
                select greatest(0, extract(epoch from now() - min(check_at)))::double precision
                from hapax.claims
            ) as "reclaim"
        "#,
    )
    .fetch_one(connection)
    .await?;
    let seconds = |seconds: Option<f64>| Duration::from_secs_f64(seconds.unwrap_or(0.0));
    Ok(Lags { purge: seconds(row.purge), reclaim: seconds(row.reclaim) })
}
