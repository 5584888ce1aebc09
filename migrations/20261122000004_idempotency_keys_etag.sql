alter table idempotency_keys add column etag text collate "C";

comment on column idempotency_keys.etag is 'ETag of the first answer; null where it had none.';
comment on column idempotency_keys.status is 'HTTP status of the first answer. POST /jobs: 201, or 200 if the same content was found.';
