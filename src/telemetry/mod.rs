//! Logs: one line per event, for people or for machines.
//!
//! Owns what is known of a request while it is worked on (`request_context`), how a line is written (`json`, `pretty`) and how it
//! gets out of the process (`output`). It never makes a request wait for whoever reads the log.

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

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person at a terminal.
    Pretty,
    /// One JSON object a line, what is known of the request under `span`.
    Json,
}

/// Starts logging to standard output, until what is returned is dropped. `filter` is in the syntax of
/// `tracing_subscriber::EnvFilter`, such as `info,hapax=debug`.
///
/// # Errors
/// When the filter cannot be read.
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
