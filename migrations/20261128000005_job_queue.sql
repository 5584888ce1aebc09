create table hapax.job_queue (
    tenant_id uuid not null,
    job_id uuid not null,
    queue text collate "C" not null,
    priority smallint not null,
    run_at timestamptz not null,
    max_attempts integer not null,
    attempt integer not null default 0,
    version integer not null default 1,
    created_at timestamptz not null,
    releases smallint not null default 0,
    constraint job_queue_pkey primary key (tenant_id, job_id),
    constraint job_queue_queue_check check (octet_length(queue) between 1 and 128 and queue !~ '[^!-~]'),
    constraint job_queue_priority_check check (priority between 1 and 4),
    constraint job_queue_run_at_check check (run_at >= '0001-01-01T00:00:00Z' and run_at < '10000-01-01T00:00:00Z'),
    constraint job_queue_max_attempts_check check (max_attempts between 1 and 1000),
    constraint job_queue_attempt_check check (attempt >= 0),
    constraint job_queue_version_check check (version >= 1),
    constraint job_queue_releases_check check (releases >= 0)
);

-- The order of claims. Each priority is a range of its own, so that urgent jobs of the future are not read.
create index job_queue_claim_idx on hapax.job_queue (tenant_id, queue, priority, run_at, job_id);

comment on table hapax.job_queue is 'Jobs that wait. A job that was not deleted is in exactly one of job_queue, job_leases and job_outcomes. No foreign key to jobs: one function writes both rows.';
comment on column hapax.job_queue.priority is '1 is the most urgent, 4 the least.';
comment on column hapax.job_queue.run_at is 'The job is not started before this time.';
comment on column hapax.job_queue.max_attempts is 'How many times the job may be started in all.';
comment on column hapax.job_queue.attempt is 'How many times the job has been started, without those that were released.';
comment on column hapax.job_queue.version is 'Increases by one with each change. It never decreases while the job moves between tables.';
comment on column hapax.job_queue.created_at is 'As in jobs.';
comment on column hapax.job_queue.releases is 'How many times a worker gave the job back unfinished. Each time the job waits longer. At most 32767.';
