-- The one place that says in which table a job is, and what that means. A query that looks up one job must name tenant_id
-- and job_id, so that the planner reads the primary key of each table.
create view hapax.job_states as
select
    tenant_id,
    job_id,
    'queued'::text collate "C" as state,
    queue,
    priority,
    run_at,
    max_attempts,
    attempt,
    version,
    null::timestamptz as finished_at
from hapax.job_queue
union all
select
    tenant_id,
    job_id,
    state,
    queue,
    priority,
    run_at,
    max_attempts,
    attempt,
    version,
    finished_at
from hapax.job_outcomes;

comment on view hapax.job_states is 'The current state of each job that was not deleted, whichever table it is in.';
