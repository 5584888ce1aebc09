//! Property tests: for any order of requests and failures, an idempotency key behaves as a simple model says.

use std::cell::Cell;
use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::Runtime;

use crate::harness::{Answer, Fault, Ledger, Proxy, REPLAY_CACHE_ON, Server, job};

/// A request. There are few keys and bodies, so that requests collide.
#[derive(Clone, Debug)]
struct Request {
    replica: usize,
    key: usize,
    body: u64,
}

/// What happens before or during a round of requests.
#[derive(Clone, Debug)]
enum Event {
    Nothing,
    /// The key expires.
    Expiry(usize),
    /// The key expires and its row is deleted.
    Purge(usize),
    /// All requests of the round wait and then share a statement, as far as possible.
    SharedStatement,
    /// Another transaction holds the key until all requests have arrived, then rolls back.
    KeyHeld(usize),
    /// The connection is cut at a statement that contains the key.
    ConnectionCut(usize, Fault),
    /// All connections are lost.
    AllConnectionsLost,
}

type Round = (Event, Vec<Request>);

const KEYS: usize = 3;

fn rounds(events: BoxedStrategy<Event>) -> impl Strategy<Value = Vec<Round>> {
    let request = (0..2_usize, 0..KEYS, 0..2_u64).prop_map(|(replica, key, body)| Request { replica, key, body });
    prop::collection::vec((events, prop::collection::vec(request, 1..8)), 1..6)
}

fn events_without_expiry() -> BoxedStrategy<Event> {
    let fault = prop_oneof![Just(Fault::CutBefore), Just(Fault::CutAfter)];
    prop_oneof![
        2 => Just(Event::Nothing),
        3 => Just(Event::SharedStatement),
        1 => (0..KEYS).prop_map(Event::KeyHeld),
        2 => (0..KEYS, fault).prop_map(|(key, fault)| Event::ConnectionCut(key, fault)),
        1 => Just(Event::AllConnectionsLost),
    ]
    .boxed()
}

/// A test cannot expire a cached entry, so these events are for replicas without a replay cache.
fn events_with_expiry() -> BoxedStrategy<Event> {
    prop_oneof![
        4 => events_without_expiry(),
        3 => (0..KEYS).prop_map(Event::Expiry),
        1 => (0..KEYS).prop_map(Event::Purge),
    ]
    .boxed()
}

/// Two replicas on one database.
struct System {
    ledger: Ledger,
    proxy: Proxy,
    replicas: [Server; 2],
    /// The expected number of jobs.
    jobs: Cell<i64>,
}

/// The expected state of a key.
struct KeyState {
    body: u64,
    answer: Answer,
}

impl System {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let ledger = Ledger::new().await;
        let proxy = Proxy::in_front_of(&ledger).await;
        // Replacing an idle connection that died takes longer than the default acquire timeout on a busy machine, and
        // this test expects no 503.
        let own = [("HAPAX__INTAKE__WRITERS", "1"), ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "9s")];
        let settings = [settings, &own].concat();
        let replicas = [ledger.serve_through(&proxy, &settings).await, ledger.serve_through(&proxy, &settings).await];
        Self { ledger, proxy, replicas, jobs: Cell::new(0) }
    }

    async fn run_rounds(&self, rounds: &[Round]) -> Result<(), TestCaseError> {
        let run_id = uuid::Uuid::new_v4().simple();
        let keys: Vec<String> = (0..KEYS).map(|key| format!("{run_id}-{key}")).collect();
        let mut model: HashMap<usize, KeyState> = HashMap::new();
        for (event, requests) in rounds {
            if let Event::Expiry(key) | Event::Purge(key) = *event
                && model.remove(&key).is_some()
            {
                self.ledger.expire(&keys[key]).await;
                if let Event::Purge(_) = event {
                    self.ledger.execute("delete from idempotency_keys where expires_at <= clock_timestamp()").await;
                }
            }
            let is_free = |key| !model.contains_key(&key);
            let answers = self.send(event, requests, &keys, is_free).await;
            for key in 0..KEYS {
                let answers = requests.iter().zip(&answers).filter(|(request, _)| request.key == key);
                self.compare(&mut model, key, answers.map(|(request, answer)| (request.body, answer)).collect())?;
            }
        }
        prop_assert_eq!(self.ledger.jobs().await, self.jobs.get());
        prop_assert_eq!(self.ledger.number("select count(*) from job_states").await, self.jobs.get());
        Ok(())
    }

    async fn send(
        &self,
        event: &Event,
        requests: &[Request],
        keys: &[String],
        is_free: impl Fn(usize) -> bool,
    ) -> Vec<Answer> {
        let held = match event {
            Event::SharedStatement => Some(self.ledger.block_inserts().await),
            Event::KeyHeld(key) if is_free(*key) => Some(self.ledger.hold_key(&keys[*key]).await),
            _ => None,
        };
        if let Event::ConnectionCut(key, fault) = event {
            self.proxy.fail_next(&keys[*key], *fault);
        }
        let sent: Vec<_> = requests
            .iter()
            .map(|request| self.replicas[request.replica].submit_in_background(&keys[request.key], job(request.body)))
            .collect();
        if let Event::AllConnectionsLost = event {
            self.ledger.end_sessions().await;
        }
        if let Some(held) = held {
            for (number, replica) in self.replicas.iter().enumerate() {
                let its = || sent.iter().zip(requests).filter(|(_, request)| request.replica == number);
                let answered = || its().filter(|(sent, _)| sent.is_finished()).count();
                while replica.metric("hapax_http_requests_in_flight").await < (its().count() - answered()) as f64 {}
            }
            held.roll_back().await;
        }
        let mut answers = Vec::new();
        for request in sent {
            answers.push(request.await.expect("every request is answered"));
        }
        answers
    }

    /// Compares the answers for one key with the model: the first request creates the job, equal ones are replays,
    /// others are refused.
    fn compare(
        &self,
        model: &mut HashMap<usize, KeyState>,
        key: usize,
        answers: Vec<(u64, &Answer)>,
    ) -> Result<(), TestCaseError> {
        if answers.is_empty() {
            return Ok(());
        }
        let made: Vec<_> = answers.iter().filter(|(_, answer)| answer.status == 201).collect();
        prop_assert_eq!(made.len(), usize::from(!model.contains_key(&key)), "{:?}", answers);
        if let [(body, answer)] = made[..] {
            self.jobs.set(self.jobs.get() + 1);
            model.insert(key, KeyState { body: *body, answer: (*answer).clone() });
        }
        let expected = &model[&key];
        for (body, answer) in &answers {
            match answer.status {
                200 | 201 => {
                    prop_assert_eq!(*body, expected.body);
                    prop_assert_eq!(&answer.body, &expected.answer.body);
                    prop_assert_eq!(answer.header("location"), expected.answer.header("location"));
                    prop_assert_eq!(answer.header("idempotent-replayed"), (answer.status == 200).to_string());
                }
                422 => {
                    prop_assert!(*body != expected.body, "{:?}", answer);
                    prop_assert_eq!(&answer.json()["job_id"], &expected.answer.json()["id"]);
                }
                _ => prop_assert!(false, "{:?}", answer),
            }
        }
        Ok(())
    }
}

fn check_property(settings: &[(&str, &str)], events: BoxedStrategy<Event>) {
    let runtime = Runtime::new().unwrap();
    let system = runtime.block_on(System::new(settings));
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let played = runner.run(&rounds(events), |rounds| runtime.block_on(system.run_rounds(&rounds)));
    played.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn keys_match_the_model_without_a_replay_cache() {
    check_property(&[], events_with_expiry());
}

#[test]
fn keys_match_the_model_with_a_replay_cache() {
    check_property(&REPLAY_CACHE_ON, events_without_expiry());
}
