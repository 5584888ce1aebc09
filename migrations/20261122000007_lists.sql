-- While one of these is built, submissions wait: about three seconds for a million rows. Where that is too long, build them
-- before by hand, by the same statements with `create index concurrently`; what is there already is left as it is. (Not
-- done so here: concurrent builds wait for everybody who is in a statement, and a second migration waits in one for the
-- first to end.)

-- Every list is in the order of ids, so each filter has an index that ends in them.
create index if not exists jobs_type_idx on jobs (tenant_id, type, id);
create index if not exists job_queue_queue_idx on job_queue (tenant_id, queue, job_id);
create index if not exists job_outcomes_state_idx on job_outcomes (tenant_id, state, job_id);
create index if not exists job_outcomes_queue_idx on job_outcomes (tenant_id, queue, job_id);

-- Whether a tenant has named jobs is asked for its lists: only the ids that we make are in the order of time.
create index if not exists jobs_named_idx on jobs (tenant_id) where named;
