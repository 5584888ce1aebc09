//! A log line as a JSON object: the fields of the event, and the context of its request under `span`.

use std::cell::Cell;
use std::fmt::{self, Debug, Write};

use chrono::Utc;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::output::Output;
use super::request_context;
use crate::timestamp::Timestamp;

/// Writes each event to the output.
pub struct JsonLines {
    output: Output,
}

/// A line that is being built.
struct Line(String);

impl JsonLines {
    pub fn new(output: Output) -> Self {
        Self { output }
    }
}

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local! {
            /// Taken while it is in use, because formatting a value may log another event.
            static LINE: Cell<String> = const { Cell::new(String::new()) };
        }
        let mut line = Line(LINE.take());
        line.0.clear();
        line.event(event);
        self.output.push(line.0.as_bytes());
        LINE.set(line.0);
    }
}

impl Line {
    fn event(&mut self, event: &Event<'_>) {
        let metadata = event.metadata();
        self.0.push_str("{\"timestamp\":\"");
        write!(self.0, "{}", Timestamp(Utc::now())).expect(NEVER_FAILS);
        self.0.push_str("\",\"level\":\"");
        self.0.push_str(metadata.level().as_str());
        self.0.push('"');
        event.record(self);
        self.name("target");
        self.string(metadata.target());
        let before = self.0.len();
        self.0.push_str(",\"span\":{\"name\":\"request\"");
        let is_of_a_request = request_context::show(|name, text| {
            self.name(name);
            self.string(text);
        });
        if is_of_a_request {
            self.0.push('}');
        } else {
            self.0.truncate(before);
        }
        self.0.push_str("}\n");
    }

    fn name(&mut self, name: &'static str) {
        self.0.push_str(",\"");
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    fn string(&mut self, content: &str) {
        self.0.push('"');
        escape(content, &mut self.0);
        self.0.push('"');
    }

    fn number(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.name(field.name());
        self.0.write_fmt(value).expect(NEVER_FAILS);
    }
}

const NEVER_FAILS: &str = "writing to a string cannot fail";

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.name(field.name());
        self.0.push('"');
        write!(Escaped(&mut self.0), "{value:?}").expect(NEVER_FAILS);
        self.0.push('"');
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field.name());
        self.string(value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field.name());
        self.0.push_str(if value { "true" } else { "false" });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.number(field, format_args!("{value:?}"));
        } else {
            // JSON has no number for NaN or infinity.
            self.name(field.name());
            self.0.push_str("null");
        }
    }
}

/// Writes text as the content of a JSON string.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(text, self.0);
        Ok(())
    }
}

fn escape(text: &str, line: &mut String) {
    // All bytes of characters outside of ASCII are greater than these.
    let needs_escape = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    let mut rest = text;
    // `fold` has no branch, so the compiler vectorizes it. Few texts need an escape.
    if !text.bytes().fold(false, |found, byte| found | needs_escape(byte)) {
        return line.push_str(text);
    }
    while let Some(at) = rest.bytes().position(needs_escape) {
        line.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            byte @ (b'"' | b'\\') => line.extend(['\\', char::from(byte)]),
            control => write!(line, "\\u{control:04x}").expect(NEVER_FAILS),
        }
        rest = &rest[at + 1..];
    }
    line.push_str(rest);
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::metrics::Metrics;
    use crate::telemetry::{Log, RequestContext};

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(lines)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `work` logs, without their timestamps.
    fn logged(work: impl FnOnce()) -> Vec<Value> {
        let memory = Memory::default();
        let (log, output) = Log::start(memory.clone(), Metrics::new());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(JsonLines::new(output)), work);
        drop(log);
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        let line = |line: &str| {
            let mut line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let at = line.as_object_mut().unwrap().remove("timestamp").unwrap();
            assert!(chrono::DateTime::parse_from_rfc3339(at.as_str().unwrap()).is_ok(), "{at}");
            line
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn an_event_has_its_own_fields_and_the_request_context_so_far() {
        let lines = logged(|| {
            let context = RequestContext::new();
            context.record("route", "/jobs");
            context.in_scope(|| {
                tracing::warn!(status = 503, code = Some("overloaded"), missing = None::<u8>, "refused");
                context.record("tenant", "acme");
                tracing::info!(duration_ms = 2.0, ok = true, left = -1, "answered");
            });
            tracing::info!("stopped");
        });
        let target = module_path!();
        let (early, late) = (
            json!({"name": "request", "route": "/jobs"}),
            json!({"name": "request", "route": "/jobs", "tenant": "acme"}),
        );
        let refused = json!({"level": "WARN", "message": "refused", "status": 503, "code": "overloaded",
            "target": target, "span": early});
        let answered = json!({"level": "INFO", "message": "answered", "duration_ms": 2.0, "ok": true, "left": -1,
            "target": target, "span": late});
        let stopped = json!({"level": "INFO", "message": "stopped", "target": target});
        assert_eq!(lines, [refused, answered, stopped]);
    }

    #[test]
    fn every_text_is_one_string_on_one_line() {
        for text in ["", "plain", "\"quoted\" \\ and more", "a\nb\r\t\0\u{7f}\u{1b}[0m", "né ☃ 😀", "\"", "\\\\"] {
            let lines = logged(|| tracing::info!(a = text, b = %text, c = ?Some(text), "{text}"));
            assert_eq!(lines.len(), 1);
            for name in ["a", "b", "message"] {
                assert_eq!(lines[0][name], text, "{name}");
            }
            assert_eq!(lines[0]["c"], format!("{:?}", Some(text)));
        }
    }

    #[test]
    fn numbers_are_numbers() {
        let lines = logged(|| tracing::info!(a = f64::NAN, b = 1e21, c = 0.000_01, d = u64::MAX, e = i64::MIN));
        assert_eq!((&lines[0]["a"], &lines[0]["b"], &lines[0]["c"]), (&Value::Null, &json!(1e21), &json!(0.000_01)));
        assert_eq!((&lines[0]["d"], &lines[0]["e"]), (&json!(u64::MAX), &json!(i64::MIN)));
    }
}
