create table idempotency_keys (
    tenant_id uuid not null,
    route text collate "C" not null,
    key text collate "C" not null,
    fingerprint bytea not null,
    job_id uuid not null,
    status smallint not null,
    location text collate "C",
    body bytea not null,
    request_id text collate "C" not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    constraint idempotency_keys_pkey primary key (tenant_id, route, key),
    constraint idempotency_keys_key_check check (octet_length(key) between 1 and 255 and key !~ '[^!-~]'),
    constraint idempotency_keys_fingerprint_check check (octet_length(fingerprint) = 32),
    constraint idempotency_keys_status_check check (status between 200 and 299),
    constraint idempotency_keys_request_id_check check (length(request_id) between 1 and 128)
);

-- The purger looks for what has expired.
create index idempotency_keys_expires_at_idx on idempotency_keys (expires_at);

comment on table idempotency_keys is 'A row is one committed outcome: what every request under this key is answered until it expires. An expired row counts for nothing; the purger removes it some time later.';
comment on column idempotency_keys.route is 'Method and path template, such as POST /jobs: the same key on two routes is two keys.';
comment on column idempotency_keys.fingerprint is 'SHA-256 over the path and the canonical JSON body of the first request.';
comment on column idempotency_keys.job_id is 'The job that the request made or changed. No foreign key: the key and its job are written by one statement, and the job may be deleted while its key lives on.';
comment on column idempotency_keys.status is 'HTTP status of the first answer.';
comment on column idempotency_keys.location is 'Location of the first answer, relative; null where it had none.';
comment on column idempotency_keys.body is 'The first answer''s body, to the byte. Holds no payload.';
comment on column idempotency_keys.request_id is 'X-Request-Id of the first request.';
comment on column idempotency_keys.created_at is 'When the first request was accepted, by the replica''s clock.';
comment on column idempotency_keys.expires_at is 'From when on the row counts for nothing, by this database''s clock.';
