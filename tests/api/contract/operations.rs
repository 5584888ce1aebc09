//! All operations, each with a valid request.

use crate::harness::{Answer, Client};

/// Operations that read and have no query parameter, each with a path.
pub const READS: [(&str, &str); 7] = [
    ("about", "/"),
    ("health", "/healthz"),
    ("readiness", "/readyz"),
    ("contract", "/openapi.yaml"),
    ("page", "/docs"),
    ("problem", "/problems/job-not-found"),
    ("listAttempts", "/jobs/01a20053-d957-7108-af22-b2e931e75377/attempts"),
];

/// Operations that list.
pub const LISTS: [(&str, &str); 3] = [("listJobs", "/jobs"), ("listQueues", "/queues"), ("listClaims", "/claims")];

/// Operations that show a tenant's data.
pub const READS_OF_A_TENANT: [(&str, &str); 7] = [
    ("showJob", "/jobs/01a20053-d957-7108-af22-b2e931e75377"),
    ("listAttempts", "/jobs/01a20053-d957-7108-af22-b2e931e75377/attempts"),
    ("showClaim", "/claims/7d1f2f0e-0d0c-4f6b-9b7e-6a4f1c2e8a55"),
    ("listClaims", "/claims"),
    ("listJobs", "/jobs"),
    ("listQueues", "/queues"),
    ("showKey", "/idempotency-keys/k"),
];

/// An operation that writes.
#[derive(Clone, Copy)]
pub struct Write {
    pub name: &'static str,
    pub method: &'static str,
    /// `{id}` stands for the id of a job or a claim.
    pub template: &'static str,
    pub headers: &'static [(&'static str, &'static str)],
    pub body: &'static str,
    /// Whether database failures are reported per item.
    pub by_item: bool,
    /// A text that identifies its statement on the wire, when a session prepares it.
    pub marker: &'static str,
}

const JSON: (&str, &str) = ("content-type", "application/json");
const MERGE_PATCH: (&str, &str) = ("content-type", "application/merge-patch+json");

pub const WRITES: [Write; 11] = [
    Write {
        name: "submitJob",
        method: "POST",
        template: "/jobs",
        headers: &[("idempotency-key", "the-key"), JSON],
        body: r#"{"type":"t","payload":"the-payload"}"#,
        by_item: false,
        marker: "the-key",
    },
    Write {
        name: "putJob",
        method: "PUT",
        template: "/jobs/{id}",
        headers: &[JSON],
        body: r#"{"type":"t","payload":"the-payload"}"#,
        by_item: false,
        marker: "the-payload",
    },
    Write {
        name: "changeJob",
        method: "PATCH",
        template: "/jobs/{id}",
        headers: &[("if-match", "*"), MERGE_PATCH],
        body: r#"{"priority":1}"#,
        by_item: false,
        marker: "hapax.patch(",
    },
    Write {
        name: "deleteJob",
        method: "DELETE",
        template: "/jobs/{id}",
        headers: &[],
        body: "",
        by_item: false,
        marker: "hapax.delete(",
    },
    Write {
        name: "cancelJob",
        method: "POST",
        template: "/jobs/{id}/cancel",
        headers: &[],
        body: "",
        by_item: false,
        marker: "hapax.cancel(",
    },
    Write {
        name: "retryJob",
        method: "POST",
        template: "/jobs/{id}/retry",
        headers: &[("idempotency-key", "the-retry")],
        body: "",
        by_item: false,
        marker: "hapax.retry(",
    },
    Write {
        name: "claimJobs",
        method: "PUT",
        template: "/claims/{id}",
        headers: &[JSON],
        body: r#"{"queues":["default"]}"#,
        by_item: false,
        marker: "hapax.claim(",
    },
    Write {
        name: "releaseClaim",
        method: "DELETE",
        template: "/claims/{id}",
        headers: &[],
        body: "",
        by_item: false,
        marker: "hapax.release(",
    },
    Write {
        name: "extendClaim",
        method: "POST",
        template: "/claims/{id}/heartbeat",
        headers: &[],
        body: "",
        by_item: false,
        marker: "hapax.heartbeat(",
    },
    Write {
        name: "reportResults",
        method: "POST",
        template: "/claims/{id}/results",
        headers: &[JSON],
        body: r#"{"results":[{"job_id":"01a20053-d957-7108-af22-b2e931e75377","outcome":"succeeded"}]}"#,
        by_item: false,
        marker: "hapax.settle(",
    },
    Write {
        name: "submitBatch",
        method: "POST",
        template: "/jobs/batch",
        headers: &[("content-type", "application/x-ndjson")],
        body: r#"{"idempotency_key":"k","job":{"type":"t","payload":1}}"#,
        by_item: true,
        marker: "",
    },
];

/// The operations on a claim.
pub fn of_claims() -> impl Iterator<Item = Write> {
    WRITES.into_iter().filter(|write| write.template.starts_with("/claims/"))
}

/// Operations that report database failures for the whole request.
pub fn wholes() -> impl Iterator<Item = Write> {
    WRITES.into_iter().filter(|write| !write.by_item)
}

impl Write {
    pub fn path(&self, id: &str) -> String {
        self.template.replace("{id}", id)
    }

    pub fn takes_body(&self) -> bool {
        !self.body.is_empty()
    }

    pub fn request(&self, client: &Client, path: &str) -> reqwest::RequestBuilder {
        let request = client.request(self.method, path).body(self.body);
        self.headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
    }

    /// Sends the request for a job or a claim.
    pub async fn send(&self, client: &Client, id: &str) -> Answer {
        client.send(self.request(client, &self.path(id))).await
    }

    /// Sends the head by hand, with these header lines instead of the usual ones.
    pub async fn send_raw(&self, client: &Client, id: &str, lines: &[&str], body: &str) -> Answer {
        let media_type = |name: &str| lines.iter().any(|line| line.starts_with(&format!("{name}:")));
        let own: Vec<String> = self
            .headers
            .iter()
            .filter(|(name, _)| !media_type(name))
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        let head: Vec<&[u8]> =
            own.iter().map(String::as_bytes).chain(lines.iter().map(|line| line.as_bytes())).collect();
        let mut connection = client.raw().await;
        connection.write_head(&format!("{} {}", self.method, self.path(id)), &head).await;
        connection.write(body.as_bytes()).await;
        connection.answer().await
    }
}

/// An id that no job and no claim has.
pub fn no_job() -> String {
    uuid::Uuid::now_v7().to_string()
}
