use serde_json::{Value, json};

use super::{Answer, Client, Ledger};

/// A claim that got jobs.
pub struct Claim {
    pub id: String,
    pub jobs: Vec<Value>,
}

impl Claim {
    /// The claim in an answer.
    pub fn of(answer: &Answer) -> Self {
        let claim = answer.json();
        let jobs = claim["jobs"].as_array().unwrap_or_else(|| panic!("no jobs in {answer:?}")).clone();
        Self { id: claim["id"].as_str().unwrap().to_owned(), jobs }
    }

    pub fn job_ids(&self) -> Vec<&str> {
        self.jobs.iter().map(|job| job["id"].as_str().unwrap()).collect()
    }

    /// The id of its only job.
    pub fn job(&self) -> &str {
        let ids = self.job_ids();
        assert_eq!(ids.len(), 1, "{:?}", self.jobs);
        ids[0]
    }

    pub fn token(&self) -> i64 {
        self.jobs[0]["token"].as_i64().unwrap()
    }
}

/// The calls of a worker.
impl Client {
    /// A `PUT /claims/{claim_id}`, which a test may change.
    pub fn put_claim(&self, id: &str, body: impl ToString) -> reqwest::RequestBuilder {
        let request = self.request("PUT", &format!("/claims/{id}")).header("content-type", "application/json");
        request.body(body.to_string())
    }

    pub async fn claim(&self, id: &str, body: impl ToString) -> Answer {
        self.send(self.put_claim(id, body)).await
    }

    /// A new claim for one job of the queue `default`, which must get it.
    pub async fn take(&self) -> Claim {
        self.take_up_to(1).await
    }

    /// A new claim that must get at least one job.
    pub async fn take_up_to(&self, max_jobs: u64) -> Claim {
        let answer = self.claim(&new_id(), json!({ "queues": ["default"], "max_jobs": max_jobs })).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        Claim::of(&answer)
    }

    pub async fn heartbeat(&self, claim: &str) -> Answer {
        self.send(self.request("POST", &format!("/claims/{claim}/heartbeat"))).await
    }

    /// Reports results: an array.
    pub async fn report(&self, claim: &str, results: impl ToString) -> Answer {
        let request = self.request("POST", &format!("/claims/{claim}/results"));
        let body = format!(r#"{{"results":{}}}"#, results.to_string());
        self.send(request.header("content-type", "application/json").body(body)).await
    }

    /// Reports one result. Returns its status and the state of the job.
    pub async fn settle(&self, claim: &str, job: &str, outcome: &str) -> (String, Option<String>) {
        self.settle_with(claim, json!({ "job_id": job, "outcome": outcome })).await
    }

    pub async fn settle_with(&self, claim: &str, result: Value) -> (String, Option<String>) {
        let answer = self.report(claim, json!([result])).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let settled = &answer.json()["results"][0];
        assert_eq!(settled["job_id"], result["job_id"]);
        (settled["status"].as_str().unwrap().to_owned(), settled["state"].as_str().map(str::to_owned))
    }

    /// `DELETE /claims/{claim_id}`.
    pub async fn release(&self, claim: &str) -> Answer {
        self.send(self.request("DELETE", &format!("/claims/{claim}"))).await
    }

    /// `POST /jobs/{id}/retry`.
    pub async fn retry(&self, job: &str, key: &str) -> Answer {
        self.send(self.request("POST", &format!("/jobs/{job}/retry")).header("idempotency-key", key)).await
    }

    /// The job as `GET /jobs/{id}` shows it.
    pub async fn job(&self, id: &str) -> Value {
        let answer = self.get(&format!("/jobs/{id}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    pub async fn state(&self, id: &str) -> String {
        self.job(id).await["state"].as_str().unwrap().to_owned()
    }

    pub async fn attempts(&self, job: &str) -> Vec<Value> {
        let answer = self.get(&format!("/jobs/{job}/attempts")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["attempts"].as_array().unwrap().clone()
    }

    /// What was reported about each attempt of a job, the oldest first.
    pub async fn reported(&self, job: &str) -> Vec<String> {
        let reported = |attempt: &Value| attempt["reported"].as_str().unwrap().to_owned();
        self.attempts(job).await.iter().map(reported).collect()
    }
}

/// Set-up and checks for jobs that run.
impl Ledger {
    /// Inserts jobs of tenant `acme` that may run now.
    pub async fn fill_queue(&self, queue: &str, jobs: u32) {
        self.fill_queue_with(queue, 2, "now()", jobs).await;
    }

    pub async fn fill_queue_with(&self, queue: &str, priority: u8, run_at: &str, jobs: u32) {
        let sql = format!(
            "with new as (insert into jobs (tenant_id, id, type, payload, created_at) \
             select tenants.id, gen_random_uuid(), 't', '1', now() from tenants, generate_series(1, {jobs}) \
             where name = 'acme' returning tenant_id, id) \
             insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at) \
             select tenant_id, id, '{queue}', {priority}, {run_at}, 25, now() from new"
        );
        assert_eq!(self.execute(&sql).await, u64::from(jobs));
    }

    /// Makes all queued jobs available now.
    pub async fn make_due(&self) {
        self.execute("update job_queue set run_at = clock_timestamp() - interval '1 second'").await;
    }

    /// Lets a claim expire: moves its expiry and the reclaimer's look at it into the past.
    pub async fn expire_claim(&self, claim: &str) {
        let sql = format!(
            "update claims set expires_at = clock_timestamp() - interval '1 second', \
             check_at = clock_timestamp() - interval '1 second' where id = '{claim}'"
        );
        assert_eq!(self.execute(&sql).await, 1);
    }

    /// Ends the servers' sessions that wait for a lock, as the system does sooner or later if their server has died.
    pub async fn end_sessions_that_wait(&self) -> i64 {
        let sql = "select count(pg_terminate_backend(pid, 60000)) from pg_stat_activity \
                   where datname = current_database() and application_name = 'hapax' and wait_event_type = 'Lock'";
        self.number(sql).await
    }

    /// Asserts that each job that was not deleted is in exactly one place, and no other job is in any.
    pub async fn assert_jobs_in_one_place(&self) {
        let misplaced = "select count(*) from jobs full join \
            (select tenant_id, job_id, count(*) as places from job_states group by 1, 2) as placed \
            on placed.tenant_id = jobs.tenant_id and placed.job_id = jobs.id \
            where coalesce(places, 0) <> case when jobs.id is null or deleted_at is not null then 0 else 1 end";
        assert_eq!(self.number(misplaced).await, 0, "jobs in no place or in several");
    }
}

/// A new id for a claim.
pub fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
