create table hapax.idempotency_keys (
    tenant_id uuid not null,
    route text collate "C" not null,
    key text collate "C" not null,
    fingerprint bytea not null,
    request_id text collate "C" not null,
    effect text collate "C" not null,
    job_id uuid not null,
    job_version integer not null,
    body bytea not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    time_to_live_seconds integer not null,
    constraint idempotency_keys_pkey primary key (tenant_id, route, key),
    constraint idempotency_keys_key_check check (octet_length(key) between 1 and 255 and key !~ '[^!-~]'),
    constraint idempotency_keys_fingerprint_check check (octet_length(fingerprint) = 32),
    constraint idempotency_keys_request_id_check check (length(request_id) between 1 and 128),
    constraint idempotency_keys_effect_check check (effect in ('created', 'adopted', 'changed'))
);

-- For the purger.
create index idempotency_keys_expires_at_idx on hapax.idempotency_keys (expires_at);

comment on table hapax.idempotency_keys is 'Idempotency keys, each with the stored answer of its first request. Every request with the key gets that answer until the key expires. A key outlives its job, so that a late retry creates no second one.';
comment on column hapax.idempotency_keys.route is 'Method and path template, such as POST /jobs. The same key on two routes is two keys.';
comment on column hapax.idempotency_keys.fingerprint is 'SHA-256 of the path and the canonical JSON body of the first request.';
comment on column hapax.idempotency_keys.request_id is 'X-Request-Id of the first request.';
comment on column hapax.idempotency_keys.effect is 'What the first request did. created: it created the job. adopted: it found an active job with the same content. changed: it changed the job.';
comment on column hapax.idempotency_keys.job_id is 'The job that the first request created, adopted or changed. No foreign key: the job may be deleted while the key lives.';
comment on column hapax.idempotency_keys.job_version is 'The version of the job that the answer shows.';
comment on column hapax.idempotency_keys.body is 'Body of the answer, byte for byte. It does not contain the payload.';
comment on column hapax.idempotency_keys.created_at is 'When the first request was accepted, by the clock of the replica.';
comment on column hapax.idempotency_keys.expires_at is 'The earliest end of the key, by the clock of this database. If the job is not over, or not for time_to_live_seconds yet, expire_key moves it to a later time instead of deleting the row.';
comment on column hapax.idempotency_keys.time_to_live_seconds is 'How long the key lives after the first request, and at least how long after the end of the job.';
