//! The SQL of keys. Whoever calls brings the connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use super::{Answer, Fingerprint, Outcome, ScopedKey};
use crate::ids::{JobId, RequestId};

/// The one statement of a keyed route: it writes the key and what the request asks for, or nothing, and says until when
/// the key lives; `None` if nothing was written. See ADR 0003.
///
/// The route brings a row that must be there (`$from`, one of the CTEs in `$given`, or `options` if it needs none), and what
/// follows from the key (`$effect`, CTEs that select from `new_key`). Its own parameters begin with $15.
macro_rules! keyed_statement {
    (
        $connection:expr, $keyed:expr, $answer:expr, $on_conflict:expr, $options:expr,
        given: $given:literal, from: $from:literal, effect: [$($effect:literal),*]
        $(, $more:expr)* $(,)?
    ) => {
        match $on_conflict {
            $crate::idempotency::OnConflict::DoNothing => {
                keyed_statement!(
                    @ $connection, $keyed, $answer, $options, $given, $from,
                    "on conflict (tenant_id, route, key) do nothing",
                    [$($effect),*] $(, $more)*
                )
            }
            $crate::idempotency::OnConflict::TakeOverExpired => {
                keyed_statement!(
                    @ $connection, $keyed, $answer, $options, $given, $from,
                    r#"
                    on conflict (tenant_id, route, key) do update
                    set fingerprint = excluded.fingerprint,
                        job_id = excluded.job_id,
                        status = excluded.status,
                        location = excluded.location,
                        etag = excluded.etag,
                        body = excluded.body,
                        request_id = excluded.request_id,
                        created_at = excluded.created_at,
                        expires_at = excluded.expires_at
                    where present.expires_at <= clock_timestamp()
                    "#,
                    [$($effect),*] $(, $more)*
                )
            }
        }
    };
    (
        @ $connection:expr, $keyed:expr, $answer:expr, $options:expr, $given:literal, $from:literal,
        $on_conflict:literal, [$($effect:literal),*] $(, $more:expr)*
    ) => {
        $crate::database::queries::statement_with_options!(
            query_scalar,
            $options,
            [
                $given,
                r#"
                new_key as (
                    insert into idempotency_keys as present (
                        tenant_id, route, key, fingerprint, job_id, status, location, etag, body, request_id,
                        created_at, expires_at
                    )
                    select
                        $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                        clock_timestamp() + make_interval(secs => $3)
                    from "#,
                $from,
                " ",
                $on_conflict,
                r#"
                    returning tenant_id, job_id, created_at, expires_at
                )
                "#,
                $($effect,)*
                r#"
                select expires_at from new_key
                "#,
            ],
            $keyed.time_to_live.as_secs_f64(),
            $keyed.key.tenant.0,
            $keyed.key.route.0,
            $keyed.key.key.as_str(),
            $keyed.fingerprint.as_bytes(),
            $answer.job_id.0,
            $answer.status,
            $answer.location,
            $answer.etag,
            &$answer.body[..],
            $keyed.request_id.as_str(),
            $keyed.created_at,
            $($more,)*
        )
        .fetch_optional($connection)
        .await
    };
}

pub(crate) use keyed_statement;

/// What stands under a key.
#[derive(Debug)]
pub struct Stored {
    pub outcome: Arc<Outcome>,
    /// How long it will live, by PostgreSQL's clock. `None`: it has expired and counts for nothing, whether or not the
    /// purger has come by.
    pub life: Option<Duration>,
}

/// Looks a key up, in a snapshot of its own: the statement that lost a race for the key cannot see who won it.
pub async fn find(connection: &mut PgConnection, key: &ScopedKey) -> sqlx::Result<Option<Stored>> {
    Ok(find_all(connection, std::iter::once(key)).await?.remove(&0))
}

/// The same for many keys at once, each told by its place among them. Each is looked up in the index by itself, whatever
/// the planner thinks of their number.
pub async fn find_all<'k>(
    connection: &mut PgConnection,
    keys: impl Iterator<Item = &'k ScopedKey> + Clone,
) -> sqlx::Result<HashMap<usize, Stored>> {
    let rows = sqlx::query!(
        r#"
        select
            wanted.place as "place!", stored.fingerprint, stored.job_id, stored.status, stored.location, stored.etag,
            stored.body, stored.request_id, stored.created_at, stored.expires_at,
            extract(epoch from stored.expires_at - clock_timestamp())::double precision as "life_seconds!"
        from unnest($1::uuid [], $2::text [], $3::text []) with ordinality as wanted (tenant_id, route, key, place)
        cross join lateral (
            select fingerprint, job_id, status, location, etag, body, request_id, created_at, expires_at
            from idempotency_keys
            where tenant_id = wanted.tenant_id and route = wanted.route and key = wanted.key
            limit 1
        ) as stored
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
                    job_id: JobId(row.job_id),
                    status: row.status,
                    location: row.location,
                    etag: row.etag,
                    body: row.body.into(),
                },
                request_id: RequestId::stored(row.request_id),
                created_at: row.created_at,
                expires_at: row.expires_at,
            };
            let life = Duration::try_from_secs_f64(row.life_seconds).ok().filter(|life| !life.is_zero());
            let place = usize::try_from(row.place - 1).map_err(|error| sqlx::Error::Decode(error.into()))?;
            Ok((place, Stored { outcome: Arc::new(outcome), life }))
        })
        .collect()
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
