-- Keys and jobs FIRST to LAST, as if they had been submitted at ten thousand a second. They may start after a DELAY.
with made as (
    select
        n,
        (select id from hapax.tenants) as tenant_id,
        (
            lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0')
            || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15)
        )::uuid as id,
        at,
        at + interval 'DELAY' as run_at,
        to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at_text,
        to_char((at + interval 'DELAY') at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as run_at_text
    from generate_series(FIRST, LAST) as n
    cross join lateral (select now() - interval '1 hour' + n * interval '100 microseconds') as made (at)
),

new_key as (
    insert into hapax.idempotency_keys (
        tenant_id, route, key, fingerprint, effect, job_id, job_version, body, request_id, created_at, expires_at,
        time_to_live_seconds
    )
    select
        tenant_id, 'POST /jobs', md5('key ' || n)::uuid::text, sha256(n::text::bytea), 'created', id, 1,
        convert_to(
            format(
                '{"id":"%s","type":"mail.send","queue":"default","priority":PRIORITY,"run_at":"%s","max_attempts":25,'
                || '"state":"queued","attempt":0,"created_at":"%s"}',
                id, run_at_text, at_text
            ),
            'UTF8'
        ),
        md5('request ' || n)::uuid::text, at, at + interval '24 hours', 86400
    from made
),

new_job as (
    insert into hapax.jobs (tenant_id, id, type, payload, created_at)
    select
        tenant_id, id, 'mail.send', replace('PAYLOAD', 'BLANK', md5('order ' || n)::uuid::text)::json, at
    from made
)

insert into hapax.job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at)
select tenant_id, id, 'default', PRIORITY, run_at, 25, at
from made;
