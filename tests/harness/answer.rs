use std::collections::BTreeMap;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde_json::Value;
use serde_json::value::RawValue;

/// A complete HTTP response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.bytes().await.unwrap() }
    }

    /// The value of a header. Fails unless it occurs exactly once.
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().unwrap_or_else(|| panic!("no header {name} in {self:?}"));
        assert!(values.next().is_none(), "header {name} occurs twice");
        value.to_str().unwrap()
    }

    /// Asserts that the answer is retryable after 1 to 3 s.
    #[track_caller]
    pub fn assert_retry_after(&self) {
        let seconds: u64 = self.header("retry-after").parse().unwrap();
        assert!((1..=3).contains(&seconds) && self.json()["retryable"] == true, "{self:?}");
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The answers to the items of a batch, each as if it had been a request of its own.
    pub fn items(&self) -> Vec<Self> {
        assert_eq!((self.status, self.header("content-type")), (200, "application/x-ndjson"), "{self:?}");
        self.body
            .split_inclusive(|byte| *byte == b'\n')
            .enumerate()
            .map(|(number, line)| self.item(number, line))
            .collect()
    }

    fn item(&self, number: usize, line: &[u8]) -> Self {
        let members: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(line).unwrap();
        let text = |name: &str| members.get(name).map(|value| value.get().trim_matches('"').to_owned());
        assert_eq!(text("item").unwrap(), number.to_string());
        let content_type = if members.contains_key("job") { "application/json" } else { "application/problem+json" };
        let mut headers = HeaderMap::new();
        headers.insert("content-type", content_type.parse().unwrap());
        headers.insert("x-request-id", self.headers["x-request-id"].clone());
        for name in ["location", "idempotent-replayed", "idempotency-expires", "deduplicated-by", "retry-after"] {
            if let Some(value) = text(&name.replace('-', "_")) {
                headers.insert(name, value.parse().unwrap());
            }
        }
        let body = members.get("job").or_else(|| members.get("problem")).unwrap().get().to_owned() + "\n";
        Self { status: text("status").unwrap().parse().unwrap(), headers, body: body.into() }
    }

    pub fn job_id(&self) -> String {
        self.json()["id"].as_str().unwrap().to_owned()
    }

    /// Asserts that the answer is a consistent problem document, and returns its code.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let document = self.json();
        let code = document["code"].as_str().unwrap().to_owned();
        assert_eq!(document["status"], self.status);
        let path = format!("/problems/{code}");
        let kind = document["type"].as_str().unwrap();
        assert!(kind == path || (kind.starts_with("https://") && kind.ends_with(&path)), "{self:?}");
        assert_eq!(document["instance"], format!("urn:hapax:request:{}", self.header("x-request-id")));
        assert!(document["retryable"].is_boolean() && document["title"].is_string() && document["detail"].is_string());
        let retryable = document["retryable"] == true;
        assert_eq!(
            self.headers.contains_key("retry-after"),
            retryable,
            "retryable and Retry-After go together: {self:?}"
        );
        let words = document.to_string().to_lowercase();
        for leak in ["sqlx", "postgres", "relation", "constraint", "syntax error", "panicked"] {
            assert!(!words.contains(leak), "{leak} in {words}");
        }
        code
    }

    /// Asserts a problem with this status and code.
    #[track_caller]
    pub fn is_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.problem().as_str()), (status, code), "{self:?}");
    }
}
