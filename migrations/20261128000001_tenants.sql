-- Everything of Hapax is in the schema `hapax`. The migration tool creates it (sqlx.toml, or `hapax migrate`), because its
-- own table of applied migrations is in there, too. No statement of Hapax relies on search_path.
comment on schema hapax is 'Hapax, an HTTP job service. Change it by its migrations only.';

create table hapax.tenants (
    id uuid not null,
    name text collate "C" not null,
    key_time_to_live_seconds integer,
    requests_per_second integer,
    requests_burst integer,
    creations_per_second integer,
    creations_burst integer,
    replays_per_second integer,
    replays_burst integer,
    created_at timestamptz not null default now(),
    constraint tenants_pkey primary key (id),
    constraint tenants_name_key unique (name),
    constraint tenants_name_check check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    constraint tenants_key_time_to_live_seconds_check check (key_time_to_live_seconds between 1 and 31622400),
    constraint tenants_requests_per_second_check check (requests_per_second between 0 and 1000000),
    constraint tenants_requests_burst_check check (requests_burst between 1 and 1000000),
    constraint tenants_requests_check check ((requests_burst is not null) = (coalesce(requests_per_second, 0) > 0)),
    constraint tenants_creations_per_second_check check (creations_per_second between 0 and 1000000),
    constraint tenants_creations_burst_check check (creations_burst between 1 and 1000000),
    constraint tenants_creations_check check ((creations_burst is not null) = (coalesce(creations_per_second, 0) > 0)),
    constraint tenants_replays_per_second_check check (replays_per_second between 0 and 1000000),
    constraint tenants_replays_burst_check check (replays_burst between 1 and 1000000),
    constraint tenants_replays_check check ((replays_burst is not null) = (coalesce(replays_per_second, 0) > 0))
);

comment on table hapax.tenants is 'Every other row belongs to a tenant. No tenant sees the rows of another.';
comment on column hapax.tenants.key_time_to_live_seconds is 'How long new idempotency keys of the tenant live. Null: as the setting idempotency.time_to_live says. At most 366 days.';
comment on column hapax.tenants.requests_per_second is 'Quota of each token of the tenant, per replica. Null: as the settings quota.requests_* say. 0: no limit.';
comment on column hapax.tenants.requests_burst is 'How many requests of a token may come at once. Not null if and only if requests_per_second is above 0.';
comment on column hapax.tenants.creations_per_second is 'Quota of new jobs of the tenant, per replica. Null: as the settings quota.creations_* say. 0: no limit.';
comment on column hapax.tenants.creations_burst is 'How many new jobs may come at once. Not null if and only if creations_per_second is above 0.';
comment on column hapax.tenants.replays_per_second is 'Quota of requests with each idempotency key of the tenant, per replica. Null: as the settings quota.replays_* say. 0: no limit.';
comment on column hapax.tenants.replays_burst is 'How many requests with a key may come at once. Not null if and only if replays_per_second is above 0.';
