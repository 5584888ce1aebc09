create table hapax.job_outcomes (
    tenant_id uuid not null,
    job_id uuid not null,
    state text collate "C" not null,
    queue text collate "C" not null,
    priority smallint not null,
    run_at timestamptz not null,
    max_attempts integer not null,
    attempt integer not null,
    version integer not null,
    finished_at timestamptz not null,
    claim_id uuid,
    token integer,
    started_at timestamptz,
    reported text collate "C",
    result json,
    error json,
    constraint job_outcomes_pkey primary key (tenant_id, job_id),
    constraint job_outcomes_state_check check (state in ('succeeded', 'failed', 'cancelled')),
    constraint job_outcomes_priority_check check (priority between 1 and 4),
    constraint job_outcomes_run_at_check check (run_at >= '0001-01-01T00:00:00Z' and run_at < '10000-01-01T00:00:00Z'),
    constraint job_outcomes_max_attempts_check check (max_attempts between 1 and 1000),
    constraint job_outcomes_attempt_check check (attempt >= 0),
    constraint job_outcomes_version_check check (version >= 1),
    constraint job_outcomes_reported_check check (reported in ('succeeded', 'failed', 'released', 'cancelled', 'lost')),
    constraint job_outcomes_claim_check check (
        (claim_id is null) = (reported is null) and (claim_id is null) = (token is null)
        and (claim_id is null) = (started_at is null)
    )
);

-- Lists by state or queue are in the order of job ids. Most jobs succeed: a list of them reads the primary key, and no index
-- entry is written for it.
create index job_outcomes_state_idx on hapax.job_outcomes (tenant_id, state, job_id) where state <> 'succeeded';
create index job_outcomes_queue_idx on hapax.job_outcomes (tenant_id, queue, job_id);

comment on table hapax.job_outcomes is 'Jobs that have ended. The function that inserts a row deletes the job from the table where it was before.';
comment on column hapax.job_outcomes.queue is 'As in job_queue, which checks it.';
comment on column hapax.job_outcomes.priority is 'As it was when the job ended. The same holds for run_at, max_attempts and attempt.';
comment on column hapax.job_outcomes.version is 'One more than the version in the table where the job was before.';
comment on column hapax.job_outcomes.finished_at is 'When the job ended, by the clock of this database.';
comment on column hapax.job_outcomes.claim_id is 'The claim that held the job last. Null: no worker held the job when it ended.';
comment on column hapax.job_outcomes.token is 'The number of the last lease. It is greater than that of every earlier lease of the job.';
comment on column hapax.job_outcomes.started_at is 'When the last lease began.';
comment on column hapax.job_outcomes.reported is 'What the worker reported. lost: nothing, until the lease was reclaimed. May differ from state: a job whose cancellation was requested ends as cancelled.';
comment on column hapax.job_outcomes.result is 'The JSON that the worker reported with a success, byte for byte.';
comment on column hapax.job_outcomes.error is 'The JSON that the worker reported with its last failure, byte for byte.';
