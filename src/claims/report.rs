//! What a worker reports about the jobs of its claim.

use std::collections::HashSet;
use std::time::Duration;

use crate::ids::JobId;
use crate::jobs::{InvalidMember, State, members};
use crate::json::{Document, Kind, Value};
use crate::metrics::{JobOutcome, Metrics};

/// The reports of one request, in the order sent.
#[derive(Debug)]
pub struct Reports(pub Vec<Report>);

#[derive(Debug)]
pub struct Report {
    pub job: JobId,
    pub outcome: Outcome,
    /// JSON text, as sent.
    pub result: Option<String>,
    pub error: Option<String>,
    /// Whether a failed job may have another attempt.
    pub retry: bool,
    /// Instead of the usual delay.
    pub retry_in_seconds: Option<f64>,
}

/// What became of a job, as its worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeeded,
    Failed,
    /// The worker gives the job back unfinished.
    Released,
    /// The worker stopped because a cancellation was requested.
    Cancelled,
}

/// The result of a report.
#[derive(Debug)]
pub struct Settled {
    pub job: JobId,
    pub verdict: Verdict,
    /// The current state of the job. `None` if it does not exist or was deleted.
    pub state: Option<State>,
    /// How long the claim held the job. `None` unless this request recorded the result.
    pub run: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Recorded,
    /// The claim has reported the same outcome before.
    AlreadyRecorded,
    /// The claim has reported another outcome before. It stays.
    RecordedOtherwise,
    /// The claim does not hold the job, so the report changes nothing.
    LeaseLost,
}

/// Why reports are refused. Nothing was recorded.
#[derive(Debug)]
pub enum InvalidReports {
    Invalid(InvalidMember),
    /// A result or an error exceeds its limit.
    TooLarge {
        pointer: String,
        limit_bytes: usize,
    },
}

/// Maximum sizes of the JSON that a worker reports.
#[derive(Clone, Copy, Debug)]
pub struct SizeLimits {
    pub result_bytes: usize,
    pub error_bytes: usize,
}

const REPORTS_MAX: usize = 100;
/// A year.
const RETRY_SECONDS_MAX: f64 = 31_536_000.0;

impl Outcome {
    const ALL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::Released, Self::Cancelled];

    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Released => "released",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Settled {
    /// Counts the result of a report with this outcome.
    pub fn count(&self, outcome: Outcome, metrics: &Metrics) {
        metrics.count_report(self.verdict.name());
        let outcome = match (self.state, outcome) {
            (Some(State::Succeeded), _) => JobOutcome::Succeeded,
            (Some(State::Failed), _) => JobOutcome::Failed,
            (Some(State::Cancelled), _) => JobOutcome::Cancelled,
            (_, Outcome::Released) => JobOutcome::Released,
            _ => JobOutcome::Retried,
        };
        if let Some(run) = self.run {
            metrics.count_settled_job(outcome, run);
        }
    }
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Recorded, Self::AlreadyRecorded, Self::RecordedOtherwise, Self::LeaseLost];

    pub fn name(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::AlreadyRecorded => "already-recorded",
            Self::RecordedOtherwise => "recorded-otherwise",
            Self::LeaseLost => "lease-lost",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
    }
}

impl From<InvalidMember> for InvalidReports {
    fn from(invalid: InvalidMember) -> Self {
        Self::Invalid(invalid)
    }
}

impl Reports {
    /// Parses the body of a request with results.
    ///
    /// # Errors
    /// [`InvalidReports`] for the first report that is invalid or too large.
    pub fn parse(document: &Document<'_>, limits: SizeLimits) -> Result<Self, InvalidReports> {
        let [results] = members::members(document.root(), "", ["results"])?;
        let results = members::required(results, "/results")?;
        let count = results.elements().count();
        if results.kind() != Kind::Array || !(1..=REPORTS_MAX).contains(&count) {
            let expected = format!("an array of 1 to {REPORTS_MAX} results");
            return Err(members::unexpected(results, "/results", &expected).into());
        }
        let mut reports = Vec::with_capacity(count);
        let mut seen = HashSet::with_capacity(count);
        for (index, element) in results.elements().enumerate() {
            let pointer = format!("/results/{index}");
            let report = Report::parse(element, &pointer, limits)?;
            if !seen.insert(report.job) {
                let detail = "the job occurs twice; send one result for each job";
                return Err(members::invalid(&format!("{pointer}/job_id"), detail).into());
            }
            reports.push(report);
        }
        Ok(Self(reports))
    }
}

impl Report {
    fn parse(value: Value<'_, '_>, pointer: &str, limits: SizeLimits) -> Result<Self, InvalidReports> {
        let at = |member: &str| format!("{pointer}/{member}");
        let names = ["job_id", "outcome", "result", "error", "retry", "retry_in_seconds"];
        let [job, outcome, result, error, retry, retry_in] = members::members(value, pointer, names)?;
        let job = members::required(job, &at("job_id"))?;
        let job = job
            .as_str()
            .and_then(|text| JobId::parse(&text))
            .ok_or_else(|| members::unexpected(job, &at("job_id"), "the id of a job: a UUID with hyphens"))?;
        let outcome = members::required(outcome, &at("outcome"))?;
        let outcome = read_outcome(outcome)
            .ok_or_else(|| members::unexpected(outcome, &at("outcome"), "succeeded, failed, released or cancelled"))?;
        for (member, value, only_with) in [
            ("result", result, &[Outcome::Succeeded][..]),
            ("error", error, &[Outcome::Failed, Outcome::Released, Outcome::Cancelled]),
            ("retry", retry, &[Outcome::Failed]),
            ("retry_in_seconds", retry_in, &[Outcome::Failed, Outcome::Released]),
        ] {
            if value.is_some() && !only_with.contains(&outcome) {
                let names: Vec<&str> = only_with.iter().map(|outcome| outcome.name()).collect();
                let detail = format!("the member is for the outcome {} only; remove it", names.join(" or "));
                return Err(members::invalid(&at(member), &detail).into());
            }
        }
        let text = |value: Option<Value<'_, '_>>, member: &str, limit_bytes: usize| match value.map(Value::text) {
            Some(text) if text.len() > limit_bytes => {
                Err(InvalidReports::TooLarge { pointer: at(member), limit_bytes })
            }
            text => Ok(text.map(str::to_owned)),
        };
        Ok(Self {
            job,
            outcome,
            result: text(result, "result", limits.result_bytes)?,
            error: text(error, "error", limits.error_bytes)?,
            retry: retry.map(|value| read_boolean(value, &at("retry"))).transpose()?.unwrap_or(true),
            retry_in_seconds: retry_in.map(|value| read_seconds(value, &at("retry_in_seconds"))).transpose()?,
        })
    }
}

fn read_outcome(value: Value<'_, '_>) -> Option<Outcome> {
    let name = value.as_str()?;
    Outcome::ALL.into_iter().find(|outcome| outcome.name() == name)
}

fn read_boolean(value: Value<'_, '_>, pointer: &str) -> Result<bool, InvalidMember> {
    match value.text() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(members::unexpected(value, pointer, "true or false")),
    }
}

fn read_seconds(value: Value<'_, '_>, pointer: &str) -> Result<f64, InvalidMember> {
    let number = (value.kind() == Kind::Number).then(|| value.text().parse().ok()).flatten();
    number.filter(|seconds| (0.0..=RETRY_SECONDS_MAX).contains(seconds)).ok_or_else(|| {
        members::unexpected(value, pointer, &format!("a number of seconds from 0 to {RETRY_SECONDS_MAX}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SizeLimits = SizeLimits { result_bytes: 20, error_bytes: 10 };
    const JOB: &str = r#""job_id":"01a22265-b9e4-7ea3-bfd1-09b33b9bfc5b""#;

    fn parse(body: &str) -> Result<Reports, InvalidReports> {
        Reports::parse(&Document::parse(body.as_bytes()).unwrap(), LIMITS)
    }

    fn pointer(invalid: InvalidReports) -> String {
        match invalid {
            InvalidReports::Invalid(invalid) => invalid.pointer,
            InvalidReports::TooLarge { pointer, .. } => pointer,
        }
    }

    #[test]
    fn each_error_names_the_member() {
        for (report, expected) in [
            (r#"{"outcome":"failed"}"#.to_owned(), "/results/0/job_id"),
            (r#"{"job_id":"1","outcome":"failed"}"#.to_owned(), "/results/0/job_id"),
            (format!("{{{JOB}}}"), "/results/0/outcome"),
            (format!(r#"{{{JOB},"outcome":"lost"}}"#), "/results/0/outcome"),
            (format!(r#"{{{JOB},"outcome":"failed","result":1}}"#), "/results/0/result"),
            (format!(r#"{{{JOB},"outcome":"succeeded","error":1}}"#), "/results/0/error"),
            (format!(r#"{{{JOB},"outcome":"released","retry":true}}"#), "/results/0/retry"),
            (format!(r#"{{{JOB},"outcome":"failed","retry":1}}"#), "/results/0/retry"),
            (format!(r#"{{{JOB},"outcome":"failed","retry_in_seconds":-1}}"#), "/results/0/retry_in_seconds"),
            (format!(r#"{{{JOB},"outcome":"failed","retry_in_seconds":1e9}}"#), "/results/0/retry_in_seconds"),
            (format!(r#"{{{JOB},"outcome":"succeeded","result":"123456789012345678901"}}"#), "/results/0/result"),
            (format!(r#"{{{JOB},"outcome":"failed","error":"1234567890"}}"#), "/results/0/error"),
            (format!(r#"{{{JOB},"outcome":"failed"}},{{{JOB},"outcome":"failed"}}"#), "/results/1/job_id"),
            (format!(r#"{{{JOB},"outcome":"failed","why":1}}"#), "/results/0/why"),
        ] {
            let body = format!(r#"{{"results":[{report}]}}"#);
            assert_eq!(pointer(parse(&body).unwrap_err()), expected, "{body}");
        }
        assert_eq!(pointer(parse(r#"{"results":[]}"#).unwrap_err()), "/results");
        assert_eq!(pointer(parse("{}").unwrap_err()), "/results");
    }

    #[test]
    fn a_report_is_read_as_sent() {
        let body = format!(r#"{{"results":[{{{JOB},"outcome":"failed","error":{{"a": 1}},"retry_in_seconds":1.5}}]}}"#);
        let Reports(reports) = parse(&body).unwrap();
        let [report] = &reports[..] else { panic!("one report") };
        assert_eq!((report.outcome, report.retry, report.retry_in_seconds), (Outcome::Failed, true, Some(1.5)));
        assert_eq!(report.error.as_deref(), Some(r#"{"a": 1}"#));
    }
}
