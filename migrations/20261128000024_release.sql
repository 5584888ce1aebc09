create function hapax.release(
    p_tenant_id uuid,
    p_claim_id uuid,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns integer
language plpgsql
-- As in hapax.settle.
set plan_cache_mode = force_generic_plan
set enable_sort = off
set jit = off
as $$
declare
    v_now timestamptz;
    v_job_ids uuid [];
    v_count integer;
    v_released integer;
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    -- Waits for a claim in progress. Afterwards no claim with this id can begin.
    perform pg_advisory_xact_lock(hashtextextended(p_tenant_id::text || p_claim_id::text, 0));
    v_now := clock_timestamp();
    insert into hapax.claims (tenant_id, id, created_at, expires_at, released_at, check_at)
    values (p_tenant_id, p_claim_id, v_now, v_now, v_now, v_now + interval '1 hour')
    on conflict (tenant_id, id) do nothing;
    if found then
        return 0;
    end if;
    update hapax.claims
    set released_at = v_now
    where tenant_id = p_tenant_id and id = p_claim_id and released_at is null;
    v_job_ids := array(
        select job_id
        from hapax.job_leases
        where tenant_id = p_tenant_id and claim_id between p_claim_id and p_claim_id
        order by claim_id
    );
    v_count := cardinality(v_job_ids);
    if v_count = 0 then
        return 0;
    end if;
    -- Counts the jobs that moved: a settle at the same time may have been faster.
    select count(*)
    into v_released
    from hapax.settle(
        p_tenant_id => p_tenant_id,
        p_claim_ids => array_fill(p_claim_id, array[v_count]),
        p_job_ids => v_job_ids,
        p_outcomes => array_fill('released'::text, array[v_count]),
        p_results => array_fill(null::json, array[v_count]),
        p_errors => array_fill(null::json, array[v_count]),
        p_retries => array_fill(true, array[v_count]),
        p_retry_in_seconds => array_fill(null::double precision, array[v_count]),
        p_retry_delay_min_seconds => 1,
        p_retry_delay_max_seconds => 1
    )
    where verdict = 'recorded';
    return v_released;
end
$$;

comment on function hapax.release is 'Ends a claim and releases its jobs. An unknown id is remembered for an hour, so that a claim that arrives late is refused. Returns how many jobs were released.';
