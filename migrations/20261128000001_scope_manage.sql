-- Both are small tables that no submission writes to. The previous release ignores a scope that it does not know.
alter table access_tokens
    drop constraint access_tokens_scopes_check,
    add constraint access_tokens_scopes_check check (
        cardinality(scopes) > 0
        and array_position(scopes, null) is null
        and scopes <@ array['submit', 'manage', 'work', 'read', 'admin']
    );

-- Until now `submit` permitted to change, cancel and delete, too. Existing tokens keep what they permit.
update access_tokens
set scopes = array_append(scopes, 'manage')
where scopes @> array['submit'] and not scopes @> array['manage'];

comment on column access_tokens.scopes is 'What the token permits. submit: create jobs. manage: change, cancel and delete them. read: read jobs, queues and keys. work and admin permit nothing yet.';
