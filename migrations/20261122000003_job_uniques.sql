create table job_uniques (
    tenant_id uuid not null,
    digest bytea not null,
    job_id uuid not null,
    constraint job_uniques_pkey primary key (tenant_id, digest),
    constraint job_uniques_job_id_key unique (tenant_id, job_id),
    constraint job_uniques_digest_check check (octet_length(digest) = 32)
);

comment on table job_uniques is 'A row is content that is taken: while the job is active, a submission that asks for the same finds it. The statement that ends the job removes the row.';
comment on column job_uniques.digest is 'SHA-256 over type, queue and what stands in the places that unique_by names.';

alter table jobs
    add column unique_by text [] collate "C",
    add constraint jobs_unique_by_check check (cardinality(unique_by) between 1 and 16) not valid;

comment on column jobs.unique_by is 'JSON Pointers to what makes the job unique while it is active; null: nothing does.';
