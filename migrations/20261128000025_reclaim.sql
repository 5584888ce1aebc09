create function hapax.reclaim(p_limit integer) returns table (looked_at bigint, requeued bigint, failed bigint, cancelled bigint)
language plpgsql
-- As in hapax.settle.
set plan_cache_mode = force_generic_plan
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_tenant_ids uuid [];
    v_long_histories uuid [];
begin
    -- For locks on whole tables. The statement waits for no claim, no lease and no content of a job.
    perform hapax.set_write_options(1000, false);
    -- Locks claims, then leases, then the contents of jobs that end, all without waiting. The conditions are checked on the
    -- locked rows, so a heartbeat or a settle that came first is respected.
    with due as materialized (
        select tenant_id, id, expires_at
        from hapax.claims
        where check_at <= v_now
        order by check_at
        limit p_limit
        for update skip locked
    ),
    expired as materialized (
        select
            lease.ctid as row_id, lease.tenant_id, lease.job_id,
            lease.cancel_requested_at is not null or lease.attempt >= lease.max_attempts as ends
        from due
        cross join lateral (
            select ctid, *
            from hapax.job_leases
            where job_leases.tenant_id = due.tenant_id and job_leases.claim_id between due.id and due.id
            order by job_leases.claim_id
            offset 0
            for update skip locked
        ) as lease
        where due.expires_at <= v_now
    ),
    -- No row of job_uniques is ever updated, so each that the statement sees and locks keeps its ctid.
    contents as materialized (
        select expired.row_id as lease_row_id, expired.tenant_id, expired.job_id, locked.row_id
        from expired
        cross join lateral (
            select ctid as row_id
            from hapax.job_uniques
            where tenant_id = expired.tenant_id and job_uniques.job_id = expired.job_id
            offset 0
            for update skip locked
        ) as locked
        where expired.ends
    ),
    -- Without the jobs that end and whose content another transaction has locked: it adopts the job.
    movable as materialized (
        select expired.row_id
        from expired
        where not expired.ends
            or expired.row_id in (select contents.lease_row_id from contents)
            or not exists (
                select
                from hapax.job_uniques
                where tenant_id = expired.tenant_id and job_uniques.job_id = expired.job_id
                offset 0
            )
    ),
    looked as materialized (
        select
            due.*,
            exists (
                select from hapax.job_leases
                where job_leases.tenant_id = due.tenant_id and job_leases.claim_id between due.id and due.id
                    and (job_leases.ctid in (select movable.row_id from movable)) is not true
                order by job_leases.claim_id
                offset 0
            ) as still_holds
        from due
    ),
    lost as (
        delete from hapax.job_leases
        where ctid = any(array(select movable.row_id from movable))
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
        where ctid = any(array(
            select contents.row_id
            from contents
            join judged on judged.tenant_id = contents.tenant_id and judged.job_id = contents.job_id
            where judged.final_state is not null
        ))
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
        -- Extended: at the new expiry. Something was locked, such as a lease by a settle: in a second. Ended: an hour after the
        -- expiry, to forget it.
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

comment on function hapax.reclaim is 'Looks at up to p_limit claims of all tenants that are due, and takes the jobs of those that have expired: back into the queue, or to the outcomes if no attempt is left or a cancellation was requested. Waits for no claim, no lease and no content of a job: it passes over what another transaction has locked, and looks again after a second. Waits up to 1 s for a lock on a whole table, and for a late result of an attempt beyond the newest 50 of a job, and then fails.';
