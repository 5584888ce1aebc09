//! The SQL that counts queued jobs.

use sqlx::PgConnection;

use crate::ids::TenantId;

/// A queue with queued jobs, and their count.
pub struct Counted {
    pub queue: String,
    /// `None` if the page ends before this queue.
    pub depth: Option<i64>,
    pub depth_capped: bool,
    pub oldest_age_seconds: f64,
}

/// Up to `limit` queues from this name on, and the next one, in the order of names. Counts them until `limit` queues or
/// more than 10,000 jobs are counted.
///
/// Each name takes one index look-up, which starts from the previous name. In each queue at most 10,001 jobs are
/// counted, to see whether there are more than 10,000. So one statement reads at most 20,001 jobs.
pub async fn depths(
    connection: &mut PgConnection,
    tenant: TenantId,
    from: &str,
    limit: i64,
) -> sqlx::Result<Vec<Counted>> {
    sqlx::query_as!(
        Counted,
        r#"
        /* queue_depths */
        with recursive names as (
            (
                select queue
                from hapax.job_queue
                where tenant_id = $1 and queue >= $2
                order by queue
                limit 1
            )
            union all
            select (
                select job_queue.queue
                from hapax.job_queue
                where job_queue.tenant_id = $1 and job_queue.queue > names.queue
                order by job_queue.queue
                limit 1
            )
            from names
            where names.queue is not null
        ),
        named as (
            select queue, row_number() over (order by queue) as place
            from (
                select queue
                from names
                where queue is not null
                limit $3::bigint + 1
            ) as first_names
        ),
        counted as (
            select 0::bigint as place, 0::bigint as depth, null::timestamptz as oldest, 0::numeric as rows_read
            union all
            select named.place, waiting.depth, waiting.oldest, counted.rows_read + waiting.depth
            from counted
            join named on named.place = counted.place + 1
            cross join lateral (
                select count(*) as depth, min(created_at) as oldest
                from (
                    select created_at
                    from hapax.job_queue
                    where tenant_id = $1 and queue between named.queue and named.queue
                    order by queue, priority, run_at, job_id
                    limit 10001
                ) as first_of_them
            ) as waiting
            where counted.place < $3::bigint and counted.rows_read <= 10000
        )
        select
            named.queue as "queue!",
            case when counted.depth > 10000 then 10000 else counted.depth end as depth,
            coalesce(counted.depth > 10000, false) as "depth_capped!",
            round(greatest(0, extract(epoch from clock_timestamp() - counted.oldest)), 3)::double precision
                as "oldest_age_seconds!"
        from named
        left join counted on counted.place = named.place
        order by named.place
        "#,
        tenant.0,
        from,
        limit,
    )
    .fetch_all(connection)
    .await
}
