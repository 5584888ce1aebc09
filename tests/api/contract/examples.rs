//! Every example of the document is what a server answers, and everything that a server answers has one.

use std::collections::{BTreeMap, BTreeSet};

use super::{circumstances, requests};
use crate::harness::{Answer, Contract, Response, request_examples, responses};

/// Codes that are documented and that no request is known to provoke. `bad-request` is what the framework would answer
/// by itself if it refused something before any code of ours saw it.
const UNPROVOKED: [&str; 1] = ["bad-request"];

/// Real answers, each under the name of the example that it should be like.
#[derive(Default)]
pub struct Answers(BTreeMap<String, Answer>);

impl Answers {
    pub fn got(&mut self, example: impl ToString, answer: Answer) {
        let before = self.0.insert(example.to_string(), answer);
        assert!(before.is_none(), "provoked twice: {}", example.to_string());
    }

    async fn to_everything() -> Self {
        let on_one_server = requests::all();
        let (limits, troubles) = (circumstances::limits(), circumstances::troubles());
        let (one, limits, troubles) = tokio::join!(on_one_server, limits, troubles);
        let mut all = Self::default();
        for (example, answer) in [one, limits, troubles].into_iter().flat_map(|answers| answers.0) {
            all.got(example, answer);
        }
        all
    }
}

#[tokio::test]
async fn every_example_is_what_a_server_answers() {
    let Answers(answers) = Answers::to_everything().await;
    let responses = responses();
    let shown = responses.iter().flat_map(|response| &response.examples).map(|example| &example.name);
    let (shown, provoked): (BTreeSet<_>, BTreeSet<_>) = (shown.collect(), answers.keys().collect());
    let (only_shown, only_provoked) = (&shown - &provoked, &provoked - &shown);
    let each_has_the_other = only_shown.is_empty() && only_provoked.is_empty();
    assert!(each_has_the_other, "nothing provokes {only_shown:?}, and no example shows {only_provoked:?}");
    let mut differences = Vec::new();
    for response in &responses {
        for example in &response.examples {
            let answer = &answers[&example.name];
            assert_eq!(answer.status, response.status, "{}: {answer:?}", example.name);
            Contract::get().holds(&response.method, &response.path, answer);
            differences.extend(example.difference(answer));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_status_and_every_code_that_is_documented_has_an_example() {
    let mut codes: BTreeSet<String> = UNPROVOKED.map(str::to_owned).into();
    for Response { name, codes: listed, examples, .. } in responses() {
        let shown: BTreeSet<String> = examples.iter().filter_map(|example| example.code()).map(str::to_owned).collect();
        assert!(!examples.is_empty() && shown == listed, "{name} lists {listed:?} and shows {shown:?}");
        codes.extend(listed);
        // What only an item of a batch is told is listed nowhere else.
        codes.extend(examples.iter().filter_map(|example| example.code_of_item()).map(str::to_owned));
    }
    assert_eq!(codes, Contract::get().codes());
}

#[test]
fn every_request_that_is_shown_has_its_answers_shown() {
    let requests: Vec<String> = request_examples("submitJob").into_iter().map(|example| example.name).collect();
    for operation in ["submitJob 201", "showJob 200"] {
        let response = responses().into_iter().find(|response| response.name == operation).unwrap();
        let shown: Vec<String> = response.examples.into_iter().map(|example| example.name).collect();
        let wanted: Vec<String> = requests.iter().map(|request| format!("{operation} {request}")).collect();
        assert_eq!(shown, wanted);
    }
}
