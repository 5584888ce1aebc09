create table hapax.jobs (
    tenant_id uuid not null,
    id uuid not null,
    type text collate "C" not null,
    queue text collate "C",
    priority smallint,
    run_at timestamptz,
    max_attempts integer,
    unique_by text [] collate "C",
    payload json,
    named boolean not null default false,
    created_at timestamptz not null,
    deleted_at timestamptz,
    constraint jobs_pkey primary key (tenant_id, id),
    constraint jobs_type_check check (octet_length(type) between 1 and 128 and type !~ '[^!-~]'),
    constraint jobs_queue_check check (octet_length(queue) between 1 and 128 and queue !~ '[^!-~]'),
    constraint jobs_priority_check check (priority between 1 and 4),
    constraint jobs_run_at_check check (run_at >= '0001-01-01T00:00:00Z' and run_at < '10000-01-01T00:00:00Z'),
    constraint jobs_max_attempts_check check (max_attempts between 1 and 1000),
    constraint jobs_unique_by_check check (cardinality(unique_by) between 1 and 16),
    constraint jobs_deleted_check check ((deleted_at is null) = (payload is not null))
);

-- A list by time reads a range of ids if the tenant has no named jobs, because only ids that Hapax makes are in the order
-- of time.
create index jobs_named_idx on hapax.jobs (tenant_id) where named;

comment on table hapax.jobs is 'Jobs as they were submitted. Only a deletion changes a row: it removes the payload. Null: the request left the member out.';
comment on column hapax.jobs.type is 'What kind of work the job is. The client chooses it.';
comment on column hapax.jobs.unique_by is 'JSON Pointers to the members that make the job unique while it is active. Null: it is not unique.';
comment on column hapax.jobs.payload is 'The JSON of the client, byte for byte. Type json keeps the text; jsonb would not. Null: the job was deleted.';
comment on column hapax.jobs.named is 'True: the client chose the id, by PUT. False: Hapax made it, and it contains created_at.';
comment on column hapax.jobs.created_at is 'When the submission was accepted, by the clock of the replica.';
comment on column hapax.jobs.deleted_at is 'When the job was deleted, by the clock of this database. The row stays, so that the id is never used again.';
