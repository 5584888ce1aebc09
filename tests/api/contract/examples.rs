//! Every example of the contract matches a real answer, and every kind of answer has an example.

use std::collections::{BTreeMap, BTreeSet};

use super::{circumstances, requests};
use crate::harness::{Answer, Contract, Response, request_examples, responses};

/// Documented codes that no request is known to cause. `bad-request` is the framework's answer if it refused a request
/// before our code saw it.
const NOT_PROVOKED: [&str; 1] = ["bad-request"];

/// Real answers, by the name of the matching example.
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
async fn every_example_matches_a_real_answer() {
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
            Contract::get().check(&response.method, &response.path, answer);
            differences.extend(example.difference(answer));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_documented_status_and_code_has_an_example() {
    let mut codes: BTreeSet<String> = NOT_PROVOKED.map(str::to_owned).into();
    for Response { name, codes: listed, examples, .. } in responses() {
        let shown: BTreeSet<String> = examples.iter().filter_map(|example| example.code()).map(str::to_owned).collect();
        assert!(!examples.is_empty() && shown == listed, "{name} lists {listed:?} and shows {shown:?}");
        codes.extend(listed);
        // Codes that occur only in items of a batch.
        codes.extend(examples.iter().filter_map(|example| example.code_of_item()).map(str::to_owned));
    }
    assert_eq!(codes, Contract::get().codes());
}

#[test]
fn every_example_request_has_example_answers() {
    let requests: Vec<String> = request_examples("submitJob").into_iter().map(|example| example.name).collect();
    for operation in ["submitJob 201", "showJob 200"] {
        let response = responses().into_iter().find(|response| response.name == operation).unwrap();
        let shown: Vec<String> = response.examples.into_iter().map(|example| example.name).collect();
        let wanted: Vec<String> = requests.iter().map(|request| format!("{operation} {request}")).collect();
        assert_eq!(shown, wanted);
    }
}
