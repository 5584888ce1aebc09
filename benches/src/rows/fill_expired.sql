-- COUNT keys that expired an hour ago, for the purger.
insert into hapax.idempotency_keys (
    tenant_id, route, key, fingerprint, effect, job_id, job_version, body, request_id, created_at, expires_at,
    time_to_live_seconds
)
select
    (select id from hapax.tenants), 'POST /jobs', gen_random_uuid()::text, sha256(n::text::bytea), 'created', job_id, 1,
    convert_to(repeat(md5(n::text), 9), 'UTF8'), gen_random_uuid()::text,
    now() - interval '25 hours', now() - interval '1 hour' + n * interval '1 millisecond', 86400
from (select n, gen_random_uuid() as job_id from generate_series(1, COUNT) as n) as made;
