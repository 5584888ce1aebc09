create table jobs (
    tenant_id uuid not null,
    id uuid not null,
    type text collate "C" not null,
    queue text collate "C",
    priority smallint,
    run_at timestamptz,
    max_attempts integer,
    payload json not null,
    created_at timestamptz not null,
    constraint jobs_pkey primary key (tenant_id, id),
    constraint jobs_type_check check (octet_length(type) between 1 and 128 and type !~ '[^!-~]'),
    constraint jobs_queue_check check (octet_length(queue) between 1 and 128 and queue !~ '[^!-~]'),
    constraint jobs_priority_check check (priority between 1 and 4),
    constraint jobs_max_attempts_check check (max_attempts between 1 and 1000)
);

comment on table jobs is 'A row is what was asked for, as submitted; never updated. Null is what the request was silent about.';
comment on column jobs.type is 'What kind of work it is; the client''s word.';
comment on column jobs.payload is 'The client''s JSON, to the byte; hence json, which keeps the text, and not jsonb.';
comment on column jobs.created_at is 'When the submission was accepted, by the replica''s clock.';

create table job_queue (
    tenant_id uuid not null,
    job_id uuid not null,
    queue text collate "C" not null,
    priority smallint not null,
    run_at timestamptz not null,
    max_attempts integer not null,
    attempt integer not null default 0,
    version integer not null default 1,
    constraint job_queue_pkey primary key (tenant_id, job_id),
    constraint job_queue_queue_check check (octet_length(queue) between 1 and 128 and queue !~ '[^!-~]'),
    constraint job_queue_priority_check check (priority between 1 and 4),
    constraint job_queue_max_attempts_check check (max_attempts between 1 and 1000),
    constraint job_queue_attempt_check check (attempt >= 0),
    constraint job_queue_version_check check (version >= 1)
);

comment on table job_queue is 'A row is a job that waits. No foreign key to jobs: one statement writes both.';
comment on column job_queue.priority is '1 is the most urgent, 4 the least.';
comment on column job_queue.run_at is 'Not to be started before.';
comment on column job_queue.max_attempts is 'How many times it may be started in all.';
comment on column job_queue.attempt is 'How many times it has been started.';
comment on column job_queue.version is 'Grows by one with each change; survives claim and requeue.';
