-- Keys that expired an hour ago, for the purger.
insert into idempotency_keys (
    tenant_id, route, key, fingerprint, job_id, status, location, body, request_id, created_at, expires_at
)
select
    (select id from tenants), 'POST /jobs', gen_random_uuid()::text, sha256(n::text::bytea), job_id, 201,
    '/jobs/' || job_id, convert_to(repeat(md5(n::text), 9), 'UTF8'), gen_random_uuid()::text,
    now() - interval '25 hours', now() - interval '1 hour' + n * interval '1 millisecond'
from (select n, gen_random_uuid() as job_id from generate_series(1, COUNT) as n) as made;
