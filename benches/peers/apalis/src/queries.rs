//! What the peer's own table is asked.

use sqlx::PgPool;

pub async fn count(pool: &PgPool, queue: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from apalis.jobs where job_type = $1").bind(queue).fetch_one(pool).await
}
