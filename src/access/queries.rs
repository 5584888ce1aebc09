//! The SQL of access. Whoever calls brings the connection.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Caller, Scopes, TenantName, TokenDigest};
use crate::ids::TenantId;

/// A tenant as an operator sees it.
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    pub created_at: DateTime<Utc>,
    /// As in [`Caller`].
    pub key_time_to_live: Option<Duration>,
}

/// A token as an operator sees it: everything but the token.
pub struct IssuedToken {
    pub id: Uuid,
    pub tenant_name: String,
    /// As stored, with those that permit nothing in this release.
    pub scopes: Vec<String>,
    pub created_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Whom a token that is not revoked speaks for.
pub async fn find_caller(connection: &mut PgConnection, digest: &TokenDigest) -> sqlx::Result<Option<Caller>> {
    let row = sqlx::query!(
        "
        select tenants.id, tenants.name, tenants.key_time_to_live_seconds, access_tokens.scopes
        from access_tokens
        join tenants on tenants.id = access_tokens.tenant_id
        where access_tokens.digest = $1 and access_tokens.revoked_at is null
        ",
        digest.as_bytes(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Caller {
        tenant: TenantId(row.id),
        tenant_name: row.name.into(),
        scopes: Scopes::stored(&row.scopes),
        key_time_to_live: row.key_time_to_live_seconds.map(duration),
    }))
}

/// A column of seconds, which a constraint keeps positive.
fn duration(seconds: i32) -> Duration {
    Duration::from_secs(u64::from(seconds.unsigned_abs()))
}

/// Makes a tenant of this name; `false` if there was one.
pub async fn create_tenant(connection: &mut PgConnection, name: &TenantName) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into tenants (id, name) values ($1, $2) on conflict on constraint tenants_name_key do nothing",
        Uuid::now_v7(),
        name.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn find_tenant(connection: &mut PgConnection, name: &TenantName) -> sqlx::Result<Option<TenantId>> {
    let id = sqlx::query_scalar!("select id from tenants where name = $1", name.as_str());
    Ok(id.fetch_optional(connection).await?.map(TenantId))
}

pub async fn list_tenants(connection: &mut PgConnection) -> sqlx::Result<Vec<Tenant>> {
    let rows = sqlx::query!("select id, name, created_at, key_time_to_live_seconds from tenants order by name")
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

/// Sets how long a tenant's new keys live; `None`: as long as the setting says. `false` if there is no such tenant.
pub async fn set_key_time_to_live(
    connection: &mut PgConnection,
    tenant: &TenantName,
    time_to_live: Option<Duration>,
) -> sqlx::Result<bool> {
    let seconds = time_to_live.map(|time| i32::try_from(time.as_secs()).unwrap_or(i32::MAX));
    let done =
        sqlx::query!("update tenants set key_time_to_live_seconds = $2 where name = $1", tenant.as_str(), seconds)
            .execute(connection)
            .await?;
    Ok(done.rows_affected() == 1)
}

/// Stores a token's digest under a new id; `None` if there is no such tenant.
pub async fn create_token(
    connection: &mut PgConnection,
    tenant: &TenantName,
    digest: &TokenDigest,
    scopes: Scopes,
) -> sqlx::Result<Option<Uuid>> {
    let names: Vec<String> = scopes.names().map(str::to_owned).collect();
    sqlx::query_scalar!(
        "
        insert into access_tokens (id, tenant_id, digest, scopes)
        select $1, id, $2, $3
        from tenants
        where name = $4
        returning id
        ",
        Uuid::now_v7(),
        digest.as_bytes(),
        &names,
        tenant.as_str(),
    )
    .fetch_optional(connection)
    .await
}

pub async fn list_tokens(connection: &mut PgConnection, tenant: Option<&TenantName>) -> sqlx::Result<Vec<IssuedToken>> {
    let rows = sqlx::query!(
        "
        select
            access_tokens.id, tenants.name as tenant_name, access_tokens.scopes, access_tokens.created_at,
            access_tokens.revoked_at
        from access_tokens
        join tenants on tenants.id = access_tokens.tenant_id
        where $1::text is null or tenants.name = $1
        order by tenants.name, access_tokens.id
        ",
        tenant.map(TenantName::as_str),
    )
    .fetch_all(connection)
    .await?;
    let tokens = rows.into_iter().map(|row| IssuedToken {
        id: row.id,
        tenant_name: row.tenant_name,
        scopes: row.scopes,
        created_at: row.created_at,
        revoked_at: row.revoked_at,
    });
    Ok(tokens.collect())
}

/// Ends a token's validity; `false` if there is none of this id. Revoking twice changes nothing.
pub async fn revoke_token(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query!("update access_tokens set revoked_at = coalesce(revoked_at, now()) where id = $1", id)
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == 1)
}
