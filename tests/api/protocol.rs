//! The functions of the schema do what the model in `tests/model` does, on random paths through the model.

#[path = "../model/protocol.rs"]
mod model;

use model::{Action, Answer, Final, JOBS, Job, Outcome, Size, State};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::harness::Ledger;

const SIZE: Size = Size {
    jobs: JOBS,
    changed_jobs: JOBS,
    claims: 3,
    outcomes: &[Outcome::Succeeded, Outcome::Failed, Outcome::Released, Outcome::Cancelled],
    without: None,
};

/// The jobs and claims of one path, in a queue of their own.
struct World {
    connection: PgConnection,
    /// Locks the jobs that a claim must not find.
    other: PgConnection,
    queue: String,
    jobs: Vec<Uuid>,
    claims: Vec<Uuid>,
}

impl World {
    async fn new(ledger: &Ledger) -> Self {
        let queue = Uuid::new_v4().to_string();
        let mut connection = ledger.connect().await;
        let mut jobs = Vec::new();
        for job in 0..SIZE.jobs {
            let sql = "select job_id from submit_job('acme', $1 || $2, 't', '{}', $1, 2, null, 2)";
            let submitted =
                sqlx::query(sql).bind(&queue).bind(job.to_string()).fetch_one(&mut connection).await.unwrap();
            jobs.push(submitted.get(0));
        }
        let claims = (0..SIZE.claims).map(|_| Uuid::new_v4()).collect();
        Self { connection, other: ledger.connect().await, queue, jobs, claims }
    }

    async fn execute(&mut self, sql: String) -> Vec<sqlx::postgres::PgRow> {
        sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection).await.unwrap()
    }

    /// Calls the function of an action. The answer is `Silent` if the model does not look at it.
    async fn apply(&mut self, before: &State, action: Action) -> Answer {
        let tenant = "(select id from tenants where name = 'acme')";
        match action {
            Action::Claim(claim, wanted) => return self.claim(claim, wanted).await,
            Action::Settle(claim, job, outcome) => return self.settle(claim, job, outcome).await,
            Action::Heartbeat(claim) => {
                let sql = format!("select claim_id from heartbeat({tenant}, array['{}']::uuid[])", self.claims[claim]);
                return if self.execute(sql).await.is_empty() { Answer::ClaimEnded } else { Answer::Extended };
            }
            Action::Expire(claim) => {
                let sql = "update claims set expires_at = clock_timestamp() - interval '1 s'";
                self.execute(format!("{sql} where id = '{}'", self.claims[claim])).await;
            }
            Action::Release(claim) => {
                drop(self.execute(format!("select release({tenant}, '{}')", self.claims[claim])).await)
            }
            Action::Reclaim(claim) => {
                let due = "update claims set check_at = clock_timestamp()";
                self.execute(format!("{due} where id = '{}'", self.claims[claim])).await;
                self.execute("select reclaim(1000)".to_owned()).await;
            }
            Action::Cancel(job) => drop(self.execute(format!("select cancel({tenant}, '{}')", self.jobs[job])).await),
            Action::Delete(job) => {
                drop(self.execute(format!("select hapax.delete({tenant}, '{}')", self.jobs[job])).await)
            }
            Action::Retry(job) => {
                let Job { ended: Some(ended), retried_version, .. } = before.jobs[job] else { return Answer::Silent };
                let version = retried_version.unwrap_or(ended.version);
                let (key, job) = (Uuid::new_v4(), self.jobs[job]);
                let sql = format!(
                    "select retry({tenant}, 'POST /jobs/{{job_id}}/retry', '{key}', sha256('a'), 'r', now(), 3600, 'body', \
                     '{job}', {version}, now())"
                );
                self.execute(sql).await;
            }
            Action::Look(_) | Action::Forget(_) | Action::Begin(..) | Action::Continue(..) => {
                unreachable!("{action:?}")
            }
        }
        Answer::Silent
    }

    async fn claim(&mut self, claim: usize, wanted: [bool; JOBS]) -> Answer {
        // A released or failed job waits for a while.
        self.execute(format!("update job_queue set run_at = now() where queue = '{}'", self.queue)).await;
        let unwanted: Vec<_> =
            self.jobs.iter().zip(wanted).filter(|(_, wanted)| !wanted).map(|(job, _)| *job).collect();
        sqlx::raw_sql("begin").execute(&mut self.other).await.unwrap();
        let lock = "select 1 from job_queue where job_id = any($1) for update";
        sqlx::query(lock).bind(unwanted).fetch_all(&mut self.other).await.unwrap();
        let sql = "select verdict, job_id, token from claim((select id from tenants where name = 'acme'), array[$1], \
                   array[$2], array[sha256('a')], array['w'], array[2], array[600])";
        let rows =
            sqlx::query(sql).bind(&self.queue).bind(self.claims[claim]).fetch_all(&mut self.connection).await.unwrap();
        sqlx::raw_sql("rollback").execute(&mut self.other).await.unwrap();
        let mut tokens = [None; JOBS];
        for row in &rows {
            if row.get::<&str, _>("verdict") == "ended" {
                return Answer::ClaimEnded;
            }
            let job = self.jobs.iter().position(|job| *job == row.get::<Uuid, _>("job_id")).unwrap();
            tokens[job] = Some(u8::try_from(row.get::<i32, _>("token")).unwrap());
        }
        if rows.is_empty() { Answer::Nothing } else { Answer::Jobs(tokens) }
    }

    async fn settle(&mut self, claim: usize, job: usize, outcome: Outcome) -> Answer {
        let sql = "select verdict from settle((select id from tenants where name = 'acme'), array[$1], array[$2], \
                   array[$3], array[null]::json[], array[null]::json[], array[true], array[0::float8], 0, 0)";
        let outcome = format!("{outcome:?}").to_lowercase();
        let settled = sqlx::query(sql).bind(self.claims[claim]).bind(self.jobs[job]).bind(outcome);
        match settled.fetch_one(&mut self.connection).await.unwrap().get(0) {
            "recorded" => Answer::Recorded,
            "already-recorded" => Answer::AlreadyRecorded,
            "recorded-otherwise" => Answer::RecordedOtherwise,
            "lease-lost" => Answer::LeaseLost,
            other => unreachable!("{other}"),
        }
    }

    /// The rows of all jobs and claims, as text.
    async fn rows(&mut self) -> String {
        let of_job = |job: &Uuid| {
            format!(
                "concat_ws(', ', \
                 (select format('waiting %s %s', attempt, version) from job_queue where job_id = '{job}'), \
                 (select format('lease %s %s %s %s %s', claim_id, token, attempt, version, cancel_requested_at is not null) \
                  from job_leases where job_id = '{job}'), \
                 (select format('ended %s %s %s %s', state, claim_id, attempt, version) from job_outcomes where job_id = '{job}'), \
                 (select 'deleted' from jobs where id = '{job}' and deleted_at is not null))"
            )
        };
        let of_claim = |claim: &Uuid| {
            format!(
                "(select format('claim, expired %s', expires_at <= clock_timestamp()) from claims where id = '{claim}')"
            )
        };
        let parts: Vec<_> = self.jobs.iter().map(of_job).chain(self.claims.iter().map(of_claim)).collect();
        self.execute(format!("select concat_ws('; ', {})", parts.join(", "))).await[0].get(0)
    }

    /// The same, of a state of the model.
    fn expected(&self, state: &State) -> String {
        let short = |value: bool| if value { "t" } else { "f" };
        let job = |job: &Job| {
            let waiting = job.waiting.map(|row| format!("waiting {} {}", row.attempt, row.version));
            let lease = job.lease.map(|row| {
                let (claim, cancelled) = (self.claims[row.claim], short(row.cancel_requested));
                format!("lease {claim} {} {} {} {cancelled}", row.token, row.attempt, row.version)
            });
            let ended = job.ended.map(|row| {
                let claim = row.claim.map(|claim| self.claims[claim].to_string()).unwrap_or_default();
                let state = match row.state {
                    Final::Succeeded => "succeeded",
                    Final::Failed => "failed",
                    Final::Cancelled => "cancelled",
                };
                format!("ended {state} {claim} {} {}", row.attempt, row.version)
            });
            let deleted = job.deleted.then(|| "deleted".to_owned());
            [waiting, lease, ended, deleted].into_iter().flatten().collect::<Vec<_>>().join(", ")
        };
        let jobs = state.jobs.iter().map(job);
        let claims = state.claims.iter().flatten().map(|claim| format!("claim, expired {}", short(claim.expired)));
        jobs.chain(claims).collect::<Vec<_>>().join("; ")
    }
}

/// Takes one path: each number chooses among the actions that are possible.
async fn follow(ledger: &Ledger, choices: &[u16]) -> Result<(), TestCaseError> {
    let mut world = World::new(ledger).await;
    let mut state = SIZE.initial();
    let mut path = Vec::new();
    for choice in choices {
        let mut actions = SIZE.actions(&state);
        actions.retain(|action| !matches!(action, Action::Look(_)));
        let action = actions[usize::from(*choice) % actions.len()];
        path.push(action);
        let (next, expected) = SIZE.apply(&state, action);
        let answer = world.apply(&state, action).await;
        prop_assert_eq!(answer, expected, "{:?}", path);
        prop_assert_eq!(world.rows().await, world.expected(&next), "{:?}", path);
        state = next;
    }
    // A claim that expires because time passes is looked at then. Also those of a path that failed before.
    world.execute("update claims set check_at = least(check_at, expires_at)".to_owned()).await;
    ledger.assert_no_violations().await;
    Ok(())
}

#[test]
fn the_functions_do_what_the_model_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ledger = runtime.block_on(Ledger::new());
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let paths = prop::collection::vec(any::<u16>(), 10..60);
    runner.run(&paths, |choices| runtime.block_on(follow(&ledger, &choices))).unwrap();
}
