-- The tables of a typical tutorial: keys and jobs.
create schema by_hand;

create table by_hand.idempotency_keys (
    key text primary key,
    fingerprint bytea not null,
    response bytea not null,
    created_at timestamptz not null,
    expires_at timestamptz not null
);

create index idempotency_keys_expires_at_idx on by_hand.idempotency_keys (expires_at);

create table by_hand.jobs (
    id uuid primary key,
    type text not null,
    payload jsonb not null,
    status text not null,
    created_at timestamptz not null
);
