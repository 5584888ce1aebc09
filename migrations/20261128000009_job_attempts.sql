create table hapax.job_attempts (
    tenant_id uuid not null,
    job_id uuid not null,
    token integer not null,
    claim_id uuid not null,
    attempt integer not null,
    reported text collate "C" not null,
    error json,
    started_at timestamptz not null,
    ended_at timestamptz not null,
    late_outcome text collate "C",
    late_error json,
    constraint job_attempts_pkey primary key (tenant_id, job_id, token),
    constraint job_attempts_reported_check check (reported in ('succeeded', 'failed', 'released', 'cancelled', 'lost')),
    constraint job_attempts_late_outcome_check check (
        late_outcome is null
        or reported = 'lost' and late_outcome in ('succeeded', 'failed', 'released', 'cancelled')
    )
);

comment on table hapax.job_attempts is 'Attempts that did not end their job, and all attempts whose lease was lost. Each job keeps its newest 50.';
comment on column hapax.job_attempts.token is 'The number of the lease.';
comment on column hapax.job_attempts.reported is 'What the worker reported. lost: nothing, until the lease was reclaimed.';
comment on column hapax.job_attempts.error is 'The JSON that the worker reported, byte for byte.';
comment on column hapax.job_attempts.late_outcome is 'What the worker reported after the lease was reclaimed. It changed nothing. Null: nothing.';
