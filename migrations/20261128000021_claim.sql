create function hapax.claim(
    p_tenant_id uuid,
    p_queues text [],
    p_claim_ids uuid [],
    p_fingerprints bytea [],
    p_workers text [],
    p_max_jobs integer [],
    p_lease_seconds integer [],
    p_starts timestamptz [] default null,
    p_payload_bytes integer default null,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns table (
    claim_id uuid,
    verdict text,
    expires_at timestamptz,
    job_id uuid,
    token integer,
    queue text,
    priority smallint,
    run_at timestamptz,
    attempt integer,
    max_attempts integer,
    created_at timestamptz,
    type text,
    payload json
)
language plpgsql
-- As in hapax.settle.
set plan_cache_mode = force_generic_plan
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_queue_count constant integer := cardinality(p_queues);
    v_first_queue constant integer := abs(hashtext(p_claim_ids[1]::text) % cardinality(p_queues));
    v_now timestamptz;
    v_new uuid [];
    v_wanted integer;
    v_share integer;
    v_queue integer;
    v_limit integer;
    v_exhausted boolean [];
    v_starts timestamptz [] := p_starts;
    v_more hapax.job_queue [];
    v_taken hapax.job_queue [] := array[]::hapax.job_queue [];
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    -- Copies of a claim, and its release, come one after the other. A lock instead of a row, so that a claim that finds nothing
    -- writes nothing. In one order, so that two calls cannot wait for each other.
    perform pg_advisory_xact_lock(locks.id)
    from (
        select distinct hashtextextended(p_tenant_id::text || wanted.id::text, 0) as id
        from unnest(p_claim_ids) as wanted (id)
        order by 1
    ) as locks;

    -- Each look-up is a query of its own ("offset 0"). In a join, a plan that was made for a small table would read all claims
    -- of the tenant.
    v_new := array(
        select wanted.id
        from unnest(p_claim_ids) with ordinality as wanted (id, place)
        where not exists (
            select
            from hapax.claims
            where tenant_id = p_tenant_id and claims.id = wanted.id
            offset 0
        )
        order by wanted.place
    );
    if cardinality(v_new) < cardinality(p_claim_ids) then
        return query
        select
            claims.id,
            case
                when claims.fingerprint <> wanted.fingerprint then 'other'
                when lease.job_id is null then 'ended'
                else 'repeated'
            end,
            claims.expires_at, lease.job_id, lease.token, lease.queue, lease.priority, lease.run_at, lease.attempt,
            lease.max_attempts, lease.created_at, job.type, job.payload
        from unnest(p_claim_ids, p_fingerprints) as wanted (id, fingerprint)
        cross join lateral (
            select *
            from hapax.claims
            where tenant_id = p_tenant_id and id = wanted.id
            offset 0
        ) as claims
        left join lateral (
            select *
            from hapax.job_leases
            where tenant_id = p_tenant_id and claim_id between claims.id and claims.id
                and claims.fingerprint = wanted.fingerprint
            order by claim_id
            offset 0
        ) as lease on true
        left join lateral (
            select type, payload
            from hapax.jobs
            where tenant_id = p_tenant_id and id = lease.job_id
            offset 0
        ) as job on true
        order by claims.id, lease.priority, lease.run_at, lease.job_id;
    end if;

    v_wanted := (
        select sum(wanted.max_jobs)
        from unnest(p_claim_ids, p_max_jobs) as wanted (id, max_jobs)
        where wanted.id = any(v_new)
    );
    v_share := (v_wanted + v_queue_count - 1) / v_queue_count;
    v_now := clock_timestamp();
    loop
        v_exhausted := array_fill(false, array[v_queue_count]);
        -- With several queues, first an equal share of each, beginning with another one for each claim, then what is missing.
        for v_round in 0..(case when v_queue_count = 1 then 0 else 2 * v_queue_count - 1 end) loop
            exit when (v_wanted > 0) is not true;
            v_queue := (v_first_queue + v_round) % v_queue_count + 1;
            continue when v_exhausted[v_queue];
            v_limit := case when v_round < v_queue_count then least(v_share, v_wanted) else v_wanted end;
            with taken as (
                -- By ctid, which is safe because a locked row keeps its ctid. No index serves a condition with "is true": a
                -- plan that was made for an empty queue would otherwise read all jobs of the tenant and compare their ctids.
                delete from hapax.job_queue
                where (tenant_id = p_tenant_id) is true and ctid = any(array(
                    select found.row_id
                    from unnest(array[1, 2, 3, 4]::smallint []) as level (priority)
                    cross join lateral (
                        select waiting.ctid as row_id
                        from hapax.job_queue as waiting
                        where waiting.tenant_id = p_tenant_id and waiting.queue = p_queues[v_queue]
                            and waiting.priority = level.priority and waiting.run_at <= v_now
                            and waiting.run_at >= coalesce(v_starts[(v_queue - 1) * 4 + level.priority], '-infinity')
                        order by waiting.run_at, waiting.job_id
                        limit v_limit
                        for update skip locked
                    ) as found
                    limit v_limit
                ))
                returning job_queue.*
            )
            select coalesce(array_agg(taken::hapax.job_queue order by priority, run_at, job_id), array[]::hapax.job_queue [])
            into v_more
            from taken;
            v_exhausted[v_queue] := cardinality(v_more) < v_limit;
            v_taken := v_taken || v_more;
            v_wanted := v_wanted - cardinality(v_more);
        end loop;
        -- A job before the marks is better than none.
        exit when v_starts is null or cardinality(v_taken) > 0;
        v_starts := null;
    end loop;
    if cardinality(v_taken) = 0 then
        return;
    end if;

    return query
    with slot as (
        select wanted.id as claim_id, row_number() over (order by wanted.place, slot_of_claim) as nth
        from unnest(p_claim_ids, p_max_jobs) with ordinality as wanted (id, max_jobs, place)
        cross join lateral generate_series(1, wanted.max_jobs) as slot_of_claim
        where wanted.id = any(v_new)
    ),
    found as materialized (
        select slot.claim_id, job.*, stored.type, stored.payload, stored.bytes
        from unnest(v_taken) with ordinality as job (
            tenant_id, job_id, queue, priority, run_at, max_attempts, attempt, version, created_at, releases, nth
        )
        join slot on slot.nth = job.nth
        cross join lateral (
            select type, payload, octet_length(payload::text) as bytes
            from hapax.jobs
            where tenant_id = p_tenant_id and id = job.job_id
            offset 0
        ) as stored
    ),
    -- Computed only if the payloads are too large together.
    sized as (
        select
            nth,
            sum(bytes) over (partition by claim_id order by nth) - bytes as bytes_before,
            sum(bytes) over (order by nth) - bytes as bytes_before_in_all
        from found
    ),
    judged as materialized (
        select
            found.*,
            case
                when (select sum(bytes) from found) > p_payload_bytes then nth in (
                    select sized.nth
                    from sized
                    where bytes_before < p_payload_bytes and bytes_before_in_all < 8::bigint * p_payload_bytes
                )
                else true
            end as fits
        from found
    ),
    leased as (
        select *
        from judged
        where fits
    ),
    -- Back as they were.
    left_over as (
        insert into hapax.job_queue (
            tenant_id, job_id, queue, priority, run_at, max_attempts, attempt, version, created_at, releases
        )
        select
            p_tenant_id, job_id, queue, priority, run_at, max_attempts, attempt, version, created_at, releases
        from judged
        where not fits
    ),
    new_claim as (
        insert into hapax.claims (
            tenant_id, id, fingerprint, worker, queues, lease_seconds, created_at, expires_at, check_at
        )
        select
            p_tenant_id, wanted.id, wanted.fingerprint, wanted.worker, p_queues, wanted.lease_seconds, v_now,
            v_now + make_interval(secs => wanted.lease_seconds), v_now + make_interval(secs => wanted.lease_seconds)
        from unnest(p_claim_ids, p_fingerprints, p_workers, p_lease_seconds)
            as wanted (id, fingerprint, worker, lease_seconds)
        where wanted.id in (select leased.claim_id from leased)
        returning claims.id, claims.expires_at
    ),
    new_lease as (
        insert into hapax.job_leases (
            tenant_id, job_id, claim_id, token, queue, priority, run_at, max_attempts, attempt, version, created_at,
            releases, started_at
        )
        select
            p_tenant_id, job_id, claim_id, version + 1, queue, priority, run_at, max_attempts, attempt + 1, version + 1,
            created_at, releases, v_now
        from leased
    )
    select
        leased.claim_id, 'claimed', new_claim.expires_at, leased.job_id, leased.version + 1, leased.queue,
        leased.priority, leased.run_at, leased.attempt + 1, leased.max_attempts, leased.created_at, leased.type,
        leased.payload
    from leased
    join new_claim on new_claim.id = leased.claim_id
    union all
    select
        found.claim_id, 'again', v_now, null::uuid, null::integer, null::text, null::smallint, null::timestamptz,
        null::integer, null::integer, null::timestamptz, null::text, null::json
    from judged as found
    where not found.fits and (found.claim_id in (select leased.claim_id from leased)) is not true
    group by found.claim_id
    order by 1, 7, 8, 4;
end
$$;

comment on function hapax.claim is 'Claims jobs of some queues, for one or many claims of a tenant. A row for each job. verdict: claimed, or repeated with the jobs that the claim still holds; in a row without a job, other (the id stands for another request) or ended. No row for a claim that found nothing: nothing is stored. p_starts: for each queue and priority, the run_at at which to start reading; if there is no job from there on, all are read. p_payload_bytes: a claim takes no further job once its payloads have this size, and all together none once theirs have eight times this size; a claim that therefore got none has a row without a job and the verdict again.';
