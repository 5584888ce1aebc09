//! The invariants that live in the data. Each must hold in every committed snapshot, so each function of the schema that
//! moves a job is one transaction, and a check is one statement.
//!
//! Only `claim_check_time` compares times: after the clock of the database was set back, it may report a claim until the
//! reclaimer has looked at it.

use super::Check;

/// In the order in which `hapax audit` runs them.
pub const CHECKS: [Check; 16] = [
    ONE_PLACE,
    JOB_COPIES,
    ATTEMPT_COUNT,
    LEASE_CLAIM,
    RELEASED_CLAIM,
    CLAIM_CHECK_TIME,
    TOKENS,
    OUTCOMES,
    ATTEMPT_LIMIT,
    ATTEMPTS_WITHOUT_JOB,
    STALE_UNIQUE,
    MISSING_UNIQUE,
    KEY_JOB,
    KEY_VERSION,
    CREATED_ONCE,
    TENANTS,
];

const ONE_PLACE: Check = Check {
    name: "one_place",
    rule: "A job is in exactly one of job_queue, job_leases and job_outcomes; a deleted job is in none.",
    // The numbers say where a job was seen. Their sum is exact, because each table has at most one row of a job.
    violations: "
        select format(
            'tenant %s job %s %s %s', tenant_id, job_id,
            case places & 3 when 0 then 'does not exist and is in' when 1 then 'exists and is in' else 'was deleted and is in' end,
            coalesce(nullif(concat_ws(
                ' and ',
                case when places & 4 > 0 then 'job_queue' end,
                case when places & 8 > 0 then 'job_leases' end,
                case when places & 16 > 0 then 'job_outcomes' end
            ), ''), 'no table')
        )
        from (
            select tenant_id, job_id, sum(place) as places
            from (
                select tenant_id, id as job_id, case when deleted_at is null then 1 else 2 end as place from hapax.jobs
                union all
                select tenant_id, job_id, 4 from hapax.job_queue
                union all
                select tenant_id, job_id, 8 from hapax.job_leases
                union all
                select tenant_id, job_id, 16 from hapax.job_outcomes
            ) as seen
            group by tenant_id, job_id
        ) as job
        where places not in (1 + 4, 1 + 8, 1 + 16, 2)
    ",
    deletes_from: None,
};

const JOB_COPIES: Check = Check {
    name: "job_copies",
    rule: "The queue and the creation time of a job are the same in each table.",
    violations: "
        select format(
            'tenant %s job %s: queue %s, created at %s; in jobs: queue %s, created at %s',
            place.tenant_id, place.job_id, place.queue, coalesce(place.created_at, jobs.created_at),
            coalesce(jobs.queue, 'default'), jobs.created_at
        )
        from (
            select tenant_id, job_id, queue, created_at from hapax.job_queue
            union all
            select tenant_id, job_id, queue, created_at from hapax.job_leases
            union all
            select tenant_id, job_id, queue, null from hapax.job_outcomes
        ) as place
        join hapax.jobs on jobs.tenant_id = place.tenant_id and jobs.id = place.job_id
        where place.queue <> coalesce(jobs.queue, 'default') or place.created_at <> jobs.created_at
    ",
    deletes_from: None,
};

const ATTEMPT_COUNT: Check = Check {
    name: "attempt_count",
    rule: "A job has not more attempts than max_attempts, and a queued one has an attempt left. Each lease raises the \
           version twice.",
    violations: "
        select format(
            'tenant %s job %s: %s, attempt %s of %s at version %s', tenant_id, job_id, state, attempt, max_attempts, version
        )
        from hapax.job_states
        where attempt * 2 > version or attempt > max_attempts - (state = 'queued')::integer
    ",
    deletes_from: None,
};

const LEASE_CLAIM: Check = Check {
    name: "lease_claim",
    rule: "A lease belongs to a claim that exists and that has the job's queue.",
    violations: "
        select format(
            'tenant %s job %s claim %s: %s', lease.tenant_id, lease.job_id, lease.claim_id,
            case
                when claims.id is null then 'the claim does not exist'
                else format('the claim does not have the queue %s', lease.queue)
            end
        )
        from hapax.job_leases as lease
        left join hapax.claims on claims.tenant_id = lease.tenant_id and claims.id = lease.claim_id
        where claims.id is null or claims.queues is not null and lease.queue <> all(claims.queues)
    ",
    deletes_from: None,
};

const RELEASED_CLAIM: Check = Check {
    name: "released_claim",
    rule: "A released claim holds no job.",
    violations: "
        select format('tenant %s claim %s holds job %s', lease.tenant_id, lease.claim_id, lease.job_id)
        from hapax.job_leases as lease
        join hapax.claims on claims.tenant_id = lease.tenant_id and claims.id = lease.claim_id
        where claims.released_at is not null
    ",
    deletes_from: None,
};

const CLAIM_CHECK_TIME: Check = Check {
    name: "claim_check_time",
    // The reclaimer looks again after a second at a lease that another transaction had locked.
    rule: "The reclaimer looks at a claim that holds jobs when it expires, or within a minute.",
    violations: "
        select format(
            'tenant %s claim %s: holds jobs, expires at %s, next look at %s', tenant_id, id, expires_at, check_at
        )
        from hapax.claims
        where check_at > greatest(expires_at, clock_timestamp() + interval '1 minute')
            and exists (
                select from hapax.job_leases
                where job_leases.tenant_id = claims.tenant_id and job_leases.claim_id = claims.id
            )
    ",
    deletes_from: None,
};

const TOKENS: Check = Check {
    name: "tokens",
    // The last lease of a finished job is also among its attempts if it was lost.
    rule: "The token of a lease is greater than that of every earlier lease of the job.",
    violations: "
        select format(
            'tenant %s job %s: attempt with token %s, but %s has %s %s', attempt.tenant_id, attempt.job_id,
            attempt.token, later.place, later.what, later.number
        )
        from hapax.job_attempts as attempt
        join (
            select tenant_id, job_id, 'job_queue' as place, 'version' as what, version as number, null as reported
            from hapax.job_queue
            union all
            select tenant_id, job_id, 'job_leases', 'token', token, null
            from hapax.job_leases
            union all
            select
                tenant_id, job_id, 'job_outcomes', case when token is null then 'version' else 'token' end,
                coalesce(token, version), reported
            from hapax.job_outcomes
        ) as later on later.tenant_id = attempt.tenant_id and later.job_id = attempt.job_id
        where attempt.token > later.number
            or attempt.token = later.number and (later.reported = 'lost' and attempt.reported = 'lost') is not true
        union all
        select format('tenant %s job %s: outcome with token %s at version %s', tenant_id, job_id, token, version)
        from hapax.job_outcomes
        where token >= version
    ",
    deletes_from: None,
};

const OUTCOMES: Check = Check {
    name: "outcomes",
    rule: "The state of a finished job agrees with what its worker reported.",
    violations: "
        select format(
            'tenant %s job %s: %s, reported %s, attempt %s of %s%s%s', tenant_id, job_id, state,
            coalesce(reported, 'nothing'), attempt, max_attempts, case when result is not null then ', with a result' end,
            case when error is not null then ', with an error' end
        )
        from hapax.job_outcomes
        where (
            case state
                when 'succeeded' then reported = 'succeeded'
                when 'failed' then reported = 'failed' or reported = 'lost' and attempt >= max_attempts
                when 'cancelled' then coalesce(reported, '') <> 'succeeded'
            end
        ) is not true
            or result is not null and state <> 'succeeded'
            or error is not null and (reported in ('failed', 'released', 'cancelled')) is not true
        union all
        select format('tenant %s job %s: its lost lease with token %s is not among its attempts', tenant_id, job_id, token)
        from hapax.job_outcomes
        where reported = 'lost'
            and not exists (
                select from hapax.job_attempts
                where job_attempts.tenant_id = job_outcomes.tenant_id and job_attempts.job_id = job_outcomes.job_id
                    and job_attempts.token = job_outcomes.token and job_attempts.claim_id = job_outcomes.claim_id
                    and job_attempts.reported = 'lost'
            )
    ",
    deletes_from: None,
};

const ATTEMPT_LIMIT: Check = Check {
    name: "attempt_limit",
    rule: "A job keeps at most its newest 50 attempts.",
    violations: "
        select format('tenant %s job %s: attempt with token %s is number %s from the end', tenant_id, job_id, token, nth), row_id
        from (
            select
                tenant_id, job_id, token, ctid as row_id,
                row_number() over (partition by tenant_id, job_id order by token desc) as nth
            from hapax.job_attempts
        ) as attempt
        where nth > 50
    ",
    deletes_from: Some("hapax.job_attempts"),
};

const ATTEMPTS_WITHOUT_JOB: Check = Check {
    name: "attempts_without_job",
    rule: "Attempts belong to jobs that exist and were not deleted.",
    violations: "
        select
            format(
                'tenant %s job %s: attempt with token %s, but the job %s', attempt.tenant_id, attempt.job_id, attempt.token,
                case when jobs.id is null then 'does not exist' else 'was deleted' end
            ),
            attempt.ctid as row_id
        from hapax.job_attempts as attempt
        left join hapax.jobs on jobs.tenant_id = attempt.tenant_id and jobs.id = attempt.job_id
        where jobs.id is null or jobs.deleted_at is not null
    ",
    deletes_from: Some("hapax.job_attempts"),
};

const STALE_UNIQUE: Check = Check {
    name: "stale_unique",
    rule: "Only jobs that wait or run, and that are unique by content, hold their content.",
    violations: "
        select
            format(
                'tenant %s job %s holds content, but %s', held.tenant_id, held.job_id,
                case
                    when jobs.id is null then 'does not exist'
                    when jobs.deleted_at is not null then 'was deleted'
                    when jobs.unique_by is null then 'is not unique'
                    else 'neither waits nor runs'
                end
            ),
            held.ctid as row_id
        from hapax.job_uniques as held
        left join hapax.jobs on jobs.tenant_id = held.tenant_id and jobs.id = held.job_id
        left join hapax.job_queue as waiting on waiting.tenant_id = held.tenant_id and waiting.job_id = held.job_id
        left join hapax.job_leases as lease on lease.tenant_id = held.tenant_id and lease.job_id = held.job_id
        where jobs.id is null or jobs.deleted_at is not null or jobs.unique_by is null
            or waiting.job_id is null and lease.job_id is null
    ",
    deletes_from: Some("hapax.job_uniques"),
};

const MISSING_UNIQUE: Check = Check {
    name: "missing_unique",
    rule: "A job that is unique by content holds its content while it waits or runs.",
    violations: "
        select format('tenant %s job %s holds no content', active.tenant_id, active.job_id)
        from (
            select tenant_id, job_id from hapax.job_queue
            union all
            select tenant_id, job_id from hapax.job_leases
        ) as active
        join hapax.jobs on jobs.tenant_id = active.tenant_id and jobs.id = active.job_id
        where jobs.unique_by is not null
            and not exists (
                select from hapax.job_uniques
                where job_uniques.tenant_id = active.tenant_id and job_uniques.job_id = active.job_id
            )
    ",
    deletes_from: None,
};

const KEY_JOB: Check = Check {
    name: "key_job",
    rule: "The job of an idempotency key exists, or was deleted.",
    violations: "
        select format('tenant %s job %s does not exist, but a key of %s %s it', tenant_id, job_id, route, effect)
        from hapax.idempotency_keys
        where not exists (
            select from hapax.jobs
            where jobs.tenant_id = idempotency_keys.tenant_id and jobs.id = idempotency_keys.job_id
        )
    ",
    deletes_from: None,
};

const KEY_VERSION: Check = Check {
    name: "key_version",
    rule: "No answer stored under an idempotency key shows a later version than the job has.",
    violations: "
        select format(
            'tenant %s job %s: version %s, but the answer of a key of %s shows %s', keys.tenant_id, keys.job_id,
            job.version, keys.route, keys.job_version
        )
        from hapax.idempotency_keys as keys
        join (
            select tenant_id, job_id, version from hapax.job_queue
            union all
            select tenant_id, job_id, version from hapax.job_leases
            union all
            select tenant_id, job_id, version from hapax.job_outcomes
        ) as job on job.tenant_id = keys.tenant_id and job.job_id = keys.job_id
        where keys.job_version > job.version
    ",
    deletes_from: None,
};

const CREATED_ONCE: Check = Check {
    name: "created_once",
    rule: "At most one idempotency key created a job.",
    violations: "
        select format('tenant %s job %s was created by %s keys', tenant_id, job_id, count(*))
        from hapax.idempotency_keys
        where effect = 'created'
        group by tenant_id, job_id
        having count(*) > 1
    ",
    deletes_from: None,
};

const TENANTS: Check = Check {
    name: "tenants",
    rule: "The tenant of each job, key and claim exists.",
    violations: "
        select format('tenant %s does not exist, but has %s rows in %s', tenant_id, row_count, place)
        from (
            select tenant_id, 'jobs' as place, count(*) as row_count from hapax.jobs group by tenant_id
            union all
            select tenant_id, 'idempotency_keys', count(*) from hapax.idempotency_keys group by tenant_id
            union all
            select tenant_id, 'claims', count(*) from hapax.claims group by tenant_id
        ) as owned
        where not exists (select from hapax.tenants where tenants.id = owned.tenant_id)
    ",
    deletes_from: None,
};
