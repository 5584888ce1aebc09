//! Logs: one line per event, for people or for machines.
//!
//! Owns the context of a request (`request_context`), the format of a line (`json`, `pretty`) and the writing of lines
//! to standard output (`output`). A request never waits for the reader of the log.

mod json;
mod output;
mod pretty;
mod request_context;

pub use output::Log;
pub use request_context::RequestContext;

use std::io::{IsTerminal, stdout};

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, registry};

use crate::metrics::Metrics;
use json::JsonLines;
use pretty::FieldsAndContext;

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person at a terminal.
    Pretty,
    /// One JSON object per line, with the request's context under `span`.
    Json,
}

/// Starts logging to standard output. Logging ends when the returned [`Log`] is dropped. `filter` has the syntax of
/// `tracing_subscriber::EnvFilter`, for example `info,hapax=debug`.
///
/// # Errors
/// If the filter is invalid.
pub fn init(format: LogFormat, filter: &str, metrics: Metrics) -> Result<Log, ParseError> {
    let filter = registry().with(EnvFilter::try_new(filter)?);
    let (log, output) = Log::start(stdout(), metrics);
    match format {
        LogFormat::Pretty => {
            let lines = fmt::layer().with_ansi(stdout().is_terminal()).fmt_fields(FieldsAndContext::default());
            filter.with(lines.with_writer(move || output.clone())).init();
        }
        LogFormat::Json => filter.with(JsonLines::new(output)).init(),
    }
    Ok(log)
}
