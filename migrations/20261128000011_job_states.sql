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
    null::uuid as claim_id,
    null::timestamptz as started_at,
    null::timestamptz as cancel_requested_at,
    null::timestamptz as finished_at,
    null::json as result,
    null::json as error
from hapax.job_queue
union all
select
    tenant_id,
    job_id,
    'running'::text collate "C" as state,
    queue,
    priority,
    run_at,
    max_attempts,
    attempt,
    version,
    claim_id,
    started_at,
    cancel_requested_at,
    null::timestamptz as finished_at,
    null::json as result,
    null::json as error
from hapax.job_leases
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
    claim_id,
    started_at,
    null::timestamptz as cancel_requested_at,
    finished_at,
    result,
    error
from hapax.job_outcomes;

comment on view hapax.job_states is 'The current state of each job that was not deleted, whichever table it is in.';
