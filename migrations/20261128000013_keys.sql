create function hapax.insert_key(
    p_tenant_id uuid,
    p_route text,
    p_key text,
    p_fingerprint bytea,
    p_request_id text,
    p_created_at timestamptz,
    p_time_to_live_seconds double precision,
    p_effect text,
    p_job_id uuid,
    p_job_version integer,
    p_body bytea
) returns timestamptz
language plpgsql
as $$
declare
    v_expires_at timestamptz;
begin
    insert into hapax.idempotency_keys (
        tenant_id, route, key, fingerprint, request_id, effect, job_id, job_version, body, created_at, expires_at,
        time_to_live_seconds
    )
    values (
        p_tenant_id, p_route, p_key, p_fingerprint, p_request_id, p_effect, p_job_id, p_job_version, p_body,
        p_created_at, clock_timestamp() + make_interval(secs => p_time_to_live_seconds), ceil(p_time_to_live_seconds)
    )
    on conflict (tenant_id, route, key) do nothing
    returning expires_at into v_expires_at;
    return v_expires_at;
end
$$;

comment on function hapax.insert_key is 'Inserts an idempotency key with its answer. Returns when it expires, or null if the key is taken, even if only by an expired row.';

create function hapax.key_kept_until(
    p_tenant_id uuid,
    p_job_id uuid,
    p_expires_at timestamptz,
    p_time_to_live_seconds integer
) returns timestamptz
language plpgsql
stable
as $$
begin
    return greatest(p_expires_at, (
        select coalesce(finished_at, clock_timestamp()) + make_interval(secs => p_time_to_live_seconds)
        from hapax.job_states
        where tenant_id = p_tenant_id and job_id = p_job_id
    ));
end
$$;

comment on function hapax.key_kept_until is 'The one rule for the end of a key: not before expires_at, and not before its job has been over for the time to live of the key. A job that was deleted keeps no key.';

create function hapax.expire_key(
    p_tenant_id uuid,
    p_route text,
    p_key text,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns void
language plpgsql
as $$
declare
    v_key record;
    v_kept_until timestamptz;
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    select job_id, expires_at, time_to_live_seconds
    into v_key
    from hapax.idempotency_keys
    where tenant_id = p_tenant_id and route = p_route and key = p_key and expires_at <= clock_timestamp()
    for update;
    if not found then
        return;
    end if;
    v_kept_until := hapax.key_kept_until(p_tenant_id, v_key.job_id, v_key.expires_at, v_key.time_to_live_seconds);
    if v_kept_until <= clock_timestamp() then
        delete from hapax.idempotency_keys
        where tenant_id = p_tenant_id and route = p_route and key = p_key;
    else
        update hapax.idempotency_keys
        set expires_at = v_kept_until
        where tenant_id = p_tenant_id and route = p_route and key = p_key;
    end if;
end
$$;

comment on function hapax.expire_key is 'If expires_at of a key has passed: deletes the key, or moves expires_at if the key is still kept for its job.';

create function hapax.purge_keys(p_limit integer) returns table (deleted bigint, kept bigint)
language plpgsql
as $$
declare
    v_now constant timestamptz := clock_timestamp();
begin
    -- For a lock on a whole table.
    perform hapax.set_write_options(1000, false);
    -- By ctid, which is safe because a locked row keeps its ctid. With stale statistics, the planner scans the whole table for
    -- a join by key.
    return query
    with due as materialized (
        select ctid as row_id, tenant_id, job_id, expires_at, time_to_live_seconds
        from hapax.idempotency_keys
        where expires_at <= v_now
        order by expires_at
        limit p_limit
        for update skip locked
    ),
    judged as materialized (
        select row_id, hapax.key_kept_until(tenant_id, job_id, expires_at, time_to_live_seconds) as kept_until
        from due
    ),
    kept_keys as (
        update hapax.idempotency_keys
        set expires_at = judged.kept_until
        from judged
        where idempotency_keys.ctid = judged.row_id and judged.kept_until > v_now
        returning 1
    ),
    deleted_keys as (
        delete from hapax.idempotency_keys
        where ctid = any(array(select row_id from judged where kept_until <= v_now))
        returning 1
    )
    select (select count(*) from deleted_keys), (select count(*) from kept_keys);
end
$$;

comment on function hapax.purge_keys is 'Does what expire_key does for up to p_limit keys of all tenants, the oldest first. Skips keys that another transaction has locked. Waits up to 1 s for a lock on a whole table, and then fails.';
