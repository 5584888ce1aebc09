-- Every list is in the order of ids, so each filter has an index that ends in them.
create index jobs_type_idx on jobs (tenant_id, type, id);
create index job_queue_queue_idx on job_queue (tenant_id, queue, job_id);
create index job_outcomes_state_idx on job_outcomes (tenant_id, state, job_id);
create index job_outcomes_queue_idx on job_outcomes (tenant_id, queue, job_id);

-- The age of what waits, without a look at jobs. The default is for an earlier release that still runs.
alter table job_queue add column created_at timestamptz not null default now();

update job_queue
set created_at = jobs.created_at
from jobs
where jobs.tenant_id = job_queue.tenant_id and jobs.id = job_queue.job_id;

comment on column job_queue.created_at is 'As in jobs: when the submission was accepted.';
