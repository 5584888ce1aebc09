//! The texts of problems: what went wrong in one request, and what to do.

use std::fmt;

use super::problem::Problem;
use super::quotas::whole_seconds;
use crate::access::Policy;
use crate::overload::Shed;

impl Problem {
    /// What went wrong in this request, for a person. Never contains a token, a key, a payload or an error text of the
    /// database.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::InvalidKey(error) => sentence(error),
            Self::InvalidFirstSent(error) => sentence(error),
            Self::InvalidJson(error) => sentence(error),
            Self::InvalidJob(error) | Self::InvalidClaim(error) | Self::InvalidResults(error) => {
                match error.pointer.as_str() {
                    "" => sentence(error),
                    pointer => format!("{pointer}: {error}."),
                }
            }
            Self::ResultTooLarge { pointer, limit_bytes } => format!(
                "{pointer}: the limit is {limit_bytes} bytes, and nothing was recorded. Send less, for example a reference \
                 to data that is elsewhere."
            ),
            Self::InvalidClaimId => {
                "The id in the path cannot be a claim id. Send a UUID with hyphens, other than the nil UUID and the max \
                 UUID."
                    .to_owned()
            }
            Self::ClaimNotFound => {
                "You have no claim with this id, or it ended long ago. Check the id and the access token.".to_owned()
            }
            Self::ClaimExists => {
                "This id belongs to an earlier claim with other content. Send a new id with a new claim. To repeat the \
                 earlier request, send its content unchanged."
                    .to_owned()
            }
            Self::ClaimEnded => {
                "The claim holds no job: it was released, its jobs are finished, or its lease has expired. Make a new claim \
                 with a new id."
                    .to_owned()
            }
            Self::JobNotFinished { state, .. } => {
                format!("The job is {}. Only a finished job can be retried.", state.name())
            }
            Self::ContentTaken { .. } => {
                "Another active job has the content by which this job is unique. Retry when that job is over.".to_owned()
            }
            Self::UnknownParameter(name) => {
                format!("This operation has no query parameter {name:?}. Remove it, or correct its name.")
            }
            Self::InvalidParameter(error) => format!("{}: {}.", error.name, error.why),
            Self::Unauthenticated(why) => sentence(why),
            Self::MissingScope(scope) => {
                format!("The access token does not have the scope {:?}. Use a token that has it.", scope.name())
            }
            Self::RouteNotFound => {
                "No operation has this path. Paths must match exactly. /openapi.yaml lists them.".to_owned()
            }
            Self::JobNotFound => "You have no job with this id. Check the id and the access token.".to_owned(),
            Self::KeyNotFound => {
                "You have no committed request with this key on this route, or the key has expired. Check the key and \
                 the query parameter `route`."
                    .to_owned()
            }
            Self::MethodNotAllowed { allow } => {
                format!("Use a method that this path supports: {}.", allow.replace(", ", " or "))
            }
            Self::BodyTooSlow => {
                "The whole body did not arrive in time, and nothing was written. Send the request again.".to_owned()
            }
            Self::BodyBroken => {
                "The connection or the transfer coding broke within the body, and nothing was written. Send the request \
                 again."
                    .to_owned()
            }
            Self::BodyTooLarge { limit_bytes } => {
                format!("The limit is {limit_bytes} bytes. Send less, for example a reference to data that is elsewhere.")
            }
            Self::UnsupportedMediaType { taken, .. } => {
                let taken = taken.replace(", ", "` or `");
                format!("Send `Content-Type: {taken}` and a body in UTF-8. A charset parameter may be UTF-8 or US-ASCII.")
            }
            Self::UnsupportedContentEncoding => {
                "The body is compressed or encoded in another way. Send it as it is, without `Content-Encoding`.".to_owned()
            }
            Self::KeyReused { first_path: Some(path), .. } => format!(
                "This idempotency key belongs to an earlier request on another path, {path}. Send a new key with a new \
                 request."
            ),
            Self::KeyReused { .. } => {
                "This idempotency key belongs to an earlier request with other content. Send a new key with a new \
                 request. To retry the earlier request, send its content unchanged."
                    .to_owned()
            }
            Self::RequestInFlight => {
                "An earlier attempt of this request, or other work on the same rows, is still in progress. Send the same \
                 request again after `Retry-After` to get its result."
                    .to_owned()
            }
            Self::InvalidBatch => {
                "The batch is empty or has more than 1000 items. Send 1 to 1000 items, one per line.".to_owned()
            }
            Self::InvalidItem => {
                "The line is not an object with exactly these members, each once: `idempotency_key`, a string, and `job`. \
                 Correct the line."
                    .to_owned()
            }
            Self::InvalidJobId => {
                "The id in the path cannot be a job id. Send a UUID with hyphens, other than the nil UUID and the max \
                 UUID."
                    .to_owned()
            }
            Self::InvalidIfMatch => {
                "Send the job's `ETag` with its quotation marks, such as \"1\", several of them with commas between, or *."
                    .to_owned()
            }
            Self::UnsupportedCondition => {
                "This operation does not support `If-Match`, `If-None-Match` and `If-Unmodified-Since`. Remove them: the \
                 operation is safe to repeat without them."
                    .to_owned()
            }
            Self::JobExists { .. } => {
                "A job with other content has this id. Send a new id with a new job. To retry the earlier request, send \
                 its content unchanged."
                    .to_owned()
            }
            Self::JobNotWaiting { state, .. } => {
                format!("The job is {}. Only a queued job can be changed.", state.name())
            }
            Self::JobDeleted => {
                "The job with this id was deleted, and its id cannot be used again. Send a new id with a new job."
                    .to_owned()
            }
            Self::PreconditionFailed { only_weak_tags: true, .. } => {
                "`If-Match` has only weak tags (W/), which never match, and nothing was changed. A proxy that compresses \
                 responses makes tags weak. Send the job's `version` in quotation marks instead, such as \"1\"."
                    .to_owned()
            }
            Self::PreconditionFailed { .. } => {
                "The job has another version than `If-Match` names, and nothing was changed. `ETag` has the current \
                 version. Read the job and decide again."
                    .to_owned()
            }
            Self::PreconditionRequired => {
                "`If-Match` header is missing. Send the `ETag` of the job that you have read, or its `version` in \
                 quotation marks. Send * to change any version."
                    .to_owned()
            }
            Self::FirstSentTooOld => {
                "The request was not carried out. Its idempotency key may have expired, so it is unknown whether an \
                 earlier attempt succeeded. Look for the job before you send a new request with a new key."
                    .to_owned()
            }
            Self::QuotaExceeded(quota_status) => {
                let Policy { name, quota, window } = quota_status.policy;
                format!(
                    "The quota \"{name}\" of {quota} in {} s is used up, and nothing was written. Send the same request \
                     again after `Retry-After`.",
                    whole_seconds(window)
                )
            }
            Self::Unavailable(_) | Self::TokenUnverified { unfit: false } | Self::Shed(Shed::Outage) => {
                "The database is not reachable or did not accept the statement, and nothing was written. Send the same \
                 request again after `Retry-After`."
                    .to_owned()
            }
            Self::Shed(_) => {
                "The service has too many requests at the moment, and nothing was written. Send the same request again \
                 after `Retry-After`."
                    .to_owned()
            }
            Self::StatementTimeout => {
                "The database did not finish within the time limit of a statement, and nothing was written. Send the same \
                 request again after `Retry-After`."
                    .to_owned()
            }
            Self::Unfit(_) | Self::TokenUnverified { unfit: true } => {
                "The database does not have the schema that this release needs, and nothing was written. An operator must \
                 run `hapax migrate`; then send the same request again."
                    .to_owned()
            }
            Self::OutcomeUnknown => {
                "The database did not confirm in time whether the request was carried out. Send the same request again, \
                 with the same idempotency key if it had one."
                    .to_owned()
            }
            Self::NotReady(reason) => sentence(reason),
            Self::ShuttingDown => "The replica is shutting down. Send requests to another replica.".to_owned(),
            Self::Internal(_) => {
                "The server's log has the cause under the request id in `instance`. Send the same request again. If that \
                 fails too, report the request id to the operator."
                    .to_owned()
            }
            Self::BehindClose => {
                "The request came on a connection behind a request with `Connection: close`. Send it on a new connection."
                    .to_owned()
            }
            Self::Framework(_) => "The request is malformed. Compare it with /openapi.yaml.".to_owned(),
        }
    }
}

/// An error's text with a capital letter and a full stop.
fn sentence(words: &impl fmt::Display) -> String {
    let words = words.to_string();
    let mut characters = words.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    format!("{}{}.", first.map(String::from).unwrap_or_default(), characters.as_str())
}
