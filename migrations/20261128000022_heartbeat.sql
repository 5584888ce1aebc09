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
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_claim_ids uuid [];
    v_expires_at timestamptz [];
    v_lease_seconds integer [];
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    with extended as (
        update hapax.claims
        set expires_at = greatest(claims.expires_at, v_now + make_interval(secs => claims.lease_seconds))
        from (select id from unnest(p_claim_ids) as wanted (id) order by id) as wanted
        where claims.tenant_id = p_tenant_id and claims.id = wanted.id
            and exists (
                select from hapax.job_leases
                where job_leases.tenant_id = p_tenant_id and job_leases.claim_id = wanted.id
            )
        returning claims.id, claims.expires_at, claims.lease_seconds
    )
    select array_agg(id), array_agg(expires_at), array_agg(lease_seconds)
    into v_claim_ids, v_expires_at, v_lease_seconds
    from extended;
    -- A statement of its own, so that its snapshot includes a reclaim or a release that the update waited for.
    return query
    select extended.id, extended.expires_at, extended.lease_seconds, held.job_ids, held.cancel_requested_job_ids
    from unnest(v_claim_ids, v_expires_at, v_lease_seconds) as extended (id, expires_at, lease_seconds)
    cross join lateral (
        select
            array_agg(job_id) as job_ids,
            coalesce(array_agg(job_id) filter (where cancel_requested_at is not null), '{}') as cancel_requested_job_ids
        from hapax.job_leases
        where tenant_id = p_tenant_id and claim_id = extended.id
    ) as held
    where held.job_ids is not null;
end
$$;

comment on function hapax.heartbeat is 'Extends claims by their lease_seconds from now. A row for each claim that holds a job: which jobs, and which of them should stop. One updated row for each claim, however many jobs it holds.';
