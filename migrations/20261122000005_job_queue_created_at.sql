-- The age of what waits, without a look at jobs. The default is for an earlier release that still runs, and for the rows
-- that are there until the next migration has come to them.
alter table job_queue add column created_at timestamptz not null default now();

comment on column job_queue.created_at is 'As in jobs: when the submission was accepted.';
