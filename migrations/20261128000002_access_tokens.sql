create table hapax.access_tokens (
    id uuid not null,
    tenant_id uuid not null,
    name text,
    digest bytea not null,
    scopes text [] collate "C" not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    constraint access_tokens_pkey primary key (id),
    constraint access_tokens_digest_key unique (digest),
    constraint access_tokens_tenant_id_fkey foreign key (tenant_id) references hapax.tenants (id),
    constraint access_tokens_name_check check (length(name) between 1 and 128 and name !~ '[[:cntrl:]]'),
    constraint access_tokens_digest_check check (octet_length(digest) = 32),
    constraint access_tokens_scopes_check check (
        cardinality(scopes) > 0
        and array_position(scopes, null) is null
        and scopes <@ array['submit', 'manage', 'work', 'read', 'admin']
    )
);

comment on table hapax.access_tokens is 'Bearer tokens. The token itself is shown once, when it is created, and never stored.';
comment on column hapax.access_tokens.name is 'A label that the operator chose. Null: none. Need not be unique.';
comment on column hapax.access_tokens.digest is 'SHA-256 of the token.';
comment on column hapax.access_tokens.scopes is 'What the token permits. submit: create jobs. manage: change, cancel, delete and retry jobs. work: claim jobs and report outcomes. read: read jobs, queues, claims and keys. admin permits nothing yet.';
comment on column hapax.access_tokens.expires_at is 'The token is invalid from this time on, by the clock of this database. Null: it does not expire.';
comment on column hapax.access_tokens.last_used_at is 'About when the token was last used, some minutes late. Null: never. Written in batches; a killed server loses the last ones.';
comment on column hapax.access_tokens.revoked_at is 'When the token was revoked. Null: it was not. Replicas may accept it for access.cache_life longer.';
