//! Rules for every route with an idempotency key: one suite, run against each route.

use std::sync::Arc;

use hapax::access::Scope;
use tokio::sync::Barrier;

use crate::harness::{Answer, Client, Fault, Ledger, Proxy, SHORT_DEADLINES, Server, job};

/// A route with an idempotency key.
#[derive(Clone, Copy)]
enum Keyed {
    Submission,
    BatchItem,
    Change,
    Retry,
}

impl Keyed {
    fn route(self) -> &'static str {
        match self {
            Self::Submission | Self::BatchItem => "POST /jobs",
            Self::Change => "PATCH /jobs/{id}",
            Self::Retry => "POST /jobs/{id}/retry",
        }
    }

    /// What the requests refer to: nothing, a job, or some finished jobs.
    async fn target(self, server: &Client) -> String {
        match self {
            Self::Submission | Self::BatchItem => String::new(),
            Self::Change => {
                let id = uuid::Uuid::now_v7().to_string();
                assert_eq!(server.put(&id, job(0)).await.status, 201);
                id
            }
            Self::Retry => {
                let ids: Vec<_> = (0..4).map(|_| uuid::Uuid::now_v7().to_string()).collect();
                for id in &ids {
                    assert_eq!(server.put(id, job(0)).await.status, 201);
                    assert_eq!(server.cancel(id).await.status, 200);
                }
                ids.join(" ")
            }
        }
    }

    /// Sends a request. `n` makes requests different.
    async fn send(self, client: &Client, target: &str, key: &str, n: u64) -> Answer {
        match self {
            Self::Submission => client.submit(key, job(n)).await,
            Self::BatchItem => {
                let line = serde_json::json!({ "idempotency_key": key, "job": job(n) });
                client.submit_batch(line).await.items().remove(0)
            }
            Self::Change => {
                let body = format!(r#"{{"max_attempts":{}}}"#, n + 1);
                client.send(client.patch_job(target, "*", body).header("idempotency-key", key)).await
            }
            Self::Retry => {
                let id = target.split(' ').nth(usize::try_from(n).unwrap() % 4).unwrap();
                client.send(client.request("POST", &format!("/jobs/{id}/retry")).header("idempotency-key", key)).await
            }
        }
    }

    fn first_status(self) -> u16 {
        match self {
            Self::Submission | Self::BatchItem => 201,
            Self::Change | Self::Retry => 200,
        }
    }

    /// How often the request took effect.
    async fn effects(self, ledger: &Ledger) -> i64 {
        match self {
            Self::Submission | Self::BatchItem => ledger.jobs().await,
            Self::Change => ledger.number("select sum(version - 1)::bigint from job_queue").await,
            // A job is created, cancelled and retried.
            Self::Retry => ledger.number("select count(*) from job_states where version >= 3").await,
        }
    }
}

#[track_caller]
fn is_first(route: Keyed, answer: &Answer) {
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (route.first_status(), "false"), "{answer:?}");
}

#[track_caller]
fn is_replay_of(first: &Answer, answer: &Answer) {
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (200, "true"), "{answer:?}");
    assert_eq!(answer.body, first.body);
    for field in ["location", "etag", "idempotency-expires"] {
        assert_eq!(answer.headers.get(field), first.headers.get(field), "{field}");
    }
}

async fn a_retry_on_another_replica_gets_the_same_bytes(route: Keyed) {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let target = route.target(&one).await;
    let first = route.send(&one, &target, "the-key", 1).await;
    is_first(route, &first);
    is_replay_of(&first, &route.send(&two, &target, "the-key", 1).await);
    is_replay_of(&first, &route.send(&one, &target, "the-key", 1).await);
    assert_eq!(route.effects(&ledger).await, 1);
}

async fn a_different_request_with_the_key_gets_422_and_replays_continue(route: Keyed) {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let target = route.target(&server).await;
    let first = route.send(&server, &target, "the-key", 1).await;
    let other = route.send(&server, &target, "the-key", 2).await;
    other.is_problem(422, "idempotency-key-reused");
    assert_eq!(other.json()["job_id"], first.json()["id"]);
    is_replay_of(&first, &route.send(&server, &target, "the-key", 1).await);
    assert_eq!(route.effects(&ledger).await, 1);
}

async fn at_once(route: Keyed, servers: [&Server; 2], target: &str, bodies: impl Iterator<Item = u64>) -> Vec<Answer> {
    let bodies: Vec<u64> = bodies.collect();
    let start = Arc::new(Barrier::new(bodies.len()));
    let tasks: Vec<_> = (bodies.into_iter().enumerate())
        .map(|(number, n)| {
            let (client, start, target) = ((**servers[number % 2]).clone(), start.clone(), target.to_owned());
            tokio::spawn(async move {
                start.wait().await;
                route.send(&client, &target, "the-key", n).await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

async fn copies_on_two_replicas_get_the_same_bytes_and_one_is_the_first(route: Keyed) {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let target = route.target(&one).await;
    let answers = at_once(route, [&one, &two], &target, (0..60).map(|_| 1)).await;
    let (first, replays): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.header("idempotent-replayed") == "false");
    assert_eq!(first.len(), 1);
    is_first(route, first[0]);
    replays.iter().for_each(|replay| is_replay_of(first[0], replay));
    assert_eq!(route.effects(&ledger).await, 1);
}

async fn of_four_requests_with_one_key_one_is_executed(route: Keyed) {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let target = route.target(&one).await;
    let answers = at_once(route, [&one, &two], &target, (0..40).map(|n| n % 4)).await;
    let mut refused = 0;
    for answer in &answers {
        if answer.status == 422 {
            answer.is_problem(422, "idempotency-key-reused");
            refused += 1;
        }
    }
    assert_eq!((refused, answers.len() - refused), (30, 10));
    assert_eq!(route.effects(&ledger).await, 1);
}

async fn a_connection_cut_before_or_after_the_commit_is_invisible(route: Keyed) {
    for fault in [Fault::CutBefore, Fault::CutAfter] {
        let ledger = Ledger::new().await;
        let proxy = Proxy::in_front_of(&ledger).await;
        let server = ledger.serve_through(&proxy, &[]).await;
        let target = route.target(&server).await;
        proxy.fail_next("the-key", fault);
        let first = route.send(&server, &target, "the-key", 1).await;
        assert!(proxy.is_done());
        is_first(route, &first);
        is_replay_of(&first, &route.send(&server, &target, "the-key", 1).await);
        assert_eq!(route.effects(&ledger).await, 1);
    }
}

async fn a_retry_with_the_same_key_resolves_an_unknown_outcome(route: Keyed) {
    let ledger = Ledger::new().await;
    let proxy = Proxy::in_front_of(&ledger).await;
    let server = ledger.serve_through(&proxy, &SHORT_DEADLINES).await;
    let target = route.target(&server).await;
    // The first attempt is committed and its acknowledgement lost. Then the network drops everything.
    proxy.fail_next("the-key", Fault::CutAfter);
    proxy.then_fail_after(0, "the-key", Fault::BlackHole);
    proxy.then_fail_after(0, "the-key", Fault::BlackHole);
    route.send(&server, &target, "the-key", 1).await.is_problem(503, "outcome-unknown");
    let told = route.send(&server, &target, "the-key", 1).await;
    assert_eq!((told.status, told.header("idempotent-replayed")), (200, "true"));
    assert_eq!(route.effects(&ledger).await, 1);
}

async fn an_expired_key_is_free(route: Keyed) {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let target = route.target(&server).await;
    route.send(&server, &target, "the-key", 1).await;
    ledger.expire("the-key").await;
    let second = route.send(&server, &target, "the-key", 2).await;
    if matches!(route, Keyed::Change) {
        // A key expires only after the end of its job, which then cannot be changed.
        return second.is_problem(409, "job-not-waiting");
    }
    is_first(route, &second);
    is_replay_of(&second, &route.send(&server, &target, "the-key", 2).await);
    assert_eq!((route.effects(&ledger).await, ledger.keys().await), (2, 1));
}

async fn one_key_in_two_tenants_is_two_keys(route: Keyed) {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let another = server.as_caller(&ledger.token_for("another", &Scope::ALL).await);
    for (caller, n) in [(&*server, 1), (&another, 2)] {
        let target = route.target(caller).await;
        is_first(route, &route.send(caller, &target, "the-key", n).await);
    }
    assert_eq!((route.effects(&ledger).await, ledger.keys().await), (2, 2));
}

async fn a_key_held_for_too_long_gets_409(route: Keyed) {
    let ledger = Ledger::new().await;
    let server = ledger.serve_with(&[("HAPAX__INTAKE__LOCK_WAIT", "100ms")]).await;
    let target = route.target(&server).await;
    let held = ledger.hold_key_of(route.route(), "the-key").await;
    let refused = route.send(&server, &target, "the-key", 1).await;
    refused.is_problem(409, "request-in-flight");
    assert_eq!(refused.header("retry-after"), "1");
    held.roll_back().await;
    is_first(route, &route.send(&server, &target, "the-key", 1).await);
}

async fn a_replay_survives_the_deletion_of_the_job(route: Keyed) {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let target = route.target(&server).await;
    let first = route.send(&server, &target, "the-key", 1).await;
    assert_eq!(server.delete(&first.job_id()).await.status, 204);
    is_replay_of(&first, &route.send(&server, &target, "the-key", 1).await);
}

async fn outcomes_of_keys_are_counted(route: Keyed) {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let target = route.target(&server).await;
    for n in [1, 1, 2] {
        route.send(&server, &target, "the-key", n).await;
    }
    let done = if route.first_status() == 201 { "created" } else { "changed" };
    for outcome in [done, "replayed", "mismatch"] {
        let name = format!(r#"hapax_idempotency_outcomes_total{{route="{}",outcome="{outcome}"}}"#, route.route());
        assert_eq!(server.metric(&name).await, 1.0, "{name}");
    }
}

macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        mod submission {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(super::Keyed::Submission).await;
                }
            )*
        }

        mod batch_item {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(super::Keyed::BatchItem).await;
                }
            )*
        }

        mod change {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(super::Keyed::Change).await;
                }
            )*
        }

        mod retry {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(super::Keyed::Retry).await;
                }
            )*
        }
    };
}

suite!(
    a_retry_on_another_replica_gets_the_same_bytes,
    a_different_request_with_the_key_gets_422_and_replays_continue,
    copies_on_two_replicas_get_the_same_bytes_and_one_is_the_first,
    of_four_requests_with_one_key_one_is_executed,
    a_connection_cut_before_or_after_the_commit_is_invisible,
    a_retry_with_the_same_key_resolves_an_unknown_outcome,
    an_expired_key_is_free,
    one_key_in_two_tenants_is_two_keys,
    a_key_held_for_too_long_gets_409,
    a_replay_survives_the_deletion_of_the_job,
    outcomes_of_keys_are_counted,
);
