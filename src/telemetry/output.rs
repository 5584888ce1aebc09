//! Lines are buffered in memory, and a separate thread writes many of them at a time.
//!
//! A line costs its request a copy, not a system call. If the reader of the log stalls, lines wait in the buffer. When
//! the buffer is full, further lines are lost, counted and reported. No request waits.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::metrics::Metrics;

/// The log of the process. When it is dropped, it writes the buffered lines.
pub struct Log(Output);

/// A handle that takes lines. Cheap to clone.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    metrics: Metrics,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines lost since the last report of lost lines.
    lost: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The buffered lines are still written.
    Ending,
    Ended,
}

/// Some thousands of lines: those of a busy replica in a second or more.
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The capacity that a buffer keeps after it was larger.
const KEPT_BYTES: usize = 256 * 1024;
/// How long lines are gathered before they are written. The delay does no harm, and a write for each line would cost
/// more than a replay.
const GATHER_DELAY: Duration = Duration::from_millis(5);
/// How long the process waits at its end for a reader that stalls.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

impl Log {
    pub fn start(out: impl Write + Send + 'static, metrics: Metrics) -> (Self, Output) {
        let output = Output(Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new(), metrics }));
        let (writer, out) = (output.clone(), Box::new(out));
        let started = thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(out));
        drop(started.expect("a process that starts is given a thread"));
        (Self(output.clone()), output)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let mut waiting = shared.lock();
        if waiting.stage == Stage::Open {
            waiting.stage = Stage::Ending;
        }
        shared.changed.notify_all();
        let ended = shared.changed.wait_timeout_while(waiting, STOP_TIMEOUT, |waiting| waiting.stage != Stage::Ended);
        drop(ended);
    }
}

impl Output {
    /// Buffers a whole line, or counts it as lost if the buffer is full.
    pub fn push(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.lines.len() + line.len() > WAITING_BYTES_MAX {
            waiting.lost += 1;
            self.0.metrics.count_lost_log_lines(1);
            return;
        }
        let is_first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if is_first {
            self.0.changed.notify_all();
        }
    }

    fn run(&self, mut out: Box<dyn Write>) {
        let mut lines = Vec::new();
        loop {
            self.wait_for_lines();
            let (lost, stage) = self.take(&mut lines);
            if out.write_all(&lines).and_then(|()| out.flush()).is_err() {
                // No warning: it could not be written either.
                let newlines = lines.iter().filter(|byte| **byte == b'\n').count();
                self.0.metrics.count_lost_log_lines(newlines as u64);
            } else if lost > 0 {
                tracing::warn!(lines = lost, "log lines were lost because the reader of the log was too slow");
            }
            lines.clear();
            lines.shrink_to(KEPT_BYTES);
            if stage == Stage::Ending {
                self.0.lock().stage = Stage::Ended;
                return self.0.changed.notify_all();
            }
        }
    }

    /// Waits for the first line, then for [`GATHER_DELAY`], so that the lines behind it are written together.
    fn wait_for_lines(&self) {
        let nothing_to_do = |waiting: &mut Waiting| waiting.lines.is_empty() && waiting.stage == Stage::Open;
        let waiting = self.0.changed.wait_while(self.0.lock(), nothing_to_do);
        let stage = waiting.unwrap_or_else(PoisonError::into_inner).stage;
        if stage == Stage::Open {
            thread::sleep(GATHER_DELAY);
        }
    }

    fn take(&self, lines: &mut Vec<u8>) -> (u64, Stage) {
        let mut waiting = self.0.lock();
        mem::swap(&mut waiting.lines, lines);
        (mem::take(&mut waiting.lost), waiting.stage)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the formatter of `tracing_subscriber`, which writes each line in one call.
impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A log reader. It takes a write only after the test allows it.
    struct Reader {
        /// Gets a message at the start of each write.
        waits: Sender<()>,
        read: Sender<Vec<u8>>,
        may_go_on: Receiver<()>,
    }

    impl Write for Reader {
        fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
            let _not_observed = self.waits.send(());
            let _the_test_is_over = self.may_go_on.recv();
            self.read.send(lines.to_vec()).map_err(io::Error::other)?;
            Ok(lines.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The test's ends of a reader's channels.
    struct Ends {
        waiting: Receiver<()>,
        lines: Receiver<Vec<u8>>,
        go_on: Sender<()>,
    }

    fn reader() -> (Reader, Ends) {
        let ((waits, waiting), (read, lines), (go_on, may_go_on)) = (channel(), channel(), channel());
        (Reader { waits, read, may_go_on }, Ends { waiting, lines, go_on })
    }

    #[test]
    fn buffered_lines_are_written_at_the_end() {
        let (reader, Ends { lines, go_on, .. }) = reader();
        let (log, output) = Log::start(reader, Metrics::new());
        drop(go_on);
        (0..1000).for_each(|n| output.push(format!("{n}\n").as_bytes()));
        drop(log);
        let written: Vec<u8> = lines.try_iter().flatten().collect();
        assert_eq!(written, (0..1000).map(|n| format!("{n}\n")).collect::<String>().as_bytes());
    }

    #[test]
    fn a_stalled_reader_blocks_no_caller_and_lost_lines_are_counted() {
        let (reader, Ends { waiting, lines, go_on }) = reader();
        let metrics = Metrics::new();
        let (log, output) = Log::start(reader, metrics.clone());
        output.push(b"the first\n");
        // From here on the reader takes nothing until it may go on.
        waiting.recv().unwrap();
        let line = vec![b'x'; WAITING_BYTES_MAX / 4];
        (0..9).for_each(|_| output.push(&line));
        assert!(metrics.encode().contains("hapax_log_lines_lost_total 5\n"), "four fit: {}", metrics.encode());
        drop(go_on);
        drop(log);
        assert!(lines.try_iter().flatten().count() > WAITING_BYTES_MAX / 2);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (reader, ends) = reader();
        drop(ends);
        let metrics = Metrics::new();
        let (log, output) = Log::start(reader, metrics.clone());
        output.push(b"one\n");
        output.push(b"two\n");
        drop(log);
        assert!(metrics.encode().contains("hapax_log_lines_lost_total 2\n"), "{}", metrics.encode());
    }
}
