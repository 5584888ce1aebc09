create function hapax.cancel(
    p_tenant_id uuid,
    p_job_id uuid,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns boolean
language plpgsql
as $$
declare
    v_job record;
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    delete from hapax.job_queue
    where tenant_id = p_tenant_id and job_id = p_job_id
    returning * into v_job;
    if not found then
        return false;
    end if;
    delete from hapax.job_uniques
    where tenant_id = p_tenant_id and job_id = p_job_id;
    insert into hapax.job_outcomes (
        tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, version, finished_at
    )
    values (
        p_tenant_id, p_job_id, 'cancelled', v_job.queue, v_job.priority, v_job.run_at, v_job.max_attempts,
        v_job.attempt, v_job.version + 1, clock_timestamp()
    );
    return true;
end
$$;

comment on function hapax.cancel is 'Moves a job that waits to the outcomes, and frees its content. Returns whether the job waited.';
