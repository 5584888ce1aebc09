use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jsonschema::Validator;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Answer;

/// The OpenAPI contract. Every answer to a test's client is checked against it.
pub struct Contract {
    document: Value,
    /// Keyed by the schema's text.
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

/// Headers that HTTP itself adds. The contract does not list them.
const UNDOCUMENTED_HEADERS: [&str; 5] = ["content-length", "content-type", "date", "connection", "transfer-encoding"];

impl Contract {
    pub const TEXT: &str = include_str!("../../api-design/jobs-api.yaml");

    pub fn get() -> &'static Self {
        static CONTRACT: OnceLock<Contract> = OnceLock::new();
        CONTRACT
            .get_or_init(|| Self { document: yaml_serde::from_str(Self::TEXT).unwrap(), validators: Mutex::default() })
    }

    /// Asserts that the contract documents this answer: its status, its headers and its body.
    pub fn check(&self, method: &str, path: &str, answer: &Answer) {
        let Some((template, operations)) = self.operations(path) else {
            answer.is_problem(404, "route-not-found");
            return;
        };
        let case = format!("{method} {path}: {answer:?}");
        let method = method.to_lowercase();
        let documented = |method: &&str| operations.contains_key(*method);
        let operation = [method.as_str()].into_iter().find(documented).or_else(|| {
            // An unsupported method is documented with a supported one.
            answer.is_problem(405, "method-not-allowed");
            ["get", "post"].into_iter().find(documented)
        });
        let (template, operation) = (template.replace('/', "~1"), operation.unwrap());
        let place = format!("/paths/{template}/{operation}/responses/{}", answer.status);
        let (pointer, response) = self.resolve(place);
        assert!(response.is_object(), "the status is not in the contract: {case}");
        self.header_fields(response, answer, &case);
        self.body(pointer, response, answer, &case);
    }

    /// All problem codes.
    pub fn codes(&self) -> BTreeSet<String> {
        let codes = self.document.pointer("/components/schemas/ProblemCode/enum").unwrap();
        codes.as_array().unwrap().iter().map(|code| code.as_str().unwrap().to_owned()).collect()
    }

    fn operations(&self, path: &str) -> Option<(&str, &Map<String, Value>)> {
        let path = path.split('?').next().unwrap();
        let fits = |template: &str| {
            let (asked, known): (Vec<_>, Vec<_>) = (path.split('/').collect(), template.split('/').collect());
            let same = |(asked, known): (&&str, &&str)| asked == known || (known.starts_with('{') && !asked.is_empty());
            asked.len() == known.len() && asked.iter().zip(&known).all(same)
        };
        let paths = self.document["paths"].as_object().unwrap();
        // The template with fewer placeholders matches better.
        let fitting = paths.iter().filter(|(template, _)| fits(template));
        let (template, operations) = fitting.min_by_key(|(template, _)| template.matches('{').count())?;
        Some((template, operations.as_object().unwrap()))
    }

    fn header_fields(&self, response: &Value, answer: &Answer, case: &str) {
        let documented = response["headers"].as_object().cloned().unwrap_or_default();
        let mut known: BTreeSet<String> = UNDOCUMENTED_HEADERS.map(str::to_owned).into();
        for (name, header) in documented {
            let header = header["$ref"].as_str().map_or(&header, |to| self.document.pointer(&to[1..]).unwrap());
            let value = answer.headers.get(&name).map(|value| value.to_str().unwrap());
            assert!(value.is_some() || header["required"] != true, "{name} is missing: {case}");
            if let Some(value) = value {
                let number = value.parse::<u64>().map(Value::from);
                let typed = if header["schema"]["type"] == "integer" { number.unwrap() } else { value.into() };
                self.validate(header["schema"].clone(), &typed, case);
            }
            known.insert(name.to_lowercase());
        }
        let sent: BTreeSet<String> = answer.headers.keys().map(|name| name.as_str().to_owned()).collect();
        assert!(sent.is_subset(&known), "not in the contract: {:?}: {case}", sent.difference(&known));
    }

    fn body(&self, pointer: String, response: &Value, answer: &Answer, case: &str) {
        if response.get("content").is_none() {
            assert!(answer.body.is_empty(), "a body is not in the contract: {case}");
            return;
        }
        let media_type = answer.header("content-type");
        assert!(response["content"].get(media_type).is_some(), "{media_type} is not in the contract: {case}");
        if media_type == "application/x-ndjson" {
            let place = format!("{pointer}/content/application~1x-ndjson/schema");
            for line in answer.body.split_inclusive(|byte| *byte == b'\n') {
                let line = serde_json::from_slice(line).unwrap();
                self.validate(json!({ "$ref": format!("{CONTRACT}#{place}") }), &line, case);
            }
        } else if media_type.ends_with("json") {
            assert!(answer.body.ends_with(b"\n"), "no newline at the end: {case}");
            let place = format!("{pointer}/content/{}/schema", media_type.replace('/', "~1"));
            let place = place.replace('{', "%7B").replace('}', "%7D");
            let body: &RawValue = serde_json::from_slice(&answer.body).unwrap();
            // A payload may hold numbers that no parser can represent.
            if let Ok(body) = serde_json::from_str(body.get()) {
                self.validate(json!({ "$ref": format!("{CONTRACT}#{place}") }), &body, case);
            }
        }
    }

    fn validate(&self, schema: Value, value: &Value, case: &str) {
        let validator = self.validator(schema);
        let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}: {case}");
    }

    /// Compiled once for all tests, because compiling takes longer than most requests.
    fn validator(&self, schema: Value) -> Arc<Validator> {
        let mut validators = self.validators.lock().unwrap_or_else(PoisonError::into_inner);
        let compile = || {
            let registry = jsonschema::Registry::new().add(CONTRACT, &self.document).unwrap().prepare().unwrap();
            let options = jsonschema::options().with_registry(&registry).should_validate_formats(true);
            Arc::new(options.build(&schema).unwrap())
        };
        Arc::clone(validators.entry(schema.to_string()).or_insert_with(compile))
    }

    /// The value at a place, with a reference resolved, and the resulting place.
    fn resolve(&self, place: String) -> (String, &Value) {
        let value = self.document.pointer(&place).unwrap_or(&Value::Null);
        match value["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
            Some(target) => (target.to_owned(), self.document.pointer(target).unwrap()),
            None => (place, value),
        }
    }
}

const CONTRACT: &str = "urn:hapax:contract";
