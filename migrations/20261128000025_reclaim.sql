create function hapax.reclaim(p_limit integer) returns table (looked_at bigint, requeued bigint, failed bigint, cancelled bigint)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_tenant_ids uuid [];
    v_long_histories uuid [];
begin
    -- Locks claims, then leases, both without waiting. Both conditions are checked on the locked rows, so a heartbeat or a settle
    -- that came first is respected.
    with due as materialized (
        select tenant_id, id, expires_at
        from hapax.claims
        where check_at <= v_now
        order by check_at
        limit p_limit
        for update skip locked
    ),
    expired as materialized (
        select lease.ctid as row_id, lease.tenant_id, lease.claim_id
        from due
        join hapax.job_leases as lease on lease.tenant_id = due.tenant_id and lease.claim_id = due.id
        where due.expires_at <= v_now
        for update of lease skip locked
    ),
    looked as materialized (
        select
            due.*,
            exists (
                select from hapax.job_leases
                where job_leases.tenant_id = due.tenant_id and job_leases.claim_id = due.id
                    and (job_leases.ctid in (select expired.row_id from expired)) is not true
            ) as still_holds
        from due
    ),
    lost as (
        delete from hapax.job_leases
        where ctid = any(array(select expired.row_id from expired))
        returning *
    ),
    judged as materialized (
        select
            lost.*,
            case
                when cancel_requested_at is not null then 'cancelled'
                when attempt >= max_attempts then 'failed'
            end as final_state
        from lost
    ),
    ended as (
        insert into hapax.job_outcomes (
            tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, version, finished_at,
            claim_id, token, started_at, reported
        )
        select
            tenant_id, job_id, final_state, queue, priority, run_at, max_attempts, attempt, version + 1, v_now,
            claim_id, token, started_at, 'lost'
        from judged
        where final_state is not null
    ),
    freed as (
        delete from hapax.job_uniques
        using judged
        where job_uniques.tenant_id = judged.tenant_id and job_uniques.job_id = judged.job_id
            and judged.final_state is not null
    ),
    back as (
        insert into hapax.job_queue (
            tenant_id, job_id, queue, priority, run_at, max_attempts, attempt, version, created_at, releases
        )
        select tenant_id, job_id, queue, priority, run_at, max_attempts, attempt, version + 1, created_at, releases
        from judged
        where final_state is null
    ),
    recorded as (
        insert into hapax.job_attempts (
            tenant_id, job_id, token, claim_id, attempt, reported, started_at, ended_at
        )
        select tenant_id, job_id, token, claim_id, attempt, 'lost', started_at, v_now
        from judged
    ),
    later as (
        -- Extended: at the new expiry. Leases locked by a settle: in a second. Ended: an hour after the expiry, to forget it.
        update hapax.claims
        set check_at = case
            when looked.expires_at > v_now then looked.expires_at
            when looked.still_holds then v_now + interval '1 second'
            else looked.expires_at + interval '1 hour'
        end
        from looked
        where claims.tenant_id = looked.tenant_id and claims.id = looked.id
            and (looked.still_holds or looked.expires_at > v_now - interval '1 hour')
    ),
    forgotten as (
        delete from hapax.claims
        using looked
        where claims.tenant_id = looked.tenant_id and claims.id = looked.id
            and not looked.still_holds and looked.expires_at <= v_now - interval '1 hour'
    )
    select
        array_agg(tenant_id) filter (where token > 100),
        array_agg(job_id) filter (where token > 100),
        (select count(*) from due),
        count(*) filter (where final_state is null),
        count(*) filter (where final_state = 'failed'),
        count(*) filter (where final_state = 'cancelled')
    into v_tenant_ids, v_long_histories, looked_at, requeued, failed, cancelled
    from judged;
    return next;
    if v_long_histories is not null then
        perform hapax.trim_attempts(history.tenant_id, array_agg(history.job_id))
        from unnest(v_tenant_ids, v_long_histories) as history (tenant_id, job_id)
        group by history.tenant_id;
    end if;
end
$$;

comment on function hapax.reclaim is 'Looks at up to p_limit claims of all tenants that are due, and takes the jobs of those that have expired: back into the queue, or to the outcomes if no attempt is left or a cancellation was requested. Never waits for a lock.';
