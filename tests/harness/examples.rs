use std::collections::BTreeSet;

use serde_json::Value as Json;
use yaml_serde::{Mapping, Value};

use super::{Answer, Contract};

/// What the contract lists for one status of one operation.
pub struct Response {
    /// Such as `submitJob 400`.
    pub name: String,
    pub method: String,
    /// The path template.
    pub path: String,
    pub status: u16,
    /// The problem codes that its schema lists.
    pub codes: BTreeSet<String>,
    pub examples: Vec<Example>,
}

/// An example of the contract, with its members in the original order.
pub struct Example {
    /// Such as `submitJob 400 invalid-job`, or `submitJob 409` if it is the only one.
    pub name: String,
    value: Value,
}

/// A path of the contract and its methods. HEAD is added where GET is listed.
pub struct Path {
    pub template: String,
    pub methods: BTreeSet<String>,
}

impl Path {
    /// The path with `id` in place of each placeholder.
    pub fn concrete(&self, id: &str) -> String {
        let segments = self.template.split('/').map(|segment| if segment.starts_with('{') { id } else { segment });
        segments.collect::<Vec<_>>().join("/")
    }
}

/// All paths of the contract.
pub fn paths() -> Vec<Path> {
    let document = document();
    let mut paths: Vec<Path> = Vec::new();
    for (template, method, _) in operations(&document) {
        match paths.last_mut().filter(|path| path.template == template) {
            Some(path) => drop(path.methods.insert(method)),
            None => paths.push(Path { template, methods: [method].into() }),
        }
    }
    for path in paths.iter_mut().filter(|path| path.methods.contains("GET")) {
        path.methods.insert("HEAD".to_owned());
    }
    paths
}

/// The responses of all operations.
pub fn responses() -> Vec<Response> {
    let document = document();
    let mut responses = Vec::new();
    for (path, method, operation) in operations(&document) {
        for (status, response) in operation["responses"].as_mapping().unwrap() {
            let status = status.as_str().unwrap();
            let name = format!("{} {status}", operation["operationId"].as_str().unwrap());
            let content = resolve(&document, response).get("content").map(only_content);
            responses.push(Response {
                method: method.clone(),
                path: path.clone(),
                status: status.parse().unwrap(),
                codes: content.map(|content| codes(&content["schema"])).unwrap_or_default(),
                examples: content.map_or_else(|| nothing(&name), |content| examples(&name, content)),
                name,
            });
        }
    }
    responses
}

/// The request bodies that the contract shows for an operation.
pub fn request_examples(operation_id: &str) -> Vec<Example> {
    let document = document();
    let (_, _, operation) =
        operations(&document).into_iter().find(|(.., operation)| operation["operationId"] == *operation_id).unwrap();
    // If there are several media types, the first one has the examples.
    examples("", operation["requestBody"]["content"].as_mapping().unwrap().values().next().unwrap())
}

/// The only media type's content.
fn only_content(content: &Value) -> &Value {
    let content = content.as_mapping().unwrap();
    assert_eq!(content.len(), 1, "one media type");
    content.values().next().unwrap()
}

/// The example of an answer without a body.
fn nothing(name: &str) -> Vec<Example> {
    vec![Example { name: name.to_owned(), value: Value::Null }]
}

/// The idempotency keys that the contract shows, as sent.
pub fn key_examples() -> Vec<String> {
    let document = document();
    let keys = examples("", &document["components"]["parameters"]["IdempotencyKey"]);
    keys.iter().map(|key| key.value.as_str().unwrap().to_owned()).collect()
}

impl Example {
    /// The example's JSON text.
    pub fn text(&self) -> String {
        serde_json::to_string(&self.value).unwrap()
    }

    /// The problem code, if it is a problem.
    pub fn code(&self) -> Option<&str> {
        self.value["code"].as_str()
    }

    /// The problem code, if it is the answer to a failed item of a batch.
    pub fn code_of_item(&self) -> Option<&str> {
        self.value.get("problem")?["code"].as_str()
    }

    /// How an answer's body differs from this example, apart from values that differ in each run.
    pub fn difference(&self, answer: &Answer) -> Option<String> {
        if self.value.is_null() {
            return (!answer.body.is_empty()).then(|| format!("{} has a body: {answer:?}", self.name));
        }
        let body = String::from_utf8(answer.body.to_vec()).unwrap();
        let body = match answer.header("content-type") {
            "application/yaml" => {
                let whole: Value = yaml_serde::from_str(&body).unwrap();
                serde_json::to_string(&excerpt(&whole, &self.value)).unwrap()
            }
            "text/html; charset=utf-8" => {
                let line = body.lines().find(|line| self.value == *line);
                serde_json::to_string(line.unwrap_or(&body)).unwrap()
            }
            _ => body,
        };
        let (shown, answered) = (without_generated_values(&self.text()), without_generated_values(&body));
        (shown != answered).then(|| format!("{}\n  is shown as {shown}\n  and answered {answered}", self.name))
    }
}

fn document() -> Value {
    yaml_serde::from_str(Contract::TEXT).unwrap()
}

/// Path template, method and operation.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_mapping().unwrap();
    let items = paths.iter().map(|(template, item)| (template.as_str().unwrap(), item.as_mapping().unwrap()));
    let operation = |template: &str, method: &Value| (template.to_owned(), method.as_str().unwrap().to_uppercase());
    items
        .flat_map(|(template, item)| item.iter().map(move |(method, value)| (operation(template, method), value)))
        .filter(|(_, value)| value.get("operationId").is_some())
        .map(|((template, method), value)| (template, method, value))
        .collect()
}

fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let Some(reference) = value.get("$ref") else { return value };
    let steps = reference.as_str().unwrap().strip_prefix("#/").unwrap().split('/');
    steps.fold(document, |value, step| &value[step])
}

fn codes(schema: &Value) -> BTreeSet<String> {
    let Some(code) = schema.get("properties").and_then(|members| members.get("code")) else { return BTreeSet::new() };
    let several = code.get("enum").and_then(Value::as_sequence).into_iter().flatten();
    code.get("const").into_iter().chain(several).map(|code| code.as_str().unwrap().to_owned()).collect()
}

fn examples(name: &str, content: &Value) -> Vec<Example> {
    let only = content.get("example").map(|value| Example { name: name.to_owned(), value: value.clone() });
    let several = content.get("examples").and_then(Value::as_mapping).into_iter().flatten();
    let named = several.map(|(called, example)| Example {
        name: format!("{name} {}", called.as_str().unwrap()).trim_start().to_owned(),
        value: example["value"].clone(),
    });
    only.into_iter().chain(named).collect()
}

/// The members of `whole` that `like` has. An empty value in `like` matches anything.
fn excerpt(whole: &Value, like: &Value) -> Value {
    match like.as_mapping() {
        None => whole.clone(),
        Some(members) => {
            let member = |(name, like): (&Value, &Value)| {
                let value = whole.get(name).unwrap_or_else(|| panic!("no {name:?}"));
                (name.clone(), excerpt(value, like))
            };
            Value::Mapping(members.iter().map(member).collect::<Mapping>())
        }
    }
}

/// A JSON text whose generated ids, times and ages are replaced by the names of their members, everywhere in the text.
fn without_generated_values(text: &str) -> String {
    const GENERATED: [&str; 13] = [
        "id",
        "job_id",
        "claim_id",
        "created_at",
        "run_at",
        "started_at",
        "cancel_requested_at",
        "ended_at",
        "finished_at",
        "instance",
        "at",
        "expires_at",
        "idempotency_expires",
    ];
    const AGE: &str = "oldest_age_seconds";
    let mut generated = Vec::new();
    members(&serde_json::from_str(text).unwrap(), &mut generated);
    generated.into_iter().fold(text.trim_end().to_owned(), |text, (name, value)| match &value {
        Json::String(value) if GENERATED.contains(&name.as_str()) => {
            let value = value.strip_prefix("urn:hapax:request:").unwrap_or(value);
            text.replace(value, &format!("<{name}>"))
        }
        // A bare number may occur anywhere.
        Json::Number(value) if name == AGE => {
            text.replace(&format!("\"{AGE}\":{value}"), &format!("\"{AGE}\":<{name}>"))
        }
        _ => text,
    })
}

/// The members of all objects in a value.
fn members(value: &Json, found: &mut Vec<(String, Json)>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        found.push((name.clone(), value.clone()));
        members(value, found);
    }
    value.as_array().into_iter().flatten().for_each(|value| members(value, found));
}
