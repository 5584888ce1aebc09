create table hapax.job_uniques (
    tenant_id uuid not null,
    digest bytea not null,
    job_id uuid not null,
    constraint job_uniques_pkey primary key (tenant_id, digest),
    constraint job_uniques_job_id_key unique (tenant_id, job_id),
    constraint job_uniques_digest_check check (octet_length(digest) = 32)
);

comment on table hapax.job_uniques is 'The content of active jobs that are unique by content. A submission with the same content finds the job here. The function that ends the job deletes the row.';
comment on column hapax.job_uniques.digest is 'SHA-256 of type, queue and the members of the payload that unique_by names.';
