//! Every kind of problem: its status, code and title, and what a reader needs to know about it.
//!
//! `docs/errors.md` and the pages at `/problems/{code}` come from this table. [`Problem`](super::Problem) says which errors
//! are of which kind.

use std::fmt::Write;

use actix_web::http::StatusCode;

/// The fixed part of a problem. A released code is never renamed.
#[derive(Debug)]
pub struct Kind {
    pub status: StatusCode,
    pub code: &'static str,
    pub title: &'static str,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    pub meaning: &'static str,
    pub cause: &'static str,
    pub action: &'static str,
}

/// All kinds, in the order of their codes.
pub const KINDS: [&Kind; 48] = [
    &BAD_REQUEST,
    &BODY_TOO_LARGE,
    &BROKEN_BODY,
    &CLAIM_ENDED,
    &CLAIM_EXISTS_WITH_OTHER_CONTENT,
    &CLAIM_NOT_FOUND,
    &CONTENT_TAKEN,
    &DATABASE_UNAVAILABLE,
    &FIRST_SENT_TOO_OLD,
    &IDEMPOTENCY_KEY_REQUIRED,
    &IDEMPOTENCY_KEY_REUSED,
    &INTERNAL_ERROR,
    &INVALID_BATCH,
    &INVALID_CLAIM,
    &INVALID_CLAIM_ID,
    &INVALID_FIRST_SENT,
    &INVALID_IDEMPOTENCY_KEY,
    &INVALID_IF_MATCH,
    &INVALID_ITEM,
    &INVALID_JOB,
    &INVALID_JOB_ID,
    &INVALID_JSON,
    &INVALID_PARAMETER,
    &INVALID_RESULTS,
    &JOB_DELETED,
    &JOB_EXISTS_WITH_OTHER_CONTENT,
    &JOB_NOT_FINISHED,
    &JOB_NOT_FOUND,
    &JOB_NOT_WAITING,
    &KEY_NOT_FOUND,
    &METHOD_NOT_ALLOWED,
    &MISSING_SCOPE,
    &NOT_READY,
    &OUTCOME_UNKNOWN,
    &OVERLOADED,
    &PRECONDITION_FAILED,
    &PRECONDITION_REQUIRED,
    &QUOTA_EXCEEDED,
    &REQUEST_IN_FLIGHT,
    &REQUEST_TIMEOUT,
    &RESULT_TOO_LARGE,
    &ROUTE_NOT_FOUND,
    &STATEMENT_TIMEOUT,
    &UNAUTHENTICATED,
    &UNKNOWN_PARAMETER,
    &UNSUPPORTED_CONDITION,
    &UNSUPPORTED_CONTENT_ENCODING,
    &UNSUPPORTED_MEDIA_TYPE,
];

pub const BAD_REQUEST: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "bad-request",
    title: "The request could not be read",
    retryable: false,
    meaning: "The server's HTTP library refused the request before Hapax read it. The status may also be another 4xx \
              or a 5xx; a 5xx is retryable.",
    cause: "The request is malformed, or it came on a connection behind a request with `Connection: close`.",
    action: "Compare the request with the contract. Send nothing more on a connection after `Connection: close`.",
};

pub const BODY_TOO_LARGE: Kind = Kind {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    code: "body-too-large",
    title: "The body is too large",
    retryable: false,
    meaning: "The body, or the job in a line of a batch, is larger than the limit. `detail` has the limit in bytes. \
              Nothing was written.",
    cause: "The payload is too large. The operator sets the limit (`server.body_limit_bytes`).",
    action: "Send less. Store large data elsewhere, and send a reference to it in the payload.",
};

pub const BROKEN_BODY: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "broken-body",
    title: "The body could not be read",
    retryable: true,
    meaning: "The body ended early or its transfer coding is malformed. Nothing was written, and the connection is \
              closed.",
    cause: "The connection broke, the client ended too early, or `Content-Length` is larger than the body.",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one. If it \
             fails every time, check how the client computes `Content-Length` or the chunks.",
};

pub const CLAIM_ENDED: Kind = Kind {
    status: StatusCode::GONE,
    code: "claim-ended",
    title: "The claim has ended",
    retryable: false,
    meaning: "The claim holds no job. It was released, all its jobs are finished, or its lease expired and its jobs \
              were queued again.",
    cause: "The worker released the claim, or was too slow with its heartbeats. A heartbeat for an id that was never \
            used gets the same answer.",
    action: "Stop the work on its jobs. Make a new claim with a new id.",
};

pub const CLAIM_EXISTS_WITH_OTHER_CONTENT: Kind = Kind {
    status: StatusCode::CONFLICT,
    code: "claim-exists-with-other-content",
    title: "The claim id belongs to another claim",
    retryable: false,
    meaning: "An earlier claim with other content has this id. Nothing was claimed.",
    cause: "The worker used one id for two claims, or changed its request before it repeated it. `wait_seconds` may \
            change.",
    action: "Send a new id with a new claim. To repeat the earlier request, send its content unchanged.",
};

pub const CLAIM_NOT_FOUND: Kind = Kind {
    status: StatusCode::NOT_FOUND,
    code: "claim-not-found",
    title: "The claim does not exist",
    retryable: false,
    meaning: "Your tenant has no claim with this id.",
    cause: "The claim found no job, so it was not stored; or it ended more than an hour ago; or the id is wrong.",
    action: "Check the id and the access token.",
};

pub const CONTENT_TAKEN: Kind = Kind {
    status: StatusCode::CONFLICT,
    code: "content-taken",
    title: "Another active job has the same content",
    retryable: false,
    meaning: "The job is unique by its content, and another active job has that content now. Nothing was changed.",
    cause: "After this job had ended, another one was submitted with the same content.",
    action: "Retry the job when the other one is over, or leave it.",
};

pub const DATABASE_UNAVAILABLE: Kind = Kind {
    status: StatusCode::SERVICE_UNAVAILABLE,
    code: "database-unavailable",
    title: "The database is not available",
    retryable: true,
    meaning: "The database is not reachable, did not accept the statement, or does not have the schema that this \
              release needs. This attempt wrote nothing. An earlier attempt with the same idempotency key may be \
              committed.",
    cause: "A failover, a restart or an outage of the database. If `detail` names the schema, the operator has not \
            run `hapax migrate`.",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one. \
             Operators: see the runbook.",
};

pub const FIRST_SENT_TOO_OLD: Kind = Kind {
    status: StatusCode::PRECONDITION_FAILED,
    code: "first-sent-too-old",
    title: "The idempotency key may have expired",
    retryable: false,
    meaning: "The request was not carried out. Its idempotency key may have expired, so the server does not know \
              whether an earlier attempt succeeded.",
    cause: "`Repeatability-First-Sent` is longer ago than keys live, and no answer is stored under the key.",
    action: "Look for the job that an earlier attempt may have created. If you need a new job, send a new request \
             with a new key.",
};

pub const IDEMPOTENCY_KEY_REQUIRED: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "idempotency-key-required",
    title: "Idempotency-Key is missing",
    retryable: false,
    meaning: "`POST /jobs` requires an `Idempotency-Key`. In a batch, each item requires the member `idempotency_key`.",
    cause: "The client did not send a key, or a proxy removed the header field.",
    action: "Send a unique value for each new job, for example a UUID. Send the same value again in every retry of \
             that request.",
};

pub const IDEMPOTENCY_KEY_REUSED: Kind = Kind {
    status: StatusCode::UNPROCESSABLE_ENTITY,
    code: "idempotency-key-reused",
    title: "The idempotency key belongs to another request",
    retryable: false,
    meaning: "The idempotency key belongs to an earlier request with other content or another path. Nothing was \
              written. `job_id` is the job of the earlier request, and `pointers` shows where the contents differ, \
              if that is known.",
    cause: "The client used one key for two requests, or changed a request between two attempts. Numbers are \
            compared by their text, so `1` and `1.0` differ.",
    action: "Send a new key with a new request. To retry the earlier request, send the same content.",
};

pub const INTERNAL_ERROR: Kind = Kind {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    code: "internal-error",
    title: "Unexpected server error",
    retryable: true,
    meaning: "An unexpected error occurred. The request may or may not have been carried out.",
    cause: "A defect of the server, or an error of the database that Hapax does not know. The log has it under the \
            request id.",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one. If it \
             fails again, report the request id in `instance` to the operator.",
};

pub const INVALID_BATCH: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-batch",
    title: "The batch is invalid",
    retryable: false,
    meaning: "The whole batch was refused. No item was carried out.",
    cause: "The body has no items, or more than 1000.",
    action: "Send 1 to 1000 items, one per line. Split larger batches.",
};

pub const INVALID_CLAIM: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-claim",
    title: "The claim is invalid",
    retryable: false,
    meaning: "A member of the claim is missing, unknown, repeated, of the wrong type or out of range. Nothing was \
              claimed. `pointers` names the member, and `detail` says what is expected.",
    cause: "A mistake in the worker.",
    action: "Correct the member. You may use the same id.",
};

pub const INVALID_CLAIM_ID: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-claim-id",
    title: "The claim id is invalid",
    retryable: false,
    meaning: "The id in the path cannot be a claim id. Nothing was done.",
    cause: "It is not a UUID with hyphens, or it is the nil UUID or the max UUID.",
    action: "Send another UUID, for example a random one (version 4).",
};

pub const INVALID_FIRST_SENT: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-first-sent",
    title: "Repeatability-First-Sent is invalid",
    retryable: false,
    meaning: "`Repeatability-First-Sent` is not one valid time. Nothing was written.",
    cause: "The header field is sent twice, is not an IMF-fixdate, or is more than 60 s ahead of the server's clock.",
    action: "Send the time of the first attempt in the form `Sat, 28 Nov 2026 04:00:00 GMT`. If the time is correct, \
             check the client's clock.",
};

pub const INVALID_IDEMPOTENCY_KEY: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-idempotency-key",
    title: "The idempotency key is invalid",
    retryable: false,
    meaning: "The value is not one valid idempotency key. Nothing was written.",
    cause: "The key is empty, longer than 255 characters, or contains a space, a control character, a non-ASCII \
            character or an unquoted comma, or the header field is sent twice.",
    action: "Send one key of 1 to 255 visible ASCII characters, for example a UUID.",
};

pub const INVALID_IF_MATCH: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-if-match",
    title: "If-Match is malformed",
    retryable: false,
    meaning: "`If-Match` cannot be read. Nothing was changed.",
    cause: "The quotation marks around the tag are missing, or `*` is combined with tags.",
    action: "Send the job's `ETag` with its quotation marks, such as `\"1\"`, or `*`.",
};

pub const INVALID_ITEM: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-item",
    title: "The batch item is invalid",
    retryable: false,
    meaning: "A line of a batch is not an item. The other lines are not affected.",
    cause: "The line is not an object, or has a missing, unknown or repeated member.",
    action: "Send an object with the members `idempotency_key`, a string, and `job`, each once.",
};

pub const INVALID_JOB: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-job",
    title: "The job is invalid",
    retryable: false,
    meaning: "A member of the job is missing, unknown, repeated, of the wrong type or out of range. Nothing was \
              written. `pointers` names the member, and `detail` says what is expected.",
    cause: "A mistake in the client. Frequent ones: a `null` where a member should be left out, a time without an \
            offset, a member that this release does not know.",
    action: "Correct the member. You may use the same idempotency key.",
};

pub const INVALID_JOB_ID: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-job-id",
    title: "The job id is invalid",
    retryable: false,
    meaning: "The id in the path of a PUT cannot be a job id. Nothing was written.",
    cause: "It is not a UUID with hyphens, or it is the nil UUID or the max UUID.",
    action: "Send another UUID, for example a random one (version 4) or one in the order of time (version 7).",
};

pub const INVALID_JSON: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-json",
    title: "The JSON is invalid or cannot be stored",
    retryable: false,
    meaning: "The body is not JSON, or contains what cannot be stored. Nothing was written. `detail` has the place \
              as a byte offset.",
    cause: "An empty body, a byte order mark, an encoding other than UTF-8, a syntax error, `\\u0000`, half of a \
            surrogate pair, or more than 64 levels.",
    action: "Correct the body. Use a JSON library to write it. You may use the same idempotency key.",
};

pub const INVALID_PARAMETER: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-parameter",
    title: "Invalid query parameter",
    retryable: false,
    meaning: "A query parameter has an invalid value or is sent twice. `detail` names it and says what is expected.",
    cause: "A mistake in the client. A frequent one: a raw `+` in a time. In a query it means a space.",
    action: "Correct the value. Percent-encode it: `+` is `%2B`.",
};

pub const INVALID_RESULTS: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "invalid-results",
    title: "The results are invalid",
    retryable: false,
    meaning: "A member of the results is missing, unknown, repeated, of the wrong type or out of range. No result of \
              the request was recorded. `pointers` names the member, and `detail` says what is expected.",
    cause: "A mistake in the worker.",
    action: "Correct the member and send all results again.",
};

pub const JOB_DELETED: Kind = Kind {
    status: StatusCode::GONE,
    code: "job-deleted",
    title: "The job was deleted",
    retryable: false,
    meaning: "The job with this id was deleted. Its id cannot be used again.",
    cause: "A client of your tenant sent `DELETE /jobs/{id}`.",
    action: "Stop using the id. Send a new id with a new job.",
};

pub const JOB_EXISTS_WITH_OTHER_CONTENT: Kind = Kind {
    status: StatusCode::CONFLICT,
    code: "job-exists-with-other-content",
    title: "The job id belongs to another job",
    retryable: false,
    meaning: "The id of a PUT belongs to a job with other content. The job is unchanged. `pointers` shows where the \
              contents differ.",
    cause: "The client used one id for two jobs, or changed a request between two attempts.",
    action: "Send a new id with a new job. To retry the earlier request, send the same content.",
};

pub const JOB_NOT_FINISHED: Kind = Kind {
    status: StatusCode::CONFLICT,
    code: "job-not-finished",
    title: "The job is not finished",
    retryable: false,
    meaning: "Only a finished job can be retried. The job waits or runs, and nothing was changed.",
    cause: "Another request has retried the job already, or it has not ended yet.",
    action: "Wait until the job is over (`GET /jobs/{id}?wait_seconds=30`), then decide again.",
};

pub const JOB_NOT_FOUND: Kind = Kind {
    status: StatusCode::NOT_FOUND,
    code: "job-not-found",
    title: "Job not found",
    retryable: false,
    meaning: "Your tenant has no job with this id.",
    cause: "The id is wrong, the job was never created, or the access token belongs to another tenant.",
    action: "Check the id and the access token.",
};

pub const JOB_NOT_WAITING: Kind = Kind {
    status: StatusCode::CONFLICT,
    code: "job-not-waiting",
    title: "The job is no longer queued",
    retryable: false,
    meaning: "The job is no longer queued, so it cannot be changed. `detail` has its state.",
    cause: "The job is running, has ended or was cancelled.",
    action: "Read the job and decide again. Submit a new job if you need one.",
};

pub const KEY_NOT_FOUND: Kind = Kind {
    status: StatusCode::NOT_FOUND,
    code: "key-not-found",
    title: "Idempotency key not found",
    retryable: false,
    meaning: "Your tenant has no committed request with this idempotency key on this route.",
    cause: "The key is wrong, its request failed or was never sent, the key has expired, or it belongs to the other \
            route.",
    action: "Check the key. For a key of a PATCH, add the query parameter `route`.",
};

pub const METHOD_NOT_ALLOWED: Kind = Kind {
    status: StatusCode::METHOD_NOT_ALLOWED,
    code: "method-not-allowed",
    title: "Method not allowed",
    retryable: false,
    meaning: "The path does not support this method. `Allow` lists the methods that it supports.",
    cause: "A mistake in the client.",
    action: "Use one of the methods in `Allow`.",
};

pub const MISSING_SCOPE: Kind = Kind {
    status: StatusCode::FORBIDDEN,
    code: "missing-scope",
    title: "The access token lacks a scope",
    retryable: false,
    meaning: "The access token is valid but lacks the scope that the operation needs. `detail` names the scope.",
    cause: "The operator created the token for other operations.",
    action: "Use another token, or ask the operator for one with this scope.",
};

pub const NOT_READY: Kind = Kind {
    status: StatusCode::SERVICE_UNAVAILABLE,
    code: "not-ready",
    title: "The service is not ready",
    retryable: true,
    meaning: "The replica should not get requests. `detail` has the reason. Only `/readyz` and load balancers return \
              this error.",
    cause: "The replica is shutting down, or its database is not usable. A load balancer returns it if no replica is \
            ready.",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one. \
             Operators: see the runbook.",
};

pub const OUTCOME_UNKNOWN: Kind = Kind {
    status: StatusCode::SERVICE_UNAVAILABLE,
    code: "outcome-unknown",
    title: "The outcome is unknown",
    retryable: true,
    meaning: "The request may or may not have been carried out. The status is 502 or 504 if the load balancer lost \
              the replica.",
    cause: "The connection to the database, or the replica, was lost after the statement was sent and before its \
            result arrived. Or no result arrived in time.",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one. The \
             answer then tells what happened.",
};

pub const OVERLOADED: Kind = Kind {
    status: StatusCode::SERVICE_UNAVAILABLE,
    code: "overloaded",
    title: "The service is overloaded",
    retryable: true,
    meaning: "The replica or your tenant has too many requests at the moment. This attempt wrote nothing.",
    cause: "More load than the replica's limits allow, or more than your tenant's share of them.",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one. Back off, \
             and send fewer requests at the same time.",
};

pub const PRECONDITION_FAILED: Kind = Kind {
    status: StatusCode::PRECONDITION_FAILED,
    code: "precondition-failed",
    title: "The job's version does not match If-Match",
    retryable: false,
    meaning: "The version of the job is not one that `If-Match` names. Nothing was changed. `ETag` has the current \
              version.",
    cause: "Another request changed the job first, or an earlier attempt of this one did. Or all tags are weak \
            (`W/\"1\"`): a proxy that compresses responses makes tags weak, and `If-Match` never matches a weak \
            tag.",
    action: "Read the job and decide again. If the tags are weak, send the job's member `version` in quotation marks \
             instead. Send an idempotency key with a PATCH, so that a retry gets the first answer.",
};

pub const PRECONDITION_REQUIRED: Kind = Kind {
    status: StatusCode::PRECONDITION_REQUIRED,
    code: "precondition-required",
    title: "If-Match is missing",
    retryable: false,
    meaning: "The operation requires `If-Match`, so that no change of another client is lost. Nothing was changed.",
    cause: "The client did not send `If-Match`.",
    action: "Send the `ETag` of the job that you have read, or its `version` in quotation marks. Send `*` to change \
             any version.",
};

pub const QUOTA_EXCEEDED: Kind = Kind {
    status: StatusCode::TOO_MANY_REQUESTS,
    code: "quota-exceeded",
    title: "A quota is used up",
    retryable: true,
    meaning: "A quota is used up. Nothing was written, and the idempotency key is unused. `violated-policies` names \
              the quota.",
    cause: "The token, the tenant or the idempotency key sent requests faster than its quota allows.",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one. \
             `RateLimit` shows what is left of each quota.",
};

pub const REQUEST_IN_FLIGHT: Kind = Kind {
    status: StatusCode::CONFLICT,
    code: "request-in-flight",
    title: "The first request is still in progress",
    retryable: true,
    meaning: "An earlier attempt of this request, or other work on the same rows, is still in progress.",
    cause: "The client sent the request again before the first attempt was answered.",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one. It then \
             gets the result of the first attempt.",
};

pub const REQUEST_TIMEOUT: Kind = Kind {
    status: StatusCode::REQUEST_TIMEOUT,
    code: "request-timeout",
    title: "The body did not arrive in time",
    retryable: true,
    meaning: "The whole body did not arrive in time. Nothing was written, and the connection is closed.",
    cause: "A slow network, or a client that stopped sending. The operator sets the limit (`server.body_deadline`).",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one.",
};

pub const RESULT_TOO_LARGE: Kind = Kind {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    code: "result-too-large",
    title: "A result is too large",
    retryable: false,
    meaning: "A result or an error is larger than the limit. No result of the request was recorded. `pointers` names \
              it, and `detail` has the limit in bytes.",
    cause: "The operator sets the limits (`claims.result_bytes`, `claims.error_bytes`).",
    action: "Send less. Store large data elsewhere, and send a reference to it.",
};

pub const ROUTE_NOT_FOUND: Kind = Kind {
    status: StatusCode::NOT_FOUND,
    code: "route-not-found",
    title: "Path not found",
    retryable: false,
    meaning: "No operation has this path.",
    cause: "A wrong path, a slash at the end, or a percent-encoded character that needs no encoding. Paths must \
            match exactly.",
    action: "Compare the path with the contract at `/openapi.yaml`.",
};

pub const STATEMENT_TIMEOUT: Kind = Kind {
    status: StatusCode::SERVICE_UNAVAILABLE,
    code: "statement-timeout",
    title: "The database took too long",
    retryable: true,
    meaning: "The database cancelled a statement that took too long. This attempt wrote nothing.",
    cause: "The database is overloaded, or waits for a lock. The operator sets the limit \
            (`database.statement_timeout`).",
    action: "Send the same request again after `Retry-After`, with the same idempotency key if it had one.",
};

pub const UNAUTHENTICATED: Kind = Kind {
    status: StatusCode::UNAUTHORIZED,
    code: "unauthenticated",
    title: "The access token is missing or invalid",
    retryable: false,
    meaning: "The server does not know who sends the request. `detail` says why.",
    cause: "The header field `Authorization` is missing, repeated or malformed, or the access token is unknown, \
            expired or revoked.",
    action: "Send `Authorization: Bearer` with a valid token. The operator creates tokens with `hapax token create`.",
};

pub const UNKNOWN_PARAMETER: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "unknown-parameter",
    title: "Unknown query parameter",
    retryable: false,
    meaning: "The operation does not have this query parameter. `detail` names it. Unknown parameters are refused, \
              so that a misspelled filter does not return everything.",
    cause: "A misspelled name, or a parameter of another operation.",
    action: "Correct or remove the parameter.",
};

pub const UNSUPPORTED_CONDITION: Kind = Kind {
    status: StatusCode::BAD_REQUEST,
    code: "unsupported-condition",
    title: "Conditional header fields are not supported here",
    retryable: false,
    meaning: "The operation does not support `If-Match`, `If-None-Match` and `If-Unmodified-Since`. Nothing was \
              changed.",
    cause: "The client sent one of these header fields.",
    action: "Remove them. The operation is safe to repeat without them.",
};

pub const UNSUPPORTED_CONTENT_ENCODING: Kind = Kind {
    status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
    code: "unsupported-content-encoding",
    title: "Content-Encoding is not supported",
    retryable: false,
    meaning: "The body has a content encoding. Nothing was written.",
    cause: "The client compressed the body, or sent `Content-Encoding`.",
    action: "Send the body as it is, without `Content-Encoding`.",
};

pub const UNSUPPORTED_MEDIA_TYPE: Kind = Kind {
    status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
    code: "unsupported-media-type",
    title: "Content-Type is not supported",
    retryable: false,
    meaning: "The operation does not accept the media type or the charset of the body. `Accept` or `Accept-Patch` \
              lists what it accepts.",
    cause: "`Content-Type` is missing, repeated or wrong. Some HTTP clients send form data by default.",
    action: "Send the media type that `detail` names, with a body in UTF-8.",
};

impl Kind {
    pub fn find(code: &str) -> Option<&'static Self> {
        KINDS.into_iter().find(|kind| kind.code == code)
    }

    /// The page at `/problems/{code}`. It has no style, so that its content security policy can forbid everything.
    pub fn page(&self) -> String {
        let Self { code, title, .. } = self;
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width\">\n<title>{code} – Hapax</title>\n<h1>{title}</h1>\n<dl>\n<dt>Code</dt>\n\
             <dd><code>{code}</code></dd>\n"
        );
        for (name, text) in self.entries() {
            writeln!(page, "<dt>{name}</dt>\n<dd>{}</dd>", html(&text)).expect(WRITES);
        }
        page + "</dl>\n<p><a href=\"../docs\">The API</a></p>\n</html>\n"
    }

    /// What the page and the document say, in their order.
    fn entries(&self) -> [(&'static str, String); 5] {
        [
            ("Status", self.status.as_u16().to_string()),
            ("Meaning", self.meaning.to_owned()),
            ("Cause", self.cause.to_owned()),
            ("What to do", self.action.to_owned()),
            ("Retryable", if self.retryable { "yes" } else { "no" }.to_owned()),
        ]
    }
}

const WRITES: &str = "writing to a string cannot fail";

/// The text of `docs/errors.md`, which `hapax errors` prints.
pub fn document() -> String {
    let mut text =
        "# Errors\n\nEvery error of the API by its `code`. `hapax errors` prints this page; do not edit it by \
                    hand. The `type` of an error is the address of its entry: every server has it at \
                    `/problems/{code}`. A retryable error has `Retry-After`, and the same request may succeed later. \
                    [clients.md](clients.md) has the rules for retries.\n\n| code | status | title | retryable |\n\
                    |---|---|---|---|\n"
            .to_owned();
    for kind in KINDS {
        let Kind { status, code, title, retryable, .. } = kind;
        let retryable = if *retryable { "yes" } else { "no" };
        writeln!(text, "| [`{code}`](#{code}) | {} | {title} | {retryable} |", status.as_u16()).expect(WRITES);
    }
    for kind in KINDS {
        writeln!(text, "\n## {}\n\n{}.\n", kind.code, kind.title).expect(WRITES);
        for (name, entry) in kind.entries() {
            writeln!(text, "- **{name}:** {entry}").expect(WRITES);
        }
    }
    text
}

/// The text as HTML, with what is in backticks as code.
fn html(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let pieces = text.split('`').enumerate();
    pieces
        .map(|(number, piece)| if number % 2 == 1 { format!("<code>{piece}</code>") } else { piece.to_owned() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_the_repository_is_the_printed_one() {
        let page = include_str!("../../docs/errors.md");
        assert!(page == document(), "run `make errors-page`");
    }

    #[test]
    fn each_code_has_one_entry_and_one_anchor() {
        let codes = KINDS.map(|kind| kind.code);
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        for kind in KINDS {
            assert_eq!(document().matches(&format!("\n## {}\n", kind.code)).count(), 1, "{}", kind.code);
            assert_eq!(Kind::find(kind.code).unwrap().code, kind.code);
        }
    }

    #[test]
    fn backticks_are_code_and_other_text_is_escaped() {
        assert_eq!(html("send `a<b` & \"c\""), "send <code>a&lt;b</code> &amp; \"c\"");
        for kind in KINDS {
            for (name, text) in kind.entries() {
                assert!(text.matches('`').count() % 2 == 0, "{} {name}", kind.code);
            }
        }
    }
}
