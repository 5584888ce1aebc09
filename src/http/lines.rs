//! Reads a body line by line as it arrives (NDJSON), so that the whole body is never in memory.

use bytes::{Buf, Bytes, BytesMut};

use super::Problem;
use super::body::{Incoming, JsonLines};

pub struct Lines {
    body: Incoming<JsonLines>,
    /// Bytes that have arrived and are not yet returned. The first `searched` bytes have no line break.
    arrived: BytesMut,
    searched: usize,
    ended: bool,
    line_bytes_max: usize,
    /// The current line is too long, and its rest is discarded.
    skipping: bool,
}

pub enum Line {
    Text(Bytes),
    TooLong,
}

impl Lines {
    pub fn of(body: Incoming<JsonLines>, line_bytes_max: usize) -> Self {
        Self { body, arrived: BytesMut::new(), searched: 0, ended: false, line_bytes_max, skipping: false }
    }

    /// The next lines and their size: about `about_bytes` in total, or all remaining lines. White space around a line
    /// is removed, and empty lines are skipped. No lines: the body has ended.
    ///
    /// # Errors
    /// As [`Incoming::next`].
    pub async fn next(&mut self, about_bytes: usize) -> Result<(Vec<Line>, usize), Problem> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while bytes < about_bytes {
            let Some(line) = self.next_line().await? else { break };
            if let Line::Text(text) = &line {
                bytes += text.len();
            }
            lines.push(line);
        }
        Ok((lines, bytes))
    }

    async fn next_line(&mut self) -> Result<Option<Line>, Problem> {
        loop {
            let end = self.arrived[self.searched..].iter().position(|byte| *byte == b'\n');
            let end = end
                .map(|at| self.searched + at)
                .or((self.ended && !self.arrived.is_empty()).then_some(self.arrived.len()));
            if let Some(end) = end {
                let line = self.arrived.split_to(end).freeze();
                self.arrived.advance(self.arrived.len().min(1));
                self.searched = 0;
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                let line = line.slice_ref(line.trim_ascii());
                match line.len() {
                    0 => continue,
                    length if length > self.line_bytes_max => return Ok(Some(Line::TooLong)),
                    _ => return Ok(Some(Line::Text(line))),
                }
            }
            if self.ended {
                return Ok(None);
            }
            self.searched = self.arrived.len();
            if self.searched > self.line_bytes_max {
                self.arrived.clear();
                self.searched = 0;
                if !std::mem::replace(&mut self.skipping, true) {
                    return Ok(Some(Line::TooLong));
                }
            }
            match self.body.next().await? {
                Some(part) => self.arrived.extend_from_slice(&part),
                None => self.ended = true,
            }
        }
    }
}
