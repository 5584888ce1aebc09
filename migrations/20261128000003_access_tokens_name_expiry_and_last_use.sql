-- The previous release reads none of these: it still takes a token that has expired, until it is replaced.
alter table access_tokens
    add column name text,
    add column expires_at timestamptz,
    add column last_used_at timestamptz,
    add constraint access_tokens_name_check check (length(name) between 1 and 128 and name !~ '[[:cntrl:]]');

comment on column access_tokens.name is 'What the operator calls the token; null: nothing. Need not be unique.';
comment on column access_tokens.expires_at is 'From when on it is not valid, by this database''s clock; null: no end.';
comment on column access_tokens.last_used_at is 'About when it was last used, some minutes late; null: not yet. Written in batches, and lost if a server is killed.';
