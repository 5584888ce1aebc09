//! The SQL of the tutorial's handler.

use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

pub async fn make_tables(pool: &PgPool) -> sqlx::Result<()> {
    sqlx::raw_sql(
        r#"
        create schema if not exists tutorial;
        create table if not exists tutorial.idempotency_keys (
            key text primary key,
            response bytea,
            created_at timestamptz not null,
            expires_at timestamptz not null
        );
        create index if not exists idempotency_keys_expires_at_idx on tutorial.idempotency_keys (expires_at);
        create table if not exists tutorial.jobs (
            id uuid primary key,
            type text not null,
            payload jsonb not null,
            status text not null,
            created_at timestamptz not null
        )
        "#,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Returns whether the key was free.
pub async fn insert_key(connection: &mut PgConnection, key: &str) -> sqlx::Result<bool> {
    let done = sqlx::query(
        r#"
        insert into tutorial.idempotency_keys (key, created_at, expires_at)
        values ($1, now(), now() + interval '24 hours')
        on conflict do nothing
        "#,
    )
    .bind(key)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn insert_job(connection: &mut PgConnection, id: Uuid, kind: &str, payload: &Value) -> sqlx::Result<()> {
    sqlx::query(
        r#"
        insert into tutorial.jobs (id, type, payload, status, created_at)
        values ($1, $2, $3, 'queued', now())
        "#,
    )
    .bind(id)
    .bind(kind)
    .bind(payload)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn keep_answer(connection: &mut PgConnection, key: &str, answer: &[u8]) -> sqlx::Result<()> {
    sqlx::query("update tutorial.idempotency_keys set response = $2 where key = $1")
        .bind(key)
        .bind(answer)
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn kept_answer(connection: &mut PgConnection, key: &str) -> sqlx::Result<Vec<u8>> {
    sqlx::query_scalar("select response from tutorial.idempotency_keys where key = $1")
        .bind(key)
        .fetch_one(connection)
        .await
}
