//! The SQL of tenants and access tokens.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Caller, Scopes, TenantName, TokenDigest, TokenName};
use crate::ids::TenantId;

/// A tenant as an operator sees it.
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    pub created_at: DateTime<Utc>,
    /// See [`Caller`].
    pub key_time_to_live: Option<Duration>,
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
            access_tokens.digest, tenants.id, tenants.name, tenants.key_time_to_live_seconds, access_tokens.scopes,
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
            key_time_to_live: row.key_time_to_live_seconds.map(duration),
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

/// Creates a tenant. Returns `false` if the name is taken.
pub async fn create_tenant(connection: &mut PgConnection, name: &TenantName) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "/* create_tenant */ insert into hapax.tenants (id, name) values ($1, $2) on conflict on constraint tenants_name_key do nothing",
        Uuid::now_v7(),
        name.as_str(),
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
        "/* list_tenants */ select id, name, created_at, key_time_to_live_seconds from hapax.tenants order by name"
    )
    .fetch_all(connection)
    .await?;
    let tenants = rows.into_iter().map(|row| Tenant {
        id: TenantId(row.id),
        name: row.name,
        created_at: row.created_at,
        key_time_to_live: row.key_time_to_live_seconds.map(duration),
    });
    Ok(tenants.collect())
}

/// Sets how long new keys of a tenant are valid; `None`: as in the setting. Returns `false` if the tenant does not
/// exist.
pub async fn set_key_time_to_live(
    connection: &mut PgConnection,
    tenant: &TenantName,
    time_to_live: Option<Duration>,
) -> sqlx::Result<bool> {
    let seconds = time_to_live.map(|time| i32::try_from(time.as_secs()).unwrap_or(i32::MAX));
    let done = sqlx::query!(
        "/* set_key_time_to_live */ update hapax.tenants set key_time_to_live_seconds = $2 where name = $1",
        tenant.as_str(),
        seconds
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
