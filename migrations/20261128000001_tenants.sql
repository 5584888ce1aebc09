-- Everything of Hapax is in the schema `hapax`. The migration tool creates it (sqlx.toml, or `hapax migrate`), because its
-- own table of applied migrations is in there, too. No statement of Hapax relies on search_path.
comment on schema hapax is 'Hapax, an HTTP job service. Change it by its migrations only.';

create table hapax.tenants (
    id uuid not null,
    name text collate "C" not null,
    key_time_to_live_seconds integer,
    created_at timestamptz not null default now(),
    constraint tenants_pkey primary key (id),
    constraint tenants_name_key unique (name),
    constraint tenants_name_check check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    constraint tenants_key_time_to_live_seconds_check check (key_time_to_live_seconds between 1 and 31622400)
);

comment on table hapax.tenants is 'Every other row belongs to a tenant. No tenant sees the rows of another.';
comment on column hapax.tenants.key_time_to_live_seconds is 'How long new idempotency keys of the tenant live. Null: as the setting idempotency.time_to_live says. At most 366 days.';
