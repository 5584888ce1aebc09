//! Calls of workers that meet: copies of one claim, and each pair of calls in both orders.
//!
//! Each order is forced: the first call is held open in a transaction of the test, the second one waits for it.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{Answer, Claim, Client, Ledger, NO_QUOTAS, OpenTransaction, Server, job, new_id};

/// Nothing is reclaimed but by the test.
const NO_RECLAIMER: (&str, &str) = ("HAPAX__CLAIMS__RECLAIM_INTERVAL", "1h");

/// Two of a tenant's calls can wait for a lock for long.
const CONNECTIONS: (&str, &str) = ("HAPAX__CLAIMS__CONNECTIONS", "8");

async fn serve(ledger: &Ledger) -> Server {
    ledger.serve_with(&[&NO_QUOTAS[..], &[NO_RECLAIMER, CONNECTIONS]].concat()).await
}

fn one() -> Value {
    json!({ "queues": ["default"] })
}

/// A running job, and transactions that hold a call open.
struct Race {
    ledger: Ledger,
    server: Server,
    claim: Claim,
    job: String,
}

impl Race {
    async fn new() -> Self {
        let ledger = Ledger::new().await;
        let server = serve(&ledger).await;
        let job = server.submit("the-key", job(1)).await.job_id();
        let claim = server.take().await;
        Self { ledger, server, claim, job }
    }

    /// A claim that has expired.
    async fn expired() -> Self {
        let race = Self::new().await;
        race.ledger.expire_claim(&race.claim.id).await;
        race
    }

    async fn reclaiming(&self) -> OpenTransaction {
        self.ledger.hold("select * from reclaim(10)").await
    }

    async fn settling(&self, outcome: &str) -> OpenTransaction {
        let sql = format!(
            "select s.* from tenants, settle(tenants.id, array['{}'::uuid], array['{}'::uuid], array['{outcome}'], \
             array[null::json], array[null::json], array[true], array[null::double precision], 1, 1) as s \
             where tenants.name = 'acme'",
            self.claim.id, self.job
        );
        self.ledger.hold(&sql).await
    }

    /// Holds a call open that takes the tenant and the id of the claim or the job.
    async fn calling(&self, function: &str, id: &str) -> OpenTransaction {
        self.ledger.hold(&format!("select {function}(id, '{id}') from tenants where name = 'acme'")).await
    }

    async fn cancelling(&self) -> OpenTransaction {
        self.calling("hapax.cancel", &self.job).await
    }

    async fn deleting(&self) -> OpenTransaction {
        self.calling("hapax.delete", &self.job).await
    }

    async fn releasing(&self) -> OpenTransaction {
        self.calling("hapax.release", &self.claim.id).await
    }

    async fn extending(&self) -> OpenTransaction {
        let sql = format!(
            "select h.* from tenants, heartbeat(tenants.id, array['{}'::uuid]) as h where tenants.name = 'acme'",
            self.claim.id
        );
        self.ledger.hold(&sql).await
    }

    /// Sends a request that must wait for the held call, commits the call, and returns the answer.
    async fn after<T: Send + 'static>(&self, held: OpenTransaction, request: JoinHandle<T>) -> T {
        self.ledger.until_waiting(1).await;
        held.commit().await;
        request.await.unwrap()
    }

    fn settle(&self, outcome: &'static str) -> JoinHandle<(String, Option<String>)> {
        let (client, claim, job) = (self.client(), self.claim.id.clone(), self.job.clone());
        tokio::spawn(async move { client.settle(&claim, &job, outcome).await })
    }

    fn heartbeat(&self) -> JoinHandle<Answer> {
        let (client, claim) = (self.client(), self.claim.id.clone());
        tokio::spawn(async move { client.heartbeat(&claim).await })
    }

    fn release(&self) -> JoinHandle<Answer> {
        let (client, claim) = (self.client(), self.claim.id.clone());
        tokio::spawn(async move { client.release(&claim).await })
    }

    fn cancel(&self) -> JoinHandle<Answer> {
        let (client, job) = (self.client(), self.job.clone());
        tokio::spawn(async move { client.cancel(&job).await })
    }

    fn delete(&self) -> JoinHandle<Answer> {
        let (client, job) = (self.client(), self.job.clone());
        tokio::spawn(async move { client.delete(&job).await })
    }

    fn client(&self) -> Client {
        (*self.server).clone()
    }

    /// Reclaims what can be reclaimed without waiting. Returns how many jobs left their leases.
    async fn reclaim(&self) -> i64 {
        self.ledger.execute("update claims set check_at = least(check_at, clock_timestamp())").await;
        self.ledger.number("select requeued + failed + cancelled from reclaim(10)").await
    }

    async fn state(&self) -> String {
        self.server.state(&self.job).await
    }

    /// The call found the job without another attempt.
    async fn at_the_first_attempt(&self) {
        assert_eq!(self.server.metric(r#"hapax_database_retries_total{reason="collided"}"#).await, 0.0);
    }

    async fn is_nowhere(&self) {
        for table in ["job_queue", "job_leases", "job_outcomes", "job_attempts"] {
            assert_eq!(self.ledger.number(&format!("select count(*) from {table}")).await, 0, "{table}");
        }
        self.server.get(&format!("/jobs/{}", self.job)).await.is_problem(410, "job-deleted");
    }
}

fn settled(status: &str, state: &str) -> (String, Option<String>) {
    (status.to_owned(), Some(state.to_owned()))
}

/// Sends all requests at once, alternating between the servers.
async fn at_once<I: IntoIterator<Item = (String, Value)>>(servers: [&Server; 2], claims: I) -> Vec<Answer> {
    let claims: Vec<_> = claims.into_iter().collect();
    let start = std::sync::Arc::new(tokio::sync::Barrier::new(claims.len()));
    let mut tasks = Vec::new();
    for (number, (id, body)) in claims.into_iter().enumerate() {
        let (client, start) = ((**servers[number % 2]).clone(), start.clone());
        tasks.push(tokio::spawn(async move {
            start.wait().await;
            client.claim(&id, body).await
        }));
    }
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn twenty_copies_of_a_claim_on_two_replicas_make_one_claim_with_the_same_jobs() {
    let ledger = Ledger::new().await;
    let servers = [serve(&ledger).await, serve(&ledger).await];
    ledger.fill_queue("default", 200).await;
    let body = json!({ "queues": ["default"], "max_jobs": 5 });
    for round in 1..=10 {
        let id = new_id();
        let answers = at_once([&servers[0], &servers[1]], (0..20).map(|_| (id.clone(), body.clone()))).await;
        let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        statuses.sort_unstable();
        assert_eq!((&statuses[..19], statuses[19]), (&[200; 19][..], 201));
        for answer in &answers {
            assert_eq!(answer.json()["jobs"], answers[0].json()["jobs"]);
        }
        assert_eq!(Claim::of(&answers[0]).jobs.len(), 5);
        assert_eq!(ledger.number("select count(*) from job_leases").await, round * 5);
        assert_eq!(ledger.number("select count(*) from claims").await, round);
    }
}

#[tokio::test]
async fn copies_of_a_claim_that_can_find_only_one_job_agree() {
    let ledger = Ledger::new().await;
    let servers = [serve(&ledger).await, serve(&ledger).await];
    for round in 1..=20 {
        ledger.fill_queue("default", 1).await;
        let id = new_id();
        let answers = at_once([&servers[0], &servers[1]], (0..8).map(|_| (id.clone(), one()))).await;
        let jobs: HashSet<String> = answers.iter().map(|answer| Claim::of(answer).job().to_owned()).collect();
        assert_eq!((jobs.len(), ledger.number("select count(*) from job_leases").await), (1, round));
    }
}

#[tokio::test]
async fn claimers_on_two_replicas_never_get_the_same_job() {
    let ledger = Ledger::new().await;
    let servers = [serve(&ledger).await, serve(&ledger).await];
    ledger.fill_queue("default", 400).await;
    let claimers: Vec<_> = (0..8)
        .map(|n| {
            let client = (*servers[n % 2]).clone();
            tokio::spawn(async move {
                let mut got: Vec<(String, String)> = Vec::new();
                while ledger_has_more(&client, &mut got).await {}
                got
            })
        })
        .collect();
    let mut holders: HashMap<String, String> = HashMap::new();
    for claimer in claimers {
        for (job, claim) in claimer.await.unwrap() {
            assert!(holders.insert(job, claim).is_none(), "a job went to two claims");
        }
    }
    assert_eq!(holders.len(), 400);
    ledger.assert_jobs_in_one_place().await;
}

/// Claims up to ten jobs. `false` if there was none.
async fn ledger_has_more(client: &Client, got: &mut Vec<(String, String)>) -> bool {
    let claim = Claim::of(&client.claim(&new_id(), json!({ "queues": ["default"], "max_jobs": 10 })).await);
    got.extend(claim.job_ids().iter().map(|job| ((*job).to_owned(), claim.id.clone())));
    !claim.jobs.is_empty()
}

/// A claim by SQL in an open transaction, and a copy over HTTP that waits for it.
async fn claim_and_a_waiting_copy() -> (Ledger, Server, OpenTransaction, JoinHandle<Answer>, String) {
    let ledger = Ledger::new().await;
    let server = serve(&ledger).await;
    server.submit("a", job(1)).await;
    server.submit("b", job(2)).await;
    // The fingerprint of the request, from a claim that a release has ended.
    let sample = server.take().await;
    server.release(&sample.id).await;
    ledger.make_due().await;
    let id = new_id();
    let sql = format!(
        "select c.* from claims, claim(claims.tenant_id, array['default'], array['{id}'::uuid], \
         array[claims.fingerprint], array[null::text], array[1], array[60]) as c where claims.id = '{}'",
        sample.id
    );
    let held = ledger.hold(&sql).await;
    let (client, copy) = ((*server).clone(), id.clone());
    let copy = tokio::spawn(async move { client.claim(&copy, one()).await });
    ledger.until_waiting(1).await;
    (ledger, server, held, copy, id)
}

#[tokio::test]
async fn a_copy_waits_for_the_claim_in_progress_and_gets_its_jobs() {
    let (ledger, server, held, copy, id) = claim_and_a_waiting_copy().await;
    held.commit().await;
    let copy = copy.await.unwrap();
    let shown = server.get(&format!("/claims/{id}")).await.json();
    assert_eq!((copy.status, &copy.json()["jobs"][0]["id"]), (200, &shown["jobs"][0]["id"]));
    assert_eq!(ledger.number("select count(*) from job_leases").await, 1);
}

#[tokio::test]
async fn a_copy_makes_the_claim_if_the_one_in_progress_rolls_back() {
    let (ledger, _server, held, copy, _) = claim_and_a_waiting_copy().await;
    held.roll_back().await;
    let copy = copy.await.unwrap();
    assert_eq!((copy.status, Claim::of(&copy).jobs.len()), (201, 1));
    assert_eq!(ledger.number("select count(*) from job_leases").await, 1);
}

#[tokio::test]
async fn a_claim_that_waits_too_long_for_its_copy_is_in_flight() {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__LOCK_WAIT", "100ms")]).await;
    server.submit("k", job(1)).await;
    let id = new_id();
    let sql = format!(
        "select pg_advisory_xact_lock(hashtextextended(id::text || '{id}', 0)) from tenants where name = 'acme'"
    );
    let held = ledger.hold(&sql).await;
    let refused = server.claim(&id, one()).await;
    refused.is_problem(409, "request-in-flight");
    refused.assert_retry_after();
    // Another claim does not wait.
    server.take().await;
    held.roll_back().await;
    assert_eq!(server.claim(&id, one()).await.json()["jobs"], json!([]));
}

#[tokio::test]
async fn a_release_waits_for_the_claim_in_progress_and_ends_it() {
    let (ledger, server, held, copy, id) = claim_and_a_waiting_copy().await;
    let (client, release) = ((*server).clone(), id.clone());
    let release = tokio::spawn(async move { client.release(&release).await });
    ledger.until_waiting(2).await;
    held.commit().await;
    assert_eq!(release.await.unwrap().status, 204);
    // The copy came before or after the release.
    assert!([200, 410].contains(&copy.await.unwrap().status));
    server.claim(&id, one()).await.is_problem(410, "claim-ended");
    assert_eq!(ledger.number("select count(*) from job_leases").await, 0);
    ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_claim_waits_for_its_release_in_progress_and_is_refused() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger).await;
    server.submit("k", job(1)).await;
    let id = new_id();
    let held = ledger.hold(&format!("select hapax.release(id, '{id}') from tenants where name = 'acme'")).await;
    let (client, late) = ((*server).clone(), id.clone());
    let late = tokio::spawn(async move { client.claim(&late, one()).await });
    ledger.until_waiting(1).await;
    held.commit().await;
    late.await.unwrap().is_problem(410, "claim-ended");
    assert_eq!(ledger.number("select count(*) from job_queue").await, 1);
}

#[tokio::test]
async fn a_claim_passes_over_a_job_that_is_being_changed() {
    let ledger = Ledger::new().await;
    let server = serve(&ledger).await;
    let changed = server.submit("a", job(1)).await.job_id();
    let other = server.submit("b", job(2)).await.job_id();
    let held = ledger.hold(&format!("select from job_queue where job_id = '{changed}' for update")).await;
    assert_eq!(server.take().await.job(), other);
    // Nothing is stored for a claim that met only locked rows.
    let id = new_id();
    assert_eq!(server.claim(&id, one()).await.json()["jobs"], json!([]));
    held.roll_back().await;
    assert_eq!(Claim::of(&server.claim(&id, one()).await).job(), changed);
}

#[tokio::test]
async fn a_cancellation_or_a_deletion_finds_a_job_that_is_being_claimed() {
    for deletes in [false, true] {
        let (ledger, server, held, copy, id) = claim_and_a_waiting_copy().await;
        let first = server.get("/jobs?state=queued").await.json()["jobs"].as_array().unwrap().clone();
        let locked: HashSet<String> = first.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
        let free = ledger.text("select job_id::text from job_queue for update skip locked limit 1").await;
        let job = locked.into_iter().find(|job| *job != free).unwrap();
        let (client, target) = ((*server).clone(), job.clone());
        let request =
            tokio::spawn(
                async move { if deletes { client.delete(&target).await } else { client.cancel(&target).await } },
            );
        ledger.until_waiting(2).await;
        held.commit().await;
        let answer = request.await.unwrap();
        copy.await.unwrap();
        if deletes {
            assert_eq!(answer.status, 204);
            assert_eq!(server.settle(&id, &job, "succeeded").await, ("lease-lost".to_owned(), None));
        } else {
            assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("running")));
            assert_eq!(server.heartbeat(&id).await.json()["jobs"][0]["cancel_requested"], true);
        }
        ledger.assert_jobs_in_one_place().await;
    }
}

#[tokio::test]
async fn a_result_that_waits_for_the_reclaim_is_lost_and_kept_in_the_history() {
    let race = Race::expired().await;
    let held = race.reclaiming().await;
    assert_eq!(race.after(held, race.settle("succeeded")).await, settled("lease-lost", "queued"));
    let [lost] = &race.server.attempts(&race.job).await[..] else { panic!("one attempt") };
    assert_eq!((&lost["reported"], &lost["late_outcome"]), (&json!("lost"), &json!("succeeded")));
    race.ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_result_that_waits_for_a_reclaim_that_rolls_back_is_recorded() {
    let race = Race::expired().await;
    let held = race.reclaiming().await;
    let settling = race.settle("succeeded");
    race.ledger.until_waiting(1).await;
    held.roll_back().await;
    assert_eq!(settling.await.unwrap(), settled("recorded", "succeeded"));
}

/// The story of river 1302: a reclaim that read first and updated later took finished jobs back.
#[tokio::test]
async fn a_reclaim_passes_over_a_job_that_is_being_settled() {
    for (outcome, state) in [("succeeded", "succeeded"), ("failed", "queued")] {
        let race = Race::expired().await;
        let held = race.settling(outcome).await;
        assert_eq!(race.reclaim().await, 0);
        // It looks again soon, not in an hour.
        let soon = "select count(*) from claims where check_at < clock_timestamp() + interval '2 seconds'";
        assert_eq!(race.ledger.number(soon).await, 1);
        held.commit().await;
        assert_eq!((race.reclaim().await, race.state().await), (0, state.to_owned()));
        race.ledger.assert_jobs_in_one_place().await;
    }
    let race = Race::expired().await;
    let held = race.settling("succeeded").await;
    assert_eq!(race.reclaim().await, 0);
    held.roll_back().await;
    assert_eq!((race.reclaim().await, race.state().await), (1, "queued".to_owned()));
}

/// As `adopt` does, for a submission with the same content.
#[tokio::test]
async fn a_reclaim_passes_over_a_job_that_ends_while_a_submission_adopts_it() {
    for (max_attempts, reclaimed, state) in [(1, 0, "failed"), (5, 1, "queued")] {
        let ledger = Ledger::new().await;
        let server = serve(&ledger).await;
        let unique =
            json!({ "type": "t", "payload": 1, "max_attempts": max_attempts, "unique": { "by": ["/payload"] } });
        let job = server.submit("the-key", unique).await.job_id();
        let claim = server.take().await;
        let race = Race { ledger, server, claim, job };
        race.ledger.expire_claim(&race.claim.id).await;
        let held = race.ledger.hold("select from job_uniques for share").await;
        assert_eq!(race.reclaim().await, reclaimed, "{state}");
        let soon = "select count(*) from claims where check_at < clock_timestamp() + interval '2 seconds'";
        assert_eq!(race.ledger.number(soon).await, 1 - reclaimed);
        held.commit().await;
        assert_eq!((race.reclaim().await, race.state().await), (1 - reclaimed, state.to_owned()));
        assert_eq!(race.ledger.number("select count(*) from job_uniques").await, reclaimed);
        race.ledger.assert_no_violations().await;
    }
}

#[tokio::test]
async fn a_heartbeat_that_waits_for_the_reclaim_learns_that_the_claim_has_ended() {
    let race = Race::expired().await;
    let held = race.reclaiming().await;
    race.after(held, race.heartbeat()).await.is_problem(410, "claim-ended");
    assert_eq!(race.state().await, "queued");
}

#[tokio::test]
async fn a_heartbeat_that_waits_for_the_release_learns_that_the_claim_has_ended() {
    let race = Race::new().await;
    let held = race.releasing().await;
    race.after(held, race.heartbeat()).await.is_problem(410, "claim-ended");
}

#[tokio::test]
async fn a_reclaim_passes_over_a_claim_that_is_being_extended() {
    let race = Race::expired().await;
    let held = race.extending().await;
    assert_eq!(race.ledger.number("select looked_at from reclaim(10)").await, 0);
    held.commit().await;
    assert_eq!((race.reclaim().await, race.state().await), (0, "running".to_owned()));
    let race = Race::expired().await;
    let held = race.extending().await;
    assert_eq!(race.ledger.number("select looked_at from reclaim(10)").await, 0);
    held.roll_back().await;
    assert_eq!((race.reclaim().await, race.state().await), (1, "queued".to_owned()));
}

#[tokio::test]
async fn a_cancellation_that_waits_for_the_reclaim_cancels_the_queued_job() {
    let race = Race::expired().await;
    let held = race.reclaiming().await;
    let cancelled = race.after(held, race.cancel()).await;
    assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")));
    race.at_the_first_attempt().await;
    race.ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_reclaim_after_a_cancellation_in_progress_ends_the_job_as_cancelled() {
    let race = Race::expired().await;
    let held = race.cancelling().await;
    assert_eq!(race.reclaim().await, 0);
    held.commit().await;
    assert_eq!((race.reclaim().await, race.state().await), (1, "cancelled".to_owned()));
    race.ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_deletion_that_waits_for_the_reclaim_deletes_the_queued_job() {
    let race = Race::expired().await;
    let held = race.reclaiming().await;
    assert_eq!(race.after(held, race.delete()).await.status, 204);
    race.at_the_first_attempt().await;
    race.is_nowhere().await;
}

#[tokio::test]
async fn a_reclaim_does_not_bring_a_job_back_that_is_being_deleted() {
    let race = Race::expired().await;
    let held = race.deleting().await;
    assert_eq!(race.reclaim().await, 0);
    held.commit().await;
    assert_eq!(race.reclaim().await, 0);
    race.is_nowhere().await;
}

#[tokio::test]
async fn a_result_that_waits_for_the_cancellation_respects_it() {
    for (outcome, state) in [("succeeded", "succeeded"), ("failed", "cancelled"), ("released", "cancelled")] {
        let race = Race::new().await;
        let held = race.cancelling().await;
        assert_eq!(race.after(held, race.settle(outcome)).await, settled("recorded", state));
        let again = race.cancel().await.unwrap();
        assert_eq!((again.status, &again.json()["state"]), (200, &json!(state)));
    }
}

/// `settle` looks a lease up and then deletes it by its ctid. A cancellation gives the lease another ctid.
#[tokio::test]
async fn a_result_is_recorded_if_a_cancellation_moves_its_lease_meanwhile() {
    let race = Race::new().await;
    // Stops the delete, not the look-up.
    let mut held = race.ledger.lock_table("job_leases", "share").await;
    let settling = race.settle("succeeded");
    race.ledger.until_waiting(1).await;
    held.execute(&format!("select cancel(id, '{}') from tenants where name = 'acme'", race.job)).await;
    held.commit().await;
    assert_eq!(settling.await.unwrap(), settled("recorded", "succeeded"));
    race.ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn a_cancellation_that_waits_for_the_result_tells_where_the_job_ended() {
    // A job that was queued again is cancelled there.
    for (outcome, state) in [("succeeded", "succeeded"), ("failed", "cancelled")] {
        let race = Race::new().await;
        let held = race.settling(outcome).await;
        let cancelled = race.after(held, race.cancel()).await;
        assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!(state)));
        assert_eq!(race.state().await, state);
        race.at_the_first_attempt().await;
        let settled_before = race.settle(outcome).await.unwrap();
        assert_eq!(settled_before, settled("already-recorded", state));
        race.ledger.assert_jobs_in_one_place().await;
    }
}

#[tokio::test]
async fn a_result_that_waits_for_the_deletion_is_lost_and_leaves_no_row() {
    let race = Race::new().await;
    let held = race.deleting().await;
    assert_eq!(race.after(held, race.settle("succeeded")).await, ("lease-lost".to_owned(), None));
    race.is_nowhere().await;
}

#[tokio::test]
async fn a_deletion_that_waits_for_the_result_deletes_the_job_wherever_it_went() {
    for outcome in ["succeeded", "failed", "released"] {
        let race = Race::new().await;
        let held = race.settling(outcome).await;
        assert_eq!(race.after(held, race.delete()).await.status, 204);
        race.at_the_first_attempt().await;
        race.is_nowhere().await;
    }
}

#[tokio::test]
async fn of_a_result_and_a_release_the_first_wins() {
    let race = Race::new().await;
    let held = race.releasing().await;
    assert_eq!(race.after(held, race.settle("succeeded")).await, settled("recorded-otherwise", "queued"));
    assert_eq!(race.server.reported(&race.job).await, ["released"]);

    let race = Race::new().await;
    let held = race.settling("succeeded").await;
    assert_eq!(race.after(held, race.release()).await.status, 204);
    assert_eq!(
        (race.state().await, race.server.reported(&race.job).await),
        ("succeeded".to_owned(), vec!["succeeded".to_owned()])
    );
    race.ledger.assert_jobs_in_one_place().await;
}

#[tokio::test]
async fn of_two_different_results_of_one_claim_one_is_recorded() {
    let race = Race::new().await;
    let held = race.settling("failed").await;
    assert_eq!(race.after(held, race.settle("succeeded")).await, settled("recorded-otherwise", "queued"));
    let race = Race::new().await;
    let held = race.settling("succeeded").await;
    assert_eq!(race.after(held, race.settle("succeeded")).await, settled("already-recorded", "succeeded"));
}

#[tokio::test]
async fn a_retry_and_a_deletion_leave_no_row() {
    let race = Race::new().await;
    race.server.settle(&race.claim.id, &race.job, "succeeded").await;
    let held = race.deleting().await;
    let (client, job) = (race.client(), race.job.clone());
    let retry = tokio::spawn(async move { client.retry(&job, "r").await });
    race.after(held, retry).await.is_problem(410, "job-deleted");
    race.is_nowhere().await;

    let race = Race::new().await;
    race.server.settle(&race.claim.id, &race.job, "succeeded").await;
    // The retry waits with its locks for the key, until the deletion waits for it.
    let keys = race.ledger.lock_table("idempotency_keys", "exclusive").await;
    let (client, job) = (race.client(), race.job.clone());
    let retry = tokio::spawn(async move { client.retry(&job, "r").await });
    race.ledger.until_waiting_long().await;
    let delete = race.delete();
    race.ledger.until_waiting(2).await;
    keys.roll_back().await;
    assert_eq!((retry.await.unwrap().status, delete.await.unwrap().status), (200, 204));
    race.is_nowhere().await;
}
