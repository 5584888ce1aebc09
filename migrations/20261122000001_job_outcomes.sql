create table job_outcomes (
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
    constraint job_outcomes_pkey primary key (tenant_id, job_id),
    constraint job_outcomes_state_check check (state in ('succeeded', 'failed', 'cancelled')),
    constraint job_outcomes_queue_check check (octet_length(queue) between 1 and 128 and queue !~ '[^!-~]'),
    constraint job_outcomes_priority_check check (priority between 1 and 4),
    constraint job_outcomes_max_attempts_check check (max_attempts between 1 and 1000),
    constraint job_outcomes_attempt_check check (attempt >= 0),
    constraint job_outcomes_version_check check (version >= 1)
);

comment on table job_outcomes is 'A row is a job that is over. The statement that writes it takes the job out of where it was before.';
comment on column job_outcomes.priority is 'As it was when the job ended, like run_at, max_attempts and attempt.';
comment on column job_outcomes.version is 'One more than where the job was before.';
comment on column job_outcomes.finished_at is 'When the job ended, by this database''s clock.';
