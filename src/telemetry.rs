//! Logs: one line per event, for people or for machines.

use std::io::{IsTerminal, stdout};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person at a terminal.
    Pretty,
    /// One JSON object a line, the request's fields under `span`.
    Json,
}

/// Starts logging to standard output. `filter` is in the syntax of `tracing_subscriber::EnvFilter`, such as
/// `info,hapax=debug`.
///
/// # Errors
/// When the filter cannot be read.
pub fn init(format: LogFormat, filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(stdout().is_terminal());
    match format {
        LogFormat::Pretty => builder.init(),
        LogFormat::Json => builder.json().with_current_span(true).with_span_list(false).flatten_event(true).init(),
    }
    Ok(())
}
