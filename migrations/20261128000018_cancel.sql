create function hapax.cancel(
    p_tenant_id uuid,
    p_job_id uuid,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns boolean
language plpgsql
as $$
declare
    v_now constant timestamptz := clock_timestamp();
    v_job record;
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    -- Each statement has a snapshot of its own, and a job may move between two of them: look again until it is found.
    for v_round in 1..5 loop
        delete from hapax.job_queue
        where tenant_id = p_tenant_id and job_id = p_job_id
        returning * into v_job;
        if found then
            delete from hapax.job_uniques
            where tenant_id = p_tenant_id and job_id = p_job_id;
            insert into hapax.job_outcomes (
                tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, version, finished_at
            )
            values (
                p_tenant_id, p_job_id, 'cancelled', v_job.queue, v_job.priority, v_job.run_at, v_job.max_attempts,
                v_job.attempt, v_job.version + 1, v_now
            );
            return true;
        end if;

        update hapax.job_leases
        set cancel_requested_at = v_now, version = version + 1
        where tenant_id = p_tenant_id and job_id = p_job_id and cancel_requested_at is null;
        if found then
            return true;
        end if;

        perform
        from hapax.job_leases
        where tenant_id = p_tenant_id and job_id = p_job_id;
        if found then
            return false;
        end if;

        perform
        from hapax.job_outcomes
        where tenant_id = p_tenant_id and job_id = p_job_id;
        if found then
            return false;
        end if;

        perform
        from hapax.jobs
        where tenant_id = p_tenant_id and id = p_job_id and deleted_at is null;
        if not found then
            return false;
        end if;
    end loop;
    -- In one snapshot a job is in one place, however often it moves. Without this error, a caller would try again for ever.
    perform
    from hapax.jobs
    where tenant_id = p_tenant_id and id = p_job_id and deleted_at is null
        and not exists (select from hapax.job_states where tenant_id = p_tenant_id and job_id = p_job_id);
    if found then
        raise exception 'job % of tenant % is not deleted, but in none of job_queue, job_leases and job_outcomes',
            p_job_id, p_tenant_id
            using errcode = 'data_corrupted', hint = 'Run hapax audit.';
    end if;
    raise exception 'the job moved each time it was looked up; try again' using errcode = 'serialization_failure';
end
$$;

comment on function hapax.cancel is 'Ends a job that waits, and frees its content. Asks the worker of a running job to stop. Returns whether it changed anything. Fails with data_corrupted (XX001) if the job exists but is in no table.';
