//! The SQL of tenants and access tokens.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Caller, Rate, Scopes, TenantName, TenantSettings, TokenDigest, TokenName};
use crate::ids::TenantId;

/// A tenant as an operator sees it.
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    pub created_at: DateTime<Utc>,
    pub settings: TenantSettings,
}

/// Changes of a tenant's settings. `None` leaves a setting as it is, `Some(None)` returns to the configured default.
#[derive(Default)]
pub struct TenantChanges {
    pub key_time_to_live: Option<Option<Duration>>,
    pub requests: Option<Option<Rate>>,
    pub creations: Option<Option<Rate>>,
    pub replays: Option<Option<Rate>>,
}

/// A token as an operator sees it, without its secret.
pub struct IssuedToken {
    pub id: Uuid,
    pub tenant_name: String,
    /// The stored names, including scopes that this release does not know.
    pub scopes: Vec<String>,
    pub name: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub expired: bool,
    /// Approximate. See [`UseTimes`](super::UseTimes).
    pub last_used_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

/// The properties of a new token, without its secret.
pub struct NewToken<'a> {
    pub tenant: &'a TenantName,
    pub scopes: Scopes,
    pub name: Option<&'a TokenName>,
    /// How long it is valid; `None`: without limit.
    pub life: Option<Duration>,
}

/// The callers of the valid tokens: those that exist and are neither revoked nor expired.
pub async fn find_callers(
    connection: &mut PgConnection,
    digests: &[TokenDigest],
) -> sqlx::Result<HashMap<TokenDigest, Caller>> {
    let digests: Vec<&[u8]> = digests.iter().map(TokenDigest::as_bytes).collect();
    let rows = sqlx::query!(
        "
        /* find_callers */
        select
            access_tokens.digest, access_tokens.scopes, tenants.id, tenants.name, tenants.key_time_to_live_seconds,
            tenants.requests_per_second, tenants.requests_burst,
            tenants.creations_per_second, tenants.creations_burst,
            tenants.replays_per_second, tenants.replays_burst,
            extract(epoch from hapax.access_tokens.expires_at - clock_timestamp())::double precision as life_seconds
        from hapax.access_tokens
        join hapax.tenants on tenants.id = access_tokens.tenant_id
        where
            access_tokens.digest = any($1)
            and access_tokens.revoked_at is null
            and (access_tokens.expires_at > clock_timestamp()) is not false
        ",
        &digests as &[&[u8]],
    )
    .fetch_all(connection)
    .await?;
    let callers = rows.into_iter().filter_map(|row| {
        let caller = Caller {
            tenant: TenantId(row.id),
            tenant_name: row.name.into(),
            scopes: Scopes::stored(&row.scopes),
            settings: TenantSettings {
                key_time_to_live: row.key_time_to_live_seconds.map(duration),
                requests: rate(row.requests_per_second, row.requests_burst),
                creations: rate(row.creations_per_second, row.creations_burst),
                replays: rate(row.replays_per_second, row.replays_burst),
            },
            // Negative if the token expired between the two calls of clock_timestamp().
            token_life: row.life_seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
        };
        Some((TokenDigest::stored(&row.digest)?, caller))
    });
    Ok(callers.collect())
}

/// Converts a column of seconds. A constraint keeps it positive.
fn duration(seconds: i32) -> Duration {
    Duration::from_secs(u64::from(seconds.unsigned_abs()))
}

fn seconds(time: Duration) -> i32 {
    i32::try_from(time.as_secs()).unwrap_or(i32::MAX)
}

/// Converts the two columns of a quota. Constraints keep both positive, except for the rate 0: unlimited, and no burst.
fn rate(per_second: Option<i32>, burst: Option<i32>) -> Option<Rate> {
    let burst = burst.map_or(0, i32::unsigned_abs);
    per_second.map(|per_second| Rate { per_second: per_second.unsigned_abs(), burst })
}

fn per_second(rate: Rate) -> i32 {
    i32::try_from(rate.per_second).unwrap_or(i32::MAX)
}

fn burst(rate: Rate) -> Option<i32> {
    (rate.per_second > 0).then(|| i32::try_from(rate.burst).unwrap_or(i32::MAX))
}

/// Creates a tenant. Returns `false` if the name is taken.
pub async fn create_tenant(
    connection: &mut PgConnection,
    name: &TenantName,
    settings: &TenantSettings,
) -> sqlx::Result<bool> {
    let TenantSettings { key_time_to_live, requests, creations, replays } = *settings;
    let done = sqlx::query!(
        "
        /* create_tenant */
        insert into hapax.tenants (
            id, name, key_time_to_live_seconds,
            requests_per_second, requests_burst,
            creations_per_second, creations_burst,
            replays_per_second, replays_burst
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        on conflict on constraint tenants_name_key do nothing
        ",
        Uuid::now_v7(),
        name.as_str(),
        key_time_to_live.map(seconds),
        requests.map(per_second),
        requests.and_then(burst),
        creations.map(per_second),
        creations.and_then(burst),
        replays.map(per_second),
        replays.and_then(burst),
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn find_tenant(connection: &mut PgConnection, name: &TenantName) -> sqlx::Result<Option<TenantId>> {
    let id = sqlx::query_scalar!("/* find_tenant */ select id from hapax.tenants where name = $1", name.as_str());
    Ok(id.fetch_optional(connection).await?.map(TenantId))
}

pub async fn list_tenants(connection: &mut PgConnection) -> sqlx::Result<Vec<Tenant>> {
    let rows = sqlx::query!(
        "
        /* list_tenants */
        select
            id, name, created_at, key_time_to_live_seconds,
            requests_per_second, requests_burst,
            creations_per_second, creations_burst,
            replays_per_second, replays_burst
        from hapax.tenants
        order by name
        "
    )
    .fetch_all(connection)
    .await?;
    let tenants = rows.into_iter().map(|row| Tenant {
        id: TenantId(row.id),
        name: row.name,
        created_at: row.created_at,
        settings: TenantSettings {
            key_time_to_live: row.key_time_to_live_seconds.map(duration),
            requests: rate(row.requests_per_second, row.requests_burst),
            creations: rate(row.creations_per_second, row.creations_burst),
            replays: rate(row.replays_per_second, row.replays_burst),
        },
    });
    Ok(tenants.collect())
}

/// Changes a tenant's settings. Returns `false` if the tenant does not exist.
pub async fn change_tenant(
    connection: &mut PgConnection,
    tenant: &TenantName,
    changes: &TenantChanges,
) -> sqlx::Result<bool> {
    let TenantChanges { key_time_to_live, requests, creations, replays } = *changes;
    let done = sqlx::query!(
        "
        /* change_tenant */
        update hapax.tenants
        set
            key_time_to_live_seconds = case when $2 then $3 else key_time_to_live_seconds end,
            requests_per_second = case when $4 then $5 else requests_per_second end,
            requests_burst = case when $4 then $6 else requests_burst end,
            creations_per_second = case when $7 then $8 else creations_per_second end,
            creations_burst = case when $7 then $9 else creations_burst end,
            replays_per_second = case when $10 then $11 else replays_per_second end,
            replays_burst = case when $10 then $12 else replays_burst end
        where name = $1
        ",
        tenant.as_str(),
        key_time_to_live.is_some(),
        key_time_to_live.flatten().map(seconds),
        requests.is_some(),
        requests.flatten().map(per_second),
        requests.flatten().and_then(burst),
        creations.is_some(),
        creations.flatten().map(per_second),
        creations.flatten().and_then(burst),
        replays.is_some(),
        replays.flatten().map(per_second),
        replays.flatten().and_then(burst),
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Stores the digest of a token. Returns its new id, or `None` if the tenant does not exist.
pub async fn create_token(
    connection: &mut PgConnection,
    digest: &TokenDigest,
    token: NewToken<'_>,
) -> sqlx::Result<Option<Uuid>> {
    let scopes: Vec<String> = token.scopes.names().map(str::to_owned).collect();
    sqlx::query_scalar!(
        "
        /* create_token */
        insert into hapax.access_tokens as new_token (id, tenant_id, digest, scopes, name, expires_at)
        select $1, tenants.id, $2, $3, $5, clock_timestamp() + make_interval(secs => $6)
        from hapax.tenants
        where tenants.name = $4
        returning new_token.id
        ",
        Uuid::now_v7(),
        digest.as_bytes(),
        &scopes,
        token.tenant.as_str(),
        token.name.map(TokenName::as_str),
        token.life.map(|life| life.as_secs_f64()),
    )
    .fetch_optional(connection)
    .await
}

pub async fn list_tokens(connection: &mut PgConnection, tenant: Option<&TenantName>) -> sqlx::Result<Vec<IssuedToken>> {
    let rows = sqlx::query!(
        r#"
        /* list_tokens */
        select
            access_tokens.id, tenants.name as tenant_name, access_tokens.scopes, access_tokens.name,
            access_tokens.created_at, access_tokens.expires_at, access_tokens.last_used_at, access_tokens.revoked_at,
            (access_tokens.expires_at <= now()) is true as "expired!"
        from hapax.access_tokens
        join hapax.tenants on tenants.id = access_tokens.tenant_id
        where $1::text is null or tenants.name = $1
        order by tenants.name, access_tokens.id
        "#,
        tenant.map(TenantName::as_str),
    )
    .fetch_all(connection)
    .await?;
    let tokens = rows.into_iter().map(|row| IssuedToken {
        id: row.id,
        tenant_name: row.tenant_name,
        scopes: row.scopes,
        name: row.name,
        created_at: row.created_at,
        expires_at: row.expires_at,
        expired: row.expired,
        last_used_at: row.last_used_at,
        revoked_at: row.revoked_at,
    });
    Ok(tokens.collect())
}

/// Sets the time of last use of these tokens to now. Skips tokens that another replica has updated in the last 4
/// minutes, and tokens that another transaction has locked. So it never waits.
pub async fn record_use(connection: &mut PgConnection, digests: &[TokenDigest]) -> sqlx::Result<()> {
    let digests: Vec<&[u8]> = digests.iter().map(TokenDigest::as_bytes).collect();
    sqlx::query!(
        "
        /* record_token_use */
        update hapax.access_tokens
        set last_used_at = now()
        where id = any(array(
            select id
            from hapax.access_tokens
            where digest = any($1) and (last_used_at > now() - interval '4 minutes') is not true
            for update skip locked
        ))
        ",
        &digests as &[&[u8]],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Revokes a token. Returns `false` if no token has this id. Revoking it again changes nothing.
pub async fn revoke_token(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "/* revoke_token */ update hapax.access_tokens set revoked_at = coalesce(revoked_at, now()) where id = $1",
        id
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}
