//! Whatever comes in whatever order, and whatever breaks meanwhile: a key means what a very simple model says.

use std::cell::Cell;
use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::Runtime;

use crate::harness::{Answer, Ledger, MEMORY, Proxy, Server, Treatment, job};

/// One request. Few keys and few bodies, so that they meet.
#[derive(Clone, Debug)]
struct Request {
    replica: usize,
    key: usize,
    body: u64,
}

/// What happens before or while the requests of a round are under way.
#[derive(Clone, Debug)]
enum Event {
    Nothing,
    /// The key's time is up.
    Expiry(usize),
    /// Its row is deleted when its time is up.
    Purge(usize),
    /// All requests of the round wait and then ride together, as far as they can.
    Crowd,
    /// Another's transaction holds the key until all have come, and comes to nothing.
    Held(usize),
    /// The connection that a statement with the key comes by is lost.
    Cut(usize, Treatment),
    /// All connections are lost, whatever they are at.
    EveryConnectionLost,
}

type Round = (Event, Vec<Request>);

const KEYS: usize = 3;

fn rounds(events: BoxedStrategy<Event>) -> impl Strategy<Value = Vec<Round>> {
    let request = (0..2_usize, 0..KEYS, 0..2_u64).prop_map(|(replica, key, body)| Request { replica, key, body });
    prop::collection::vec((events, prop::collection::vec(request, 1..8)), 1..6)
}

fn events_that_every_replica_survives() -> BoxedStrategy<Event> {
    let treatment = prop_oneof![Just(Treatment::CutBefore), Just(Treatment::CutAfter)];
    prop_oneof![
        2 => Just(Event::Nothing),
        3 => Just(Event::Crowd),
        1 => (0..KEYS).prop_map(Event::Held),
        2 => (0..KEYS, treatment).prop_map(|(key, treatment)| Event::Cut(key, treatment)),
        1 => Just(Event::EveryConnectionLost),
    ]
    .boxed()
}

/// What a replica remembers cannot be made to expire by a test, so these are for those that remember nothing.
fn events_with_expiry() -> BoxedStrategy<Event> {
    prop_oneof![
        4 => events_that_every_replica_survives(),
        3 => (0..KEYS).prop_map(Event::Expiry),
        1 => (0..KEYS).prop_map(Event::Purge),
    ]
    .boxed()
}

/// Two replicas on one database, and what can be done to them.
struct World {
    ledger: Ledger,
    proxy: Proxy,
    replicas: [Server; 2],
    /// The jobs that are there by rights.
    jobs: Cell<i64>,
}

/// What a key stands for.
struct Meaning {
    body: u64,
    answer: Answer,
}

impl World {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let ledger = Ledger::new().await;
        let proxy = Proxy::before(&ledger).await;
        // A connection that died idle is replaced before anything is sent, which on a busy machine takes longer than the
        // default acquire timeout; what is compared here is never a 503.
        let own = [("HAPAX__INTAKE__WRITERS", "1"), ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "9s")];
        let settings = [settings, &own].concat();
        let replicas = [ledger.serve_through(&proxy, &settings).await, ledger.serve_through(&proxy, &settings).await];
        Self { ledger, proxy, replicas, jobs: Cell::new(0) }
    }

    async fn plays(&self, rounds: &[Round]) -> Result<(), TestCaseError> {
        let story = uuid::Uuid::new_v4().simple();
        let keys: Vec<String> = (0..KEYS).map(|key| format!("{story}-{key}")).collect();
        let mut model: HashMap<usize, Meaning> = HashMap::new();
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
        prop_assert_eq!(self.ledger.number("select count(*) from job_queue").await, self.jobs.get());
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
            Event::Crowd => Some(self.ledger.lock_table("idempotency_keys", "share").await),
            Event::Held(key) if is_free(*key) => Some(self.ledger.hold_key(&keys[*key]).await),
            _ => None,
        };
        if let Event::Cut(key, treatment) = event {
            self.proxy.treat_next(&keys[*key], *treatment);
        }
        let sent: Vec<_> = requests
            .iter()
            .map(|request| self.replicas[request.replica].submit_meanwhile(&keys[request.key], job(request.body)))
            .collect();
        if let Event::EveryConnectionLost = event {
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
            answers.push(request.await.expect("it is answered"));
        }
        answers
    }

    /// One key: who comes first makes the job, and all others are told so, or that they are not meant.
    fn compare(
        &self,
        model: &mut HashMap<usize, Meaning>,
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
            model.insert(key, Meaning { body: *body, answer: (*answer).clone() });
        }
        let meaning = &model[&key];
        for (body, answer) in &answers {
            match answer.status {
                200 | 201 => {
                    prop_assert_eq!(*body, meaning.body);
                    prop_assert_eq!(&answer.body, &meaning.answer.body);
                    prop_assert_eq!(answer.header("location"), meaning.answer.header("location"));
                    prop_assert_eq!(answer.header("idempotent-replayed"), (answer.status == 200).to_string());
                }
                422 => {
                    prop_assert!(*body != meaning.body, "{:?}", answer);
                    prop_assert_eq!(&answer.json()["job_id"], &meaning.answer.json()["id"]);
                }
                _ => prop_assert!(false, "{:?}", answer),
            }
        }
        Ok(())
    }
}

fn holds_for(settings: &[(&str, &str)], events: BoxedStrategy<Event>) {
    let runtime = Runtime::new().unwrap();
    let world = runtime.block_on(World::new(settings));
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let played = runner.run(&rounds(events), |rounds| runtime.block_on(world.plays(&rounds)));
    played.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_key_means_what_the_model_says_on_replicas_that_remember_nothing() {
    holds_for(&[], events_with_expiry());
}

#[test]
fn a_key_means_what_the_model_says_on_replicas_that_remember() {
    holds_for(&MEMORY, events_that_every_replica_survives());
}
