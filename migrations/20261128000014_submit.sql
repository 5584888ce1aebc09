create function hapax.submit(
    p_tenant_id uuid,
    p_route text,
    p_key text,
    p_fingerprint bytea,
    p_request_id text,
    p_created_at timestamptz,
    p_time_to_live_seconds double precision,
    p_body bytea,
    p_job_id uuid,
    p_type text,
    p_queue text,
    p_priority smallint,
    p_run_at timestamptz,
    p_max_attempts integer,
    p_unique_by text [],
    p_payload text,
    p_content_digest bytea default null,
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns timestamptz
language plpgsql
as $$
declare
    v_expires_at timestamptz;
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);
    v_expires_at := hapax.insert_key(
        p_tenant_id, p_route, p_key, p_fingerprint, p_request_id, p_created_at, p_time_to_live_seconds,
        'created', p_job_id, 1, p_body
    );
    if v_expires_at is null then
        return null;
    end if;

    -- The job is there if this is the second attempt of a submission whose first commit was not acknowledged and whose key
    -- has expired since. It is left as it is, wherever it is now.
    insert into hapax.jobs (
        tenant_id, id, type, queue, priority, run_at, max_attempts, unique_by, payload, created_at
    )
    values (
        p_tenant_id, p_job_id, p_type, p_queue, p_priority, p_run_at, p_max_attempts, p_unique_by, p_payload::json,
        p_created_at
    )
    on conflict do nothing;
    if found then
        insert into hapax.job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at)
        values (
            p_tenant_id, p_job_id, coalesce(p_queue, 'default'), coalesce(p_priority, 2::smallint),
            coalesce(p_run_at, p_created_at), coalesce(p_max_attempts, 25), p_created_at
        );
        if p_content_digest is not null then
            insert into hapax.job_uniques (tenant_id, digest, job_id)
            values (p_tenant_id, p_content_digest, p_job_id);
        end if;
    end if;
    return v_expires_at;
end
$$;

comment on function hapax.submit is 'Inserts key, job and its place in the queue, all or none. Returns when the key expires, or null if the key is taken. Violates job_uniques_pkey if an active job has the content.';

create function hapax.submit_many(
    p_tenant_ids uuid [],
    p_route text,
    p_keys text [],
    p_fingerprints bytea [],
    p_request_ids text [],
    p_created_ats timestamptz [],
    p_times_to_live_seconds double precision [],
    p_bodies bytea [],
    p_job_ids uuid [],
    p_types text [],
    p_queues text [],
    p_priorities smallint [],
    p_run_ats timestamptz [],
    p_max_attempts integer [],
    p_payloads text [],
    p_lock_timeout_ms integer default null,
    p_insist_on_durability boolean default false
) returns table (submitted_job_id uuid, key_expires_at timestamptz)
language plpgsql
as $$
begin
    perform hapax.set_write_options(p_lock_timeout_ms, p_insist_on_durability);

    -- Every batch inserts keys in the same order; otherwise two batches could wait for each other. The rows of the later
    -- inserts are found by a hashed subplan and not by a join: the planner does not know how many rows an insert returns,
    -- and would compare each with each.
    return query
    with submission as materialized (
        select *
        from unnest(
            p_tenant_ids, p_keys, p_fingerprints, p_request_ids, p_created_ats, p_times_to_live_seconds, p_bodies,
            p_job_ids, p_types, p_queues, p_priorities, p_run_ats, p_max_attempts, p_payloads
        ) as submission (
            tenant_id, key, fingerprint, request_id, created_at, time_to_live_seconds, body,
            job_id, type, queue, priority, run_at, max_attempts, payload
        )
    ),
    new_key as (
        insert into hapax.idempotency_keys (
            tenant_id, route, key, fingerprint, request_id, effect, job_id, job_version, body, created_at, expires_at,
            time_to_live_seconds
        )
        select
            tenant_id, p_route, key, fingerprint, request_id, 'created', job_id, 1, body, created_at,
            clock_timestamp() + make_interval(secs => time_to_live_seconds), ceil(time_to_live_seconds)
        from submission
        order by tenant_id, key collate "C"
        on conflict (tenant_id, route, key) do nothing
        returning job_id, expires_at
    ),
    new_job as (
        insert into hapax.jobs (tenant_id, id, type, queue, priority, run_at, max_attempts, payload, created_at)
        select tenant_id, job_id, type, queue, priority, run_at, max_attempts, payload::json, created_at
        from submission
        where (job_id in (select new_key.job_id from new_key)) is true
        on conflict do nothing
        returning id
    ),
    new_in_queue as (
        insert into hapax.job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at)
        select
            tenant_id, job_id, coalesce(queue, 'default'), coalesce(priority, 2::smallint), coalesce(run_at, created_at),
            coalesce(max_attempts, 25), created_at
        from submission
        where (job_id in (select new_job.id from new_job)) is true
    )
    select new_key.job_id, new_key.expires_at
    from new_key;
end
$$;

comment on function hapax.submit_many is 'Does what submit does for many submissions, none of which is unique by content. Returns those that were inserted. Of two with the same key, only the first is inserted.';
