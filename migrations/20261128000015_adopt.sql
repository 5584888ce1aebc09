create function hapax.adopt(
    p_tenant_id uuid,
    p_route text,
    p_key text,
    p_fingerprint bytea,
    p_request_id text,
    p_created_at timestamptz,
    p_time_to_live_seconds double precision,
    p_body bytea,
    p_job_id uuid,
    p_job_version integer,
    p_content_digest bytea,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns timestamptz
language plpgsql
as $$
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    -- The lock keeps the job active until the key is committed.
    perform
    from hapax.job_uniques
    where tenant_id = p_tenant_id and digest = p_content_digest and job_id = p_job_id
    for share;
    if not found then
        return null;
    end if;
    return hapax.insert_key(
        p_tenant_id, p_route, p_key, p_fingerprint, p_request_id, p_created_at, p_time_to_live_seconds,
        'adopted', p_job_id, p_job_version, p_body
    );
end
$$;

comment on function hapax.adopt is 'Inserts a key for an active job with the same content. Returns when the key expires, or null if the job no longer has the content or the key is taken.';
