create function hapax.delete(
    p_tenant_id uuid,
    p_job_id uuid,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns boolean
language plpgsql
as $$
declare
    v_now constant timestamptz := clock_timestamp();
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    update hapax.jobs
    set payload = null, deleted_at = v_now
    where tenant_id = p_tenant_id and id = p_job_id and deleted_at is null;
    if not found then
        return false;
    end if;
    -- A job moves between these tables in both directions, and a statement that waited does not see where the job went.
    for v_round in 1..5 loop
        delete from hapax.job_queue
        where tenant_id = p_tenant_id and job_id = p_job_id;
        if not found then
            delete from hapax.job_leases
            where tenant_id = p_tenant_id and job_id = p_job_id;
        end if;
        if not found then
            delete from hapax.job_outcomes
            where tenant_id = p_tenant_id and job_id = p_job_id;
        end if;
        if found then
            delete from hapax.job_uniques
            where tenant_id = p_tenant_id and job_id = p_job_id;
            delete from hapax.job_attempts
            where tenant_id = p_tenant_id and job_id = p_job_id;
            return true;
        end if;
    end loop;
    -- In one snapshot a job is in one place, however often it moves. Without this error, a caller would try again for ever.
    perform
    from hapax.jobs
    where tenant_id = p_tenant_id and id = p_job_id
        and not exists (select from hapax.job_states where tenant_id = p_tenant_id and job_id = p_job_id);
    if found then
        raise exception 'job % of tenant % is not deleted, but in none of job_queue, job_leases and job_outcomes',
            p_job_id, p_tenant_id
            using errcode = 'data_corrupted', hint = 'Run hapax audit.';
    end if;
    raise exception 'the job moved each time it was looked up; try again' using errcode = 'serialization_failure';
end
$$;

comment on function hapax.delete is 'Removes the payload of a job, and the job from wherever it is. A worker that holds it loses the lease. Returns whether the job was there and not yet deleted. Fails with data_corrupted (XX001) if the job exists but is in no table.';
