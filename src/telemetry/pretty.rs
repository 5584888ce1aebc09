//! A log line for a person: in the format of `tracing_subscriber`, followed by the context of its request.

use std::fmt;

use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

use super::request_context;

/// Formats the fields of an event, followed by the context of its request.
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
