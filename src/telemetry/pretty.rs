//! A log line for a person: as `tracing_subscriber` writes it, and at its end what is known of its request.

use std::fmt;

use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

use super::request_context;

/// An event's fields, and its request's context behind them.
#[derive(Default)]
pub struct FieldsAndContext(DefaultFields);

impl FormatFields<'_> for FieldsAndContext {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'_>, fields: R) -> fmt::Result {
        self.0.format_fields(writer.by_ref(), fields)?;
        let mut written = Ok(());
        request_context::show(|name, text| written = written.and_then(|()| write!(writer, " {name}={text}")));
        written
    }
}
