-- For applications whose own tables are in the same database: a job that is submitted in the transaction of a business row,
-- and exists if and only if that transaction commits. Hapax itself does not call these functions.

create function hapax.canonical_json(p_value json) returns text
language plpgsql
immutable
as $$
begin
    case json_typeof(p_value)
        when 'object' then
            return '{' || coalesce((
                select string_agg(to_json(member.key)::text || ':' || hapax.canonical_json(member.value), ',' order by member.key collate "C", place)
                from json_each(p_value) with ordinality as member (key, value, place)
            ), '') || '}';
        when 'array' then
            return '[' || coalesce((
                select string_agg(hapax.canonical_json(element.value), ',' order by place)
                from json_array_elements(p_value) with ordinality as element (value, place)
            ), '') || ']';
        when 'string' then
            return to_json(p_value #>> '{}')::text;
        else
            return btrim(p_value::text, E' \t\n\r');
    end case;
end
$$;

comment on function hapax.canonical_json is 'The same text for every spelling of a JSON value: members sorted by the bytes of their names, no white space, string escapes decoded, numbers as sent. The service computes the same.';

create function hapax.submit_job(
    p_tenant text,
    p_key text,
    p_type text,
    p_payload json,
    p_queue text default 'default',
    p_priority integer default 2,
    p_run_at timestamptz default null,
    p_max_attempts integer default 25,
    p_time_to_live interval default '24 hours'
) returns table (job_id uuid, created boolean)
language plpgsql
as $$
#variable_conflict use_column
declare
    c_time constant text := 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"';
    v_tenant_id uuid;
    v_life interval;
    v_now constant timestamptz := clock_timestamp();
    v_microseconds constant bigint := (extract(epoch from v_now) * 1000000)::bigint;
    v_job_id uuid;
    v_fingerprint bytea;
    v_body text;
    v_existing record;
begin
    p_queue := coalesce(p_queue, 'default');
    p_priority := coalesce(p_priority, 2);
    p_max_attempts := coalesce(p_max_attempts, 25);
    if p_run_at < '0001-01-01T00:00:00Z' or p_run_at >= '10000-01-01T00:00:00Z' then
        raise exception 'p_run_at must be in the years 1 to 9999' using errcode = 'datetime_field_overflow';
    end if;
    select id, coalesce(make_interval(secs => key_time_to_live_seconds), p_time_to_live)
    into v_tenant_id, v_life
    from hapax.tenants
    where name = p_tenant;
    if not found then
        raise exception 'tenant % does not exist', quote_literal(p_tenant) using errcode = 'HX404';
    end if;
    if (v_life between interval '1 second' and interval '366 days') is not true then
        raise exception 'p_time_to_live must be from 1 second to 366 days' using errcode = 'invalid_parameter_value';
    end if;

    -- As in RFC 9562, section 6.2, method 3: the time in microseconds, then random bits.
    v_job_id := (
        lpad(to_hex(v_microseconds / 1000), 12, '0')
        || '7' || lpad(to_hex(v_microseconds % 1000 * 4096 / 1000), 3, '0')
        || substr(replace(gen_random_uuid()::text, '-', ''), 17)
    )::uuid;
    -- The fingerprint of POST /jobs. A member with its default value counts as left out.
    v_fingerprint := sha256(convert_to(
        E'/jobs\n{'
        || case when p_max_attempts <> 25 then '"max_attempts":' || p_max_attempts || ',' else '' end
        || '"payload":' || hapax.canonical_json(p_payload)
        || case when p_priority <> 2 then ',"priority":' || p_priority else '' end
        || case when p_queue <> 'default' then ',"queue":' || to_json(p_queue)::text else '' end
        || coalesce(',"run_at":' || to_json(to_char(p_run_at at time zone 'UTC', c_time))::text, '')
        || ',"type":' || to_json(p_type)::text || '}',
        'UTF8'
    ));
    v_body := format(
        '{"id":"%s","type":%s,"queue":%s,"priority":%s,"run_at":"%s","max_attempts":%s,"state":"queued","attempt":0,"version":1,"created_at":"%s"}' || E'\n',
        v_job_id, to_json(p_type), to_json(p_queue), p_priority,
        to_char(coalesce(p_run_at, v_now) at time zone 'UTC', c_time), p_max_attempts,
        to_char(v_now at time zone 'UTC', c_time)
    );
    -- Another transaction can insert the key, and the key can expire, between two statements.
    for v_attempt in 1..3 loop
        perform hapax.expire_key(v_tenant_id, 'POST /jobs', p_key);
        if hapax.submit(
            p_tenant_id => v_tenant_id,
            p_route => 'POST /jobs',
            p_key => p_key,
            p_fingerprint => v_fingerprint,
            p_request_id => gen_random_uuid()::text,
            p_created_at => v_now,
            p_time_to_live_seconds => extract(epoch from v_life)::double precision,
            p_body => convert_to(v_body, 'UTF8'),
            p_job_id => v_job_id,
            p_type => p_type,
            p_queue => p_queue,
            p_priority => p_priority::smallint,
            p_run_at => p_run_at,
            p_max_attempts => p_max_attempts,
            p_unique_by => null,
            p_payload => p_payload::text
        ) is not null then
            return query select v_job_id, true;
            return;
        end if;

        select fingerprint, idempotency_keys.job_id
        into v_existing
        from hapax.idempotency_keys
        where tenant_id = v_tenant_id and route = 'POST /jobs' and key = p_key and expires_at > clock_timestamp();
        if found then
            if v_existing.fingerprint <> v_fingerprint then
                raise exception 'the idempotency key was used for another request'
                    using errcode = 'HX422', detail = format('It stands for job %s.', v_existing.job_id),
                    hint = 'Use a new key for a new job.';
            end if;
            return query select v_existing.job_id, false;
            return;
        end if;
    end loop;
    raise exception 'the idempotency key changed meanwhile; try again' using errcode = 'serialization_failure';
end
$$;

comment on function hapax.submit_job is 'Submits a job in the transaction of the caller, as POST /jobs does, and under the same keys. Returns the job and whether this call created it. Raises HX422 if the key stands for another request.';
