//! The load of workers: a connection claims jobs, reports a result for each of them, and claims again.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::load::{Answer, Traffic, Verdict};
use crate::requests::{Requests, uuid};

/// What a worker does.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Claims up to so many waiting jobs and reports them, until no job is left.
    Drain { jobs_at_once: u32 },
    /// Submits a job, claims one and reports it, over and over.
    Life,
}

/// The requests of workers. The ids of claims are derived from a number.
pub struct ClaimRequests {
    address: SocketAddr,
    token: String,
    claim: String,
    /// Families with different seeds share no claim.
    seed: u64,
}

/// Long enough that no lease ends while a row is measured.
const LEASE_SECONDS: u32 = 900;

impl ClaimRequests {
    /// Claims of up to `jobs_at_once` jobs, which wait so many seconds for one.
    pub fn new(address: SocketAddr, token: &str, jobs_at_once: u32, wait_seconds: u32, seed: u64) -> Self {
        let claim = format!(
            r#"{{"queues":["default"],"max_jobs":{jobs_at_once},"lease_seconds":{LEASE_SECONDS},"wait_seconds":{wait_seconds}}}"#
        );
        Self { address, token: token.to_owned(), claim, seed }
    }

    pub fn claim(&self, number: u64, out: &mut Vec<u8>) {
        self.write("PUT", number, "", &self.claim, out);
    }

    /// Reports that all these jobs have succeeded.
    pub fn report(&self, number: u64, jobs: &[String], out: &mut Vec<u8>) {
        let result = |job: &String| format!(r#"{{"job_id":"{job}","outcome":"succeeded"}}"#);
        let results: Vec<String> = jobs.iter().map(result).collect();
        self.write("POST", number, "/results", &format!(r#"{{"results":[{}]}}"#, results.join(",")), out);
    }

    pub fn heartbeat(&self, number: u64, out: &mut Vec<u8>) {
        self.write("POST", number, "/heartbeat", "", out);
    }

    fn write(&self, method: &str, number: u64, below: &str, body: &str, out: &mut Vec<u8>) {
        let Self { address, token, seed, .. } = self;
        let id = uuid(*seed, number);
        let id = str::from_utf8(&id).expect("the text of a UUID is ASCII");
        let head = format!(
            "{method} /claims/{id}{below} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len(),
        );
        out.clear();
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(body.as_bytes());
    }
}

/// The ids of the jobs in the answer to a claim.
pub fn claimed_jobs(body: &[u8]) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Claim {
        jobs: Vec<Job>,
    }
    #[derive(Deserialize)]
    struct Job {
        id: String,
    }
    let claim: Claim = serde_json::from_slice(body).with_context(|| unexpected(body))?;
    Ok(claim.jobs.into_iter().map(|job| job.id).collect())
}

/// How many of the reported results count. A report that is sent again after a refusal may have been recorded the first
/// time.
pub fn recorded_jobs(body: &[u8]) -> anyhow::Result<usize> {
    #[derive(Deserialize)]
    struct Results<'body> {
        #[serde(borrow)]
        results: Vec<Item<'body>>,
    }
    #[derive(Deserialize)]
    struct Item<'body> {
        status: &'body str,
    }
    let Results { results } = serde_json::from_slice(body).with_context(|| unexpected(body))?;
    Ok(results.iter().filter(|result| ["recorded", "already-recorded"].contains(&result.status)).count())
}

fn unexpected(body: &[u8]) -> String {
    format!("a worker got {}", String::from_utf8_lossy(body))
}

/// Workers, one for each connection. The units are jobs with a result; the timed answers are those of claims that got jobs.
pub struct Workers {
    requests: ClaimRequests,
    /// What each worker submits before its claim.
    submissions: Option<Requests>,
    steps: Vec<Step>,
    submitted: u64,
    claimed: u64,
}

/// What a worker does next. After a refusal, it sends the same request again.
enum Step {
    Submit {
        number: u64,
    },
    Claim {
        number: u64,
    },
    Report {
        number: u64,
        jobs: Vec<String>,
    },
    /// There was no job left.
    Stop,
}

impl Workers {
    /// Workers that drain the queue, or, with `submissions`, submit a job before each claim.
    pub fn new(workers: usize, requests: ClaimRequests, submissions: Option<Requests>) -> Self {
        let mut new = Self { requests, submissions, steps: Vec::with_capacity(workers), submitted: 0, claimed: 0 };
        for _ in 0..workers {
            let first = new.first_step();
            new.steps.push(first);
        }
        new
    }

    fn first_step(&mut self) -> Step {
        if self.submissions.is_some() {
            self.submitted += 1;
            Step::Submit { number: self.submitted }
        } else {
            self.new_claim()
        }
    }

    fn new_claim(&mut self) -> Step {
        self.claimed += 1;
        Step::Claim { number: self.claimed }
    }
}

impl Traffic for Workers {
    fn write(&mut self, connection: usize, request: &mut Vec<u8>) -> bool {
        match (&self.steps[connection], &self.submissions) {
            (Step::Submit { number }, Some(submissions)) => submissions.write(*number, request),
            (Step::Claim { number }, _) => self.requests.claim(*number, request),
            (Step::Report { number, jobs }, _) => self.requests.report(*number, jobs, request),
            (Step::Submit { .. }, None) | (Step::Stop, _) => return false,
        }
        true
    }

    fn judge(&mut self, connection: usize, answer: &Answer<'_>) -> anyhow::Result<Verdict> {
        let (next, verdict) = match (&self.steps[connection], answer.status) {
            (Step::Submit { .. }, 200 | 201) => (self.new_claim(), Verdict::Expected { units: 0, timed: false }),
            (Step::Submit { .. }, _) => return Ok(Verdict::Refused { expected: 201 }),
            (Step::Claim { number }, 200 | 201) => {
                let (number, jobs) = (*number, claimed_jobs(answer.body)?);
                let timed = !jobs.is_empty();
                let next = match self.submissions {
                    _ if timed => Step::Report { number, jobs },
                    // Another worker has a lock on this one's job. The id is unused.
                    Some(_) => Step::Claim { number },
                    None => Step::Stop,
                };
                (next, Verdict::Expected { units: 0, timed })
            }
            (Step::Claim { .. }, _) => return Ok(Verdict::Refused { expected: 201 }),
            (Step::Report { jobs, .. }, 200) => {
                let (recorded, reported) = (recorded_jobs(answer.body)?, jobs.len());
                ensure!(recorded == reported, "{recorded} of {reported} results count: {}", unexpected(answer.body));
                (self.first_step(), Verdict::Expected { units: recorded as u64, timed: false })
            }
            (Step::Report { .. }, _) => return Ok(Verdict::Refused { expected: 200 }),
            (Step::Stop, _) => anyhow::bail!("an answer without a request"),
        };
        self.steps[connection] = next;
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::Payload;

    const JOBS: [&str; 2] = ["01a20053-d957-7108-af22-b2e931e75377", "01a20053-d957-7108-af22-b2e931e75378"];

    fn workers(submissions: bool) -> Workers {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let submissions = submissions.then(|| Requests::new(address, "hpx_x", Payload::Mail, 1));
        Workers::new(1, ClaimRequests::new(address, "hpx_x", 2, 0, 1), submissions)
    }

    /// The request line, and whether the body has the declared length.
    fn written(workers: &mut Workers) -> String {
        let mut request = Vec::new();
        assert!(workers.write(0, &mut request));
        let request = String::from_utf8(request).unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{request}");
        serde_json::from_str::<serde_json::Value>(body).unwrap();
        head.lines().next().unwrap().to_owned()
    }

    fn counted(workers: &mut Workers, status: u16, body: &str) -> Option<(u64, bool)> {
        match workers.judge(0, &Answer { status, body: body.as_bytes() }).unwrap() {
            Verdict::Expected { units, timed } => Some((units, timed)),
            Verdict::Refused { .. } => None,
        }
    }

    fn claim_answer() -> String {
        // A payload with a member of the same name.
        let job = |id: &str| format!(r#"{{"id":"{id}","type":"mail.send","payload":{{"id":"other"}}}}"#);
        format!(r#"{{"id":"c","jobs":[{}]}}"#, JOBS.map(job).join(","))
    }

    fn results_answer(statuses: [&str; 2]) -> String {
        let result = |status: &str| format!(r#"{{"job_id":"x","status":"{status}"}}"#);
        format!(r#"{{"results":[{}]}}"#, statuses.map(result).join(","))
    }

    #[test]
    fn a_worker_claims_reports_what_it_got_and_claims_anew_until_no_job_is_left() {
        let mut workers = workers(false);
        let first = written(&mut workers);
        assert!(first.starts_with("PUT /claims/"), "{first}");
        assert_eq!(counted(&mut workers, 503, "{}"), None);
        assert_eq!(written(&mut workers), first, "after a refusal the same request");
        assert_eq!(counted(&mut workers, 201, &claim_answer()), Some((0, true)));
        let report = written(&mut workers);
        assert_eq!(report, first.replace("PUT", "POST").replace(" HTTP", "/results HTTP"));
        assert_eq!(counted(&mut workers, 200, &results_answer(["recorded", "already-recorded"])), Some((2, false)));
        let second = written(&mut workers);
        assert!(second.starts_with("PUT /claims/") && second != first, "{second}");
        assert_eq!(counted(&mut workers, 200, r#"{"id":"c","jobs":[]}"#), Some((0, false)));
        assert!(!workers.write(0, &mut Vec::new()), "no job is left");
    }

    #[test]
    fn a_worker_may_submit_a_job_before_each_claim() {
        let mut workers = workers(true);
        assert!(written(&mut workers).starts_with("POST /jobs "));
        assert_eq!(counted(&mut workers, 201, "{}"), Some((0, false)));
        let claim = written(&mut workers);
        assert_eq!(counted(&mut workers, 200, r#"{"id":"c","jobs":[]}"#), Some((0, false)));
        assert_eq!(written(&mut workers), claim, "another worker may have had the job for a moment");
        assert_eq!(counted(&mut workers, 201, &claim_answer()), Some((0, true)));
        assert!(written(&mut workers).contains("/results "));
        assert_eq!(counted(&mut workers, 200, &results_answer(["recorded"; 2])), Some((2, false)));
        assert!(written(&mut workers).starts_with("POST /jobs "));
    }

    #[test]
    fn a_result_that_does_not_count_ends_the_run() {
        let mut workers = workers(false);
        assert_eq!(counted(&mut workers, 201, &claim_answer()), Some((0, true)));
        let body = results_answer(["recorded", "lease-lost"]);
        assert!(workers.judge(0, &Answer { status: 200, body: body.as_bytes() }).is_err());
    }
}
