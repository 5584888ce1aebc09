create function hapax.heartbeat(
    p_tenant_id uuid,
    p_claim_ids uuid [],
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns table (
    claim_id uuid,
    expires_at timestamptz,
    lease_seconds integer,
    job_ids uuid [],
    cancel_requested_job_ids uuid []
)
language plpgsql
-- As in hapax.settle.
set plan_cache_mode = force_generic_plan
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_row_ids tid [];
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    -- Each look-up is a query of its own. In a join, a plan that was made for a small table would read all claims of the tenant.
    v_row_ids := array(
        select found.row_id
        from (select id from unnest(p_claim_ids) as wanted (id) order by id) as wanted
        cross join lateral (
            select ctid as row_id
            from hapax.claims
            where tenant_id = p_tenant_id and claims.id = wanted.id
            offset 0
            for update
        ) as found
    );
    -- A statement of its own, so that its snapshot includes a reclaim or a release that the lock waited for. By ctid, which is
    -- safe because a locked row keeps its ctid.
    return query
    with extended as (
        update hapax.claims
        set expires_at = greatest(claims.expires_at, v_now + make_interval(secs => claims.lease_seconds))
        where (tenant_id = p_tenant_id) is true and ctid = any(v_row_ids)
            and exists (
                select
                from hapax.job_leases
                where job_leases.tenant_id = p_tenant_id and job_leases.claim_id between claims.id and claims.id
                order by job_leases.claim_id
                offset 0
            )
        returning claims.id, claims.expires_at, claims.lease_seconds
    )
    select extended.id, extended.expires_at, extended.lease_seconds, held.job_ids, held.cancel_requested_job_ids
    from extended
    cross join lateral (
        select
            array_agg(job_id) as job_ids,
            coalesce(array_agg(job_id) filter (where cancel_requested_at is not null), '{}') as cancel_requested_job_ids
        from (
            select job_id, cancel_requested_at
            from hapax.job_leases
            where tenant_id = p_tenant_id and claim_id between extended.id and extended.id
            order by claim_id
            offset 0
        ) as lease
    ) as held;
end
$$;

comment on function hapax.heartbeat is 'Extends claims by their lease_seconds from now. A row for each claim that holds a job: which jobs, and which of them should stop. One updated row for each claim, however many jobs it holds.';
