//! The answer to a request that has a problem: the document (RFC 9457) and its headers.

use actix_web::HttpResponse;
use actix_web::http::header;
use serde::Serialize;

use super::problem::{Problem, Unauthenticated};
use super::problem_table::Kind;
use super::routes::PROBLEMS;
use crate::ids::{JobId, RequestId};
use crate::jobs::etag;

#[derive(Serialize)]
pub struct ProblemDocument {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    instance: String,
    code: &'static str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<JobId>,
    /// JSON Pointers (RFC 6901) into the request's body.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) pointers: Vec<String>,
    /// The names of the quotas that are used up (draft-ietf-httpapi-ratelimit-headers-11).
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<&'static str>,
}

impl Problem {
    /// The document and its headers.
    pub fn response(&self, request_id: &RequestId, public_url: &str) -> HttpResponse {
        let document = self.document(request_id, public_url);
        let mut response = HttpResponse::build(self.status());
        if let Some(seconds) = self.retry_after() {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        match self {
            Self::Unauthenticated(Unauthenticated::Missing) => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"hapax\""))
            }
            Self::Unauthenticated(_) => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"hapax\", error=\"invalid_token\""))
            }
            Self::MissingScope(scope) => {
                let challenge =
                    format!("Bearer realm=\"hapax\", error=\"insufficient_scope\", scope=\"{}\"", scope.name());
                response.insert_header((header::WWW_AUTHENTICATE, challenge))
            }
            Self::MethodNotAllowed { allow } => response.insert_header((header::ALLOW, allow.as_str())),
            Self::UnsupportedMediaType { taken, told_in } => response.insert_header((told_in.clone(), *taken)),
            Self::PreconditionFailed { version, .. } => response.insert_header((header::ETAG, etag(*version))),
            Self::UnsupportedContentEncoding => response.insert_header((header::ACCEPT_ENCODING, "identity")),
            _ => &mut response,
        };
        let mut text = serde_json::to_vec(&document).expect("a problem's members all have a JSON form");
        text.push(b'\n');
        response.insert_header((header::CONTENT_TYPE, "application/problem+json")).body(text)
    }

    /// The document without headers. `public_url` is the prefix of its `type`, as of every URL in an answer.
    pub fn document(&self, request_id: &RequestId, public_url: &str) -> ProblemDocument {
        let Kind { code, title, .. } = self.kind();
        ProblemDocument {
            // A relative reference has the full path (RFC 9457, section 3.1.1). ADR 0029.
            kind: format!("{public_url}{PROBLEMS}/{code}"),
            title,
            status: self.status().as_u16(),
            detail: self.detail(),
            instance: format!("urn:hapax:request:{request_id}"),
            code,
            retryable: self.is_retryable(),
            job_id: match self {
                Self::KeyReused { job_id, .. }
                | Self::JobExists { job_id, .. }
                | Self::JobNotWaiting { job_id, .. }
                | Self::JobNotFinished { job_id, .. }
                | Self::ContentTaken { job_id }
                | Self::PreconditionFailed { job_id, .. } => Some(*job_id),
                _ => None,
            },
            pointers: match self {
                Self::KeyReused { pointers, .. } | Self::JobExists { pointers, .. } => pointers.clone(),
                Self::InvalidJob(error) | Self::InvalidClaim(error) | Self::InvalidResults(error) => {
                    vec![error.pointer.clone()]
                }
                Self::ResultTooLarge { pointer, .. } => vec![pointer.clone()],
                _ => Vec::new(),
            },
            violated_policies: match self {
                Self::QuotaExceeded(quota_status) => vec![quota_status.policy.name],
                _ => Vec::new(),
            },
        }
    }
}
