begin;
insert into by_hand.idempotency_keys (key, fingerprint, response, created_at, expires_at)
values (gen_random_uuid()::text, '\x9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08', 'RESPONSE', now(), now() + interval '24 hours')
on conflict do nothing
returning key;
insert into by_hand.jobs (id, type, payload, status, created_at)
values (gen_random_uuid(), 'mail.send', 'PAYLOAD', 'queued', now());
commit;
