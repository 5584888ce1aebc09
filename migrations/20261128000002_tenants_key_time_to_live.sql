-- The previous release does not read it and uses its setting for every tenant.
alter table tenants
    add column key_time_to_live_seconds integer,
    add constraint tenants_key_time_to_live_seconds_check check (key_time_to_live_seconds between 1 and 31622400);

comment on column tenants.key_time_to_live_seconds is 'How long the tenant''s new keys live; null: as long as the setting idempotency.time_to_live says. At most 366 days.';
