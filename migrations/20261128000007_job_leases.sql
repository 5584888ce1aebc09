create table hapax.job_leases (
    tenant_id uuid not null,
    job_id uuid not null,
    claim_id uuid not null,
    token integer not null,
    queue text collate "C" not null,
    priority smallint not null,
    run_at timestamptz not null,
    max_attempts integer not null,
    attempt integer not null,
    version integer not null,
    created_at timestamptz not null,
    releases smallint not null,
    started_at timestamptz not null,
    cancel_requested_at timestamptz,
    constraint job_leases_pkey primary key (tenant_id, job_id),
    constraint job_leases_token_check check (token between 1 and version),
    constraint job_leases_attempt_check check (attempt >= 1)
);

create index job_leases_claim_idx on hapax.job_leases (tenant_id, claim_id);

comment on table hapax.job_leases is 'Jobs that a worker holds. Only its claim can settle them.';
comment on column hapax.job_leases.token is 'The version of the job when the lease began. It is greater than the token of every earlier lease of the job.';
comment on column hapax.job_leases.queue is 'As it was in job_queue. The same holds for priority, run_at, max_attempts, created_at and releases.';
comment on column hapax.job_leases.attempt is 'One more than in job_queue.';
comment on column hapax.job_leases.started_at is 'When the lease began, by the clock of this database.';
comment on column hapax.job_leases.cancel_requested_at is 'When a cancellation was requested. The worker learns it from its next heartbeat. Null: it was not.';
