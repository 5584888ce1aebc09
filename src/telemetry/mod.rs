//! Logs: one line per event, for people or for machines.
//!
//! Owns how a line is written, and how it gets out of the process (`output`). It never makes a request wait for whoever
//! reads the log.

mod output;

pub use output::Log;

use std::io::{IsTerminal, stdout};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::metrics::Metrics;

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person at a terminal.
    Pretty,
    /// One JSON object a line, the request's fields under `span`.
    Json,
}

/// Starts logging to standard output, until what is returned is dropped. `filter` is in the syntax of `tracing_subscriber::EnvFilter`, such as
/// `info,hapax=debug`.
///
/// # Errors
/// When the filter cannot be read.
pub fn init(format: LogFormat, filter: &str, metrics: Metrics) -> Result<Log, tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let (log, output) = Log::start(stdout(), metrics);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(stdout().is_terminal());
    let builder = builder.with_writer(move || output.clone());
    match format {
        LogFormat::Pretty => builder.init(),
        LogFormat::Json => builder.json().with_current_span(true).with_span_list(false).flatten_event(true).init(),
    }
    Ok(log)
}
