create function hapax.patch(
    p_tenant_id uuid,
    p_job_id uuid,
    p_version integer,
    p_priority smallint,
    p_run_at timestamptz,
    p_max_attempts integer,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns boolean
language plpgsql
as $$
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    update hapax.job_queue
    set priority = p_priority, run_at = p_run_at, max_attempts = p_max_attempts, version = version + 1
    where tenant_id = p_tenant_id and job_id = p_job_id and version = p_version
        and (p_max_attempts > attempt or p_max_attempts = max_attempts);
    return found;
end
$$;

comment on function hapax.patch is 'Changes a job that waits, if it has version p_version. Not to a max_attempts that leaves it no attempt. Returns whether it did.';

create function hapax.patch_keyed(
    p_tenant_id uuid,
    p_route text,
    p_key text,
    p_fingerprint bytea,
    p_request_id text,
    p_created_at timestamptz,
    p_time_to_live_seconds double precision,
    p_body bytea,
    p_job_id uuid,
    p_version integer,
    p_priority smallint,
    p_run_at timestamptz,
    p_max_attempts integer,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns timestamptz
language plpgsql
as $$
declare
    v_expires_at timestamptz;
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    perform
    from hapax.job_queue
    where tenant_id = p_tenant_id and job_id = p_job_id and version = p_version
        and (p_max_attempts > attempt or p_max_attempts = max_attempts)
    for update;
    if not found then
        return null;
    end if;
    v_expires_at := hapax.insert_key(
        p_tenant_id, p_route, p_key, p_fingerprint, p_request_id, p_created_at, p_time_to_live_seconds,
        'changed', p_job_id, p_version + 1, p_body
    );
    if v_expires_at is not null then
        update hapax.job_queue
        set priority = p_priority, run_at = p_run_at, max_attempts = p_max_attempts, version = p_version + 1
        where tenant_id = p_tenant_id and job_id = p_job_id;
    end if;
    return v_expires_at;
end
$$;

comment on function hapax.patch_keyed is 'Does what patch does and inserts a key, both or neither. Returns when the key expires, or null if the job does not wait with version p_version, would have no attempt left, or the key is taken.';
