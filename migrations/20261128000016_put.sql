create function hapax.put(
    p_tenant_id uuid,
    p_job_id uuid,
    p_created_at timestamptz,
    p_type text,
    p_queue text,
    p_priority smallint,
    p_run_at timestamptz,
    p_max_attempts integer,
    p_payload text,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns boolean
language plpgsql
as $$
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    insert into hapax.jobs (tenant_id, id, type, queue, priority, run_at, max_attempts, payload, named, created_at)
    values (
        p_tenant_id, p_job_id, p_type, p_queue, p_priority, p_run_at, p_max_attempts, p_payload::json, true, p_created_at
    )
    on conflict do nothing;
    if not found then
        return false;
    end if;
    insert into hapax.job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at)
    values (
        p_tenant_id, p_job_id, coalesce(p_queue, 'default'), coalesce(p_priority, 2::smallint),
        coalesce(p_run_at, p_created_at), coalesce(p_max_attempts, 25), p_created_at
    );
    return true;
end
$$;

comment on function hapax.put is 'Inserts a job under an id that the client chose, and its place in the queue. Returns false if the id is taken.';
