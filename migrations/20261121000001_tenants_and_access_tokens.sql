create table tenants (
    id uuid not null,
    name text collate "C" not null,
    created_at timestamptz not null default now(),
    constraint tenants_pkey primary key (id),
    constraint tenants_name_key unique (name),
    constraint tenants_name_check check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$')
);

comment on table tenants is 'Whom everything else belongs to. No answer shows one tenant another''s rows.';

create table access_tokens (
    id uuid not null,
    tenant_id uuid not null,
    digest bytea not null,
    scopes text [] collate "C" not null,
    created_at timestamptz not null default now(),
    revoked_at timestamptz,
    constraint access_tokens_pkey primary key (id),
    constraint access_tokens_digest_key unique (digest),
    constraint access_tokens_tenant_id_fkey foreign key (tenant_id) references tenants (id),
    constraint access_tokens_digest_check check (octet_length(digest) = 32),
    constraint access_tokens_scopes_check check (
        cardinality(scopes) > 0
        and array_position(scopes, null) is null
        and scopes <@ array['submit', 'work', 'read', 'admin']
    )
);

comment on table access_tokens is 'Who may call. A token itself is shown once, when it is made, and never stored.';
comment on column access_tokens.digest is 'SHA-256 of the token.';
comment on column access_tokens.scopes is 'What the token permits.';
comment on column access_tokens.revoked_at is 'When it ceased to be valid; null while it is. Replicas may honour it for access.cache_life longer.';
