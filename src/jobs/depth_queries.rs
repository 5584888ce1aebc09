//! The SQL of what waits. Whoever calls brings the connection.

use sqlx::PgConnection;

use super::Depth;
use crate::ids::TenantId;

/// What waits in the queues from this name on, and in up to `limit` of them.
///
/// The names are found by one look into the index each, from one to the next; of each queue, 10,001 jobs are counted at the
/// most, to see whether there are more than 10,000.
pub async fn depths(
    connection: &mut PgConnection,
    tenant: TenantId,
    from: &str,
    limit: i64,
) -> sqlx::Result<Vec<Depth>> {
    sqlx::query_as!(
        Depth,
        r#"
        with recursive names as (
            (
                select queue
                from job_queue
                where tenant_id = $1 and queue >= $2
                order by queue
                limit 1
            )
            union all
            select (
                select job_queue.queue
                from job_queue
                where job_queue.tenant_id = $1 and job_queue.queue > names.queue
                order by job_queue.queue
                limit 1
            )
            from names
            where names.queue is not null
        )
        select
            named.queue as "queue!",
            least(counted.depth, 10000) as "depth!",
            counted.depth > 10000 as "depth_capped!",
            round(greatest(0, extract(epoch from clock_timestamp() - counted.oldest)), 3)::double precision
                as "oldest_age_seconds!"
        from (
            select queue
            from names
            where queue is not null
            limit $3
        ) as named
        cross join lateral (
            select count(*) as depth, min(created_at) as oldest
            from (
                select created_at
                from job_queue
                where tenant_id = $1 and queue between named.queue and named.queue
                order by queue, job_id
                limit 10001
            ) as waiting
        ) as counted
        order by named.queue
        "#,
        tenant.0,
        from,
        limit,
    )
    .fetch_all(connection)
    .await
}
