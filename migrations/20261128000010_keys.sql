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
        tenant_id, route, key, fingerprint, request_id, effect, job_id, job_version, body, created_at, expires_at
    )
    values (
        p_tenant_id, p_route, p_key, p_fingerprint, p_request_id, p_effect, p_job_id, p_job_version, p_body,
        p_created_at, clock_timestamp() + make_interval(secs => p_time_to_live_seconds)
    )
    on conflict (tenant_id, route, key) do nothing
    returning expires_at into v_expires_at;
    return v_expires_at;
end
$$;

comment on function hapax.insert_key is 'Inserts an idempotency key with its answer. Returns when it expires, or null if the key is taken, even if only by an expired row.';

create function hapax.delete_expired_key(
    p_tenant_id uuid,
    p_route text,
    p_key text,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns boolean
language plpgsql
as $$
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    delete from hapax.idempotency_keys
    where tenant_id = p_tenant_id and route = p_route and key = p_key and expires_at <= clock_timestamp();
    return found;
end
$$;

comment on function hapax.delete_expired_key is 'Deletes a key if it has expired, as the purger would. Returns whether it did.';
