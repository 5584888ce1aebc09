create function hapax.retry(
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
    p_run_at timestamptz,
    p_content_digest bytea default null,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns timestamptz
language plpgsql
as $$
declare
    v_expires_at timestamptz;
    v_created_at timestamptz;
    v_job record;
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    select *
    into v_job
    from hapax.job_outcomes
    where tenant_id = p_tenant_id and job_id = p_job_id and version = p_version
    for update;
    if not found then
        return null;
    end if;
    v_expires_at := hapax.insert_key(
        p_tenant_id, p_route, p_key, p_fingerprint, p_request_id, p_created_at, p_time_to_live_seconds,
        'changed', p_job_id, p_version + 1, p_body
    );
    if v_expires_at is null then
        return null;
    end if;
    select created_at
    into v_created_at
    from hapax.jobs
    where tenant_id = p_tenant_id and id = p_job_id;
    delete from hapax.job_outcomes
    where tenant_id = p_tenant_id and job_id = p_job_id;
    insert into hapax.job_queue (
        tenant_id, job_id, queue, priority, run_at, max_attempts, attempt, version, created_at
    )
    values (
        p_tenant_id, p_job_id, v_job.queue, v_job.priority, p_run_at, v_job.max_attempts, 0, p_version + 1, v_created_at
    );
    if p_content_digest is not null then
        insert into hapax.job_uniques (tenant_id, digest, job_id)
        values (p_tenant_id, p_content_digest, p_job_id);
    end if;
    if v_job.claim_id is not null then
        -- An attempt whose lease was lost is recorded already.
        insert into hapax.job_attempts (
            tenant_id, job_id, token, claim_id, attempt, reported, error, started_at, ended_at
        )
        values (
            p_tenant_id, p_job_id, v_job.token, v_job.claim_id, v_job.attempt, v_job.reported, v_job.error,
            v_job.started_at, v_job.finished_at
        )
        on conflict (tenant_id, job_id, token) do nothing;
        perform hapax.trim_attempts(p_tenant_id, array[p_job_id]);
    end if;
    return v_expires_at;
end
$$;

comment on function hapax.retry is 'Puts a finished job of version p_version back into the queue with a fresh budget of attempts, and inserts a key, both or neither. Returns when the key expires, or null if the job is not there with this version or the key is taken. Violates job_uniques_pkey if another active job has the content.';
