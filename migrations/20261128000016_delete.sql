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
    v_deleted boolean;
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    update hapax.jobs
    set payload = null, deleted_at = v_now
    where tenant_id = p_tenant_id and id = p_job_id and deleted_at is null;
    v_deleted := found;
    -- In the order in which a job moves: the second statement sees what was moved while the first one waited.
    delete from hapax.job_queue
    where tenant_id = p_tenant_id and job_id = p_job_id;
    delete from hapax.job_outcomes
    where tenant_id = p_tenant_id and job_id = p_job_id;
    delete from hapax.job_uniques
    where tenant_id = p_tenant_id and job_id = p_job_id;
    return v_deleted;
end
$$;

comment on function hapax.delete is 'Removes the payload of a job, and the job from wherever it is. Returns whether the job was there and not yet deleted.';
