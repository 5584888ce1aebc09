-- Locks the rows of what waits, and nothing that a submission needs.
update job_queue
set created_at = jobs.created_at
from jobs
where jobs.tenant_id = job_queue.tenant_id and jobs.id = job_queue.job_id;

-- Submissions go on meanwhile.
alter table jobs validate constraint jobs_deleted_check;
alter table jobs validate constraint jobs_unique_by_check;
