-- An earlier release that still runs neither names jobs nor deletes them, so its rows fit. The rows that are there are
-- looked through later, by a statement that blocks nobody.
alter table jobs
    add column named boolean not null default false,
    add column deleted_at timestamptz,
    alter column payload drop not null,
    add constraint jobs_deleted_check check ((deleted_at is null) = (payload is not null)) not valid;

comment on table jobs is 'A row is what was asked for, as submitted. Only a deletion changes it, which empties the payload and leaves the row. Null is what the request was silent about.';
comment on column jobs.named is 'Whether the client chose the id, by PUT; else we did, and it holds created_at.';
comment on column jobs.payload is 'The client''s JSON, to the byte; hence json, which keeps the text, and not jsonb. Null once the job is deleted.';
comment on column jobs.deleted_at is 'When the job was deleted, by this database''s clock. The row stays, so that the id is never used again.';
