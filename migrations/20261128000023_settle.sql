create function hapax.retry_delay(p_attempt integer, p_min_seconds double precision, p_max_seconds double precision)
returns interval
language plpgsql
volatile
as $$
begin
    return make_interval(
        secs => least(p_max_seconds, p_min_seconds * 2 ^ least(p_attempt - 1, 30)) * (0.5 + random() / 2)
    );
end
$$;

comment on function hapax.retry_delay is 'Exponential backoff with jitter: twice as long after each attempt, up to the maximum, of which a random half is left out.';

create function hapax.trim_attempts(p_tenant_id uuid, p_job_ids uuid []) returns void
language plpgsql
as $$
begin
    -- By ctid, which is safe because both scans use one snapshot. In a join, a plan that was made for a small table would read
    -- all attempts of the tenant.
    delete from hapax.job_attempts
    where (tenant_id = p_tenant_id) is true and ctid = any(array(
        select surplus.row_id
        from unnest(p_job_ids) as trimmed (job_id)
        cross join lateral (
            select ctid as row_id
            from hapax.job_attempts
            where tenant_id = p_tenant_id and job_attempts.job_id = trimmed.job_id
            order by token desc
            offset 50
        ) as surplus
    ));
end
$$;

comment on function hapax.trim_attempts is 'Deletes all but the newest 50 recorded attempts of these jobs.';

create function hapax.settle(
    p_tenant_id uuid,
    p_claim_ids uuid [],
    p_job_ids uuid [],
    p_outcomes text [],
    p_results json [],
    p_errors json [],
    p_retries boolean [],
    p_retry_in_seconds double precision [],
    p_retry_delay_min_seconds double precision,
    p_retry_delay_max_seconds double precision,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns table (claim_id uuid, job_id uuid, verdict text, state text, run_seconds double precision)
language plpgsql
-- One plan for any number of rows. By default, PostgreSQL would plan many of the statements again in each call, for the lengths
-- of the arrays.
set plan_cache_mode = force_generic_plan
-- A look-up in job_leases is in the order of one of its two indexes. So no plan reads the other one, whatever the statistics say.
set enable_sort = off
-- A plan with a sort now costs so much that PostgreSQL would compile it.
set jit = off
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_row_ids tid [];
    v_claim_ids uuid [];
    v_job_ids uuid [];
    v_states text [];
    v_run_seconds double precision [];
    v_long_histories uuid [];
    v_settled_claim_ids uuid [] := array[]::uuid [];
    v_settled_job_ids uuid [] := array[]::uuid [];
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    loop
        -- Each look-up is a query of its own: in a join, a plan that was made for a small table would read all leases of the
        -- tenant.
        v_row_ids := array(
            select lease.row_id
            from unnest(p_claim_ids, p_job_ids) as reported (claim_id, job_id)
            cross join lateral (
                select ctid as row_id
                from hapax.job_leases
                where tenant_id = p_tenant_id and job_id between reported.job_id and reported.job_id
                    and (claim_id = reported.claim_id) is true
                order by job_id
                offset 0
            ) as lease
        );
        -- Only what this delete returns moves. It locks the leases in the order of their ctids, so two calls for the same jobs
        -- cannot deadlock. The rows are not locked before, so another lease may have taken the place of one.
        with gone as (
            delete from hapax.job_leases
            where (tenant_id = p_tenant_id) is true and ctid = any(v_row_ids)
                and ((claim_id, job_id) in (select claim_id, job_id from unnest(p_claim_ids, p_job_ids) as reported (claim_id, job_id)))
                    is true
            returning *
        ),
        held as (
            select gone.*, reported.outcome, reported.result, reported.error, reported.retry, reported.retry_in_seconds
            from gone
            join unnest(p_claim_ids, p_job_ids, p_outcomes, p_results, p_errors, p_retries, p_retry_in_seconds)
                as reported (claim_id, job_id, outcome, result, error, retry, retry_in_seconds)
                on reported.job_id = gone.job_id and reported.claim_id = gone.claim_id
        ),
        judged as materialized (
            select
                held.*,
                case
                    when outcome in ('succeeded', 'cancelled') then outcome
                    when cancel_requested_at is not null then 'cancelled'
                    when outcome = 'failed' and (not retry or attempt >= max_attempts) then 'failed'
                end as final_state
            from held
        ),
        ended as (
            insert into hapax.job_outcomes (
                tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, version, finished_at,
                claim_id, token, started_at, reported, result, error
            )
            select
                p_tenant_id, job_id, final_state, queue, priority, run_at, max_attempts, attempt, version + 1, v_now,
                claim_id, token, started_at, outcome, result, error
            from judged
            where final_state is not null
        ),
        freed as (
            -- By ctid, which is safe because no row of job_uniques is ever updated. Each look-up is a query of its own.
            delete from hapax.job_uniques
            where (tenant_id = p_tenant_id) is true and ctid = any(array(
                select content.row_id
                from judged
                cross join lateral (
                    select ctid as row_id
                    from hapax.job_uniques
                    where tenant_id = p_tenant_id and job_uniques.job_id = judged.job_id
                    offset 0
                ) as content
                where judged.final_state is not null
            ))
        ),
        requeued as (
            insert into hapax.job_queue (
                tenant_id, job_id, queue, priority, run_at, max_attempts, attempt, version, created_at, releases
            )
            select
                p_tenant_id, job_id, queue, priority,
                v_now + case
                    when retry_in_seconds is not null then make_interval(secs => retry_in_seconds)
                    when outcome = 'released' then make_interval(secs => least(60, 2 ^ least(releases, 6)))
                    else hapax.retry_delay(attempt, p_retry_delay_min_seconds, p_retry_delay_max_seconds)
                end,
                max_attempts, attempt - (outcome = 'released')::integer, version + 1, created_at,
                least(releases + (outcome = 'released')::integer, 32767)
            from judged
            where final_state is null
        ),
        recorded as (
            insert into hapax.job_attempts (
                tenant_id, job_id, token, claim_id, attempt, reported, error, started_at, ended_at
            )
            select p_tenant_id, job_id, token, claim_id, attempt, outcome, error, started_at, v_now
            from judged
            where final_state is null
        )
        select
            array_agg(claim_id), array_agg(job_id), array_agg(coalesce(final_state, 'queued')),
            array_agg(extract(epoch from v_now - started_at)::double precision),
            -- Each lease takes two versions or more, so the 51st has a token above 100.
            array_agg(job_id) filter (where final_state is null and token > 100)
        into v_claim_ids, v_job_ids, v_states, v_run_seconds, v_long_histories
        from judged;
        if v_long_histories is not null then
            perform hapax.trim_attempts(p_tenant_id, v_long_histories);
        end if;
        return query
        select settled.claim_id, settled.job_id, 'recorded', settled.state, settled.run_seconds
        from unnest(v_claim_ids, v_job_ids, v_states, v_run_seconds) as settled (claim_id, job_id, state, run_seconds);
        v_settled_claim_ids := v_settled_claim_ids || v_claim_ids;
        v_settled_job_ids := v_settled_job_ids || v_job_ids;
        -- A cancellation in between gave its lease another ctid: look again.
        exit when coalesce(cardinality(v_job_ids), 0) = cardinality(v_row_ids);
    end loop;

    if cardinality(v_settled_job_ids) < cardinality(p_job_ids) then
        -- Statements of their own, so that their snapshots include the transactions that the delete waited for.
        return query
        select
            reported.claim_id, reported.job_id,
            case
                when coalesce(outcome.reported, attempt.reported, 'lost') = 'lost' then 'lease-lost'
                when coalesce(outcome.reported, attempt.reported) = reported.outcome then 'already-recorded'
                else 'recorded-otherwise'
            end,
            job.state, null::double precision
        from unnest(p_claim_ids, p_job_ids, p_outcomes) as reported (claim_id, job_id, outcome)
        left join lateral (
            select job_outcomes.reported
            from hapax.job_outcomes
            where tenant_id = p_tenant_id and job_id = reported.job_id and (claim_id = reported.claim_id) is true
            offset 0
        ) as outcome on true
        left join lateral (
            select job_attempts.reported
            from hapax.job_attempts
            where tenant_id = p_tenant_id and job_id = reported.job_id and (claim_id = reported.claim_id) is true
            offset 0
        ) as attempt on true
        left join lateral (
            select state
            from hapax.job_states
            where job_states.tenant_id = p_tenant_id and job_states.job_id = reported.job_id
            offset 0
        ) as job on true
        where not exists (
            select from unnest(v_settled_claim_ids, v_settled_job_ids) as settled (claim_id, job_id)
            where settled.claim_id = reported.claim_id and settled.job_id = reported.job_id
        );
        v_row_ids := array(
            select late.row_id
            from (
                select claim_id, job_id
                from unnest(p_claim_ids, p_job_ids) as reported (claim_id, job_id)
                order by job_id
            ) as reported
            cross join lateral (
                select ctid as row_id
                from hapax.job_attempts
                where tenant_id = p_tenant_id and job_id = reported.job_id and (claim_id = reported.claim_id) is true
                    and job_attempts.reported = 'lost' and late_outcome is null
                offset 0
                for update
            ) as late
        );
        update hapax.job_attempts
        set late_outcome = reported.outcome, late_error = reported.error
        from unnest(p_claim_ids, p_job_ids, p_outcomes, p_errors) as reported (claim_id, job_id, outcome, error)
        where (job_attempts.tenant_id = p_tenant_id) is true and job_attempts.ctid = any(v_row_ids)
            and job_attempts.job_id = reported.job_id and job_attempts.claim_id = reported.claim_id;
    end if;
end
$$;

comment on function hapax.settle is 'Records what workers report about the jobs that they hold. A row for each report. verdict: recorded; already-recorded or recorded-otherwise (the claim reported the same, or another outcome, before); lease-lost. state: where the job is now. Null: it does not exist or was deleted. run_seconds: how long the claim held the job, if the report was recorded.';
