//! A log line for a person: as `tracing_subscriber` writes it, and at its end what is known of its request.

use std::fmt;

use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

use super::facts;

/// An event's fields, and its request's facts behind them.
#[derive(Default)]
pub struct FieldsAndFacts(DefaultFields);

impl FormatFields<'_> for FieldsAndFacts {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'_>, fields: R) -> fmt::Result {
        self.0.format_fields(writer.by_ref(), fields)?;
        let mut written = Ok(());
        facts::show(|name, text| written = written.and_then(|()| write!(writer, " {name}={text}")));
        written
    }
}
