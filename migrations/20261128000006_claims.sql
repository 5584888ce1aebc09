create table hapax.claims (
    tenant_id uuid not null,
    id uuid not null,
    fingerprint bytea,
    worker text collate "C",
    queues text [] collate "C",
    lease_seconds integer,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    released_at timestamptz,
    check_at timestamptz not null,
    constraint claims_pkey primary key (tenant_id, id),
    constraint claims_fingerprint_check check (octet_length(fingerprint) = 32),
    constraint claims_worker_check check (length(worker) between 1 and 128 and worker !~ '[[:cntrl:]]'),
    constraint claims_queues_check check (cardinality(queues) > 0),
    constraint claims_lease_seconds_check check (lease_seconds between 1 and 3600),
    constraint claims_request_check check (
        (fingerprint is null) = (queues is null) and (fingerprint is null) = (lease_seconds is null)
        and (fingerprint is not null or released_at is not null)
    )
)
-- A heartbeat updates the row. With room on the page and no index on expires_at, that is a HOT update.
with (fillfactor = 60);

-- For the reclaimer.
create index claims_check_at_idx on hapax.claims (check_at);

comment on table hapax.claims is 'What workers have claimed. The row makes the request repeatable: the same PUT finds its jobs again. A claim ends when it holds no job any more. The reclaimer deletes the row an hour after expires_at.';
comment on column hapax.claims.id is 'The worker made it.';
comment on column hapax.claims.fingerprint is 'SHA-256 of the request. Null: the claim was released before its request arrived, so the request is refused.';
comment on column hapax.claims.worker is 'A name that the worker gave itself, for people. It proves nothing. Null: none.';
comment on column hapax.claims.lease_seconds is 'How far a heartbeat moves expires_at.';
comment on column hapax.claims.expires_at is 'From this time on, by the clock of this database, the jobs may be reclaimed. Until that is done, the claim still holds them. Not indexed, so that heartbeats are cheap.';
comment on column hapax.claims.released_at is 'When the worker ended the claim by DELETE. Null: it did not.';
comment on column hapax.claims.check_at is 'When the reclaimer looks at the row next. Not changed by heartbeats.';
