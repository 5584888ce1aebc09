//! One connection: sends a request, then receives its answer. For the load without waiting, otherwise with.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::net::TcpStream;

pub struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    /// Bytes of the request that the socket has accepted.
    sent: usize,
    sent_at: Instant,
    answer: Vec<u8>,
    received: usize,
}

/// The answer to a submission has half a kilobyte, that to a claim of a hundred jobs fifty.
const USUAL_ANSWER: usize = 16 * 1024;
const LONGEST_ANSWER: usize = 1024 * 1024;
const HEADERS: usize = 32;

pub struct Answer<'connection> {
    pub status: u16,
    pub body: &'connection [u8],
}

impl Connection {
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = std::net::TcpStream::connect(address).with_context(|| format!("nobody listens on {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: TcpStream::from_std(stream),
            request: Vec::new(),
            sent: 0,
            sent_at: Instant::now(),
            answer: vec![0; USUAL_ANSWER],
            received: 0,
        })
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub fn sent_at(&self) -> Instant {
        self.sent_at
    }

    /// Sends what `write` writes, as far as the socket accepts it. `false` if it writes nothing.
    pub fn send(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> anyhow::Result<bool> {
        if !write(&mut self.request) {
            return Ok(false);
        }
        self.sent = 0;
        self.sent_at = Instant::now();
        self.send_rest()?;
        Ok(true)
    }

    pub fn send_rest(&mut self) -> anyhow::Result<()> {
        while self.sent < self.request.len() {
            match self.stream.write(&self.request[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("the server has closed a connection"),
            }
        }
        Ok(())
    }

    /// The answer, once it is complete.
    pub fn receive(&mut self) -> anyhow::Result<Option<Answer<'_>>> {
        loop {
            if self.received == self.answer.len() {
                ensure!(self.received < LONGEST_ANSWER, "an answer is longer than {LONGEST_ANSWER} bytes");
                self.answer.resize(2 * self.received, 0);
            }
            match self.stream.read(&mut self.answer[self.received..]) {
                Ok(0) => bail!("the server has closed a connection"),
                Ok(read) => self.received += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("a connection was lost"),
            }
            // If the buffer has room left, further bytes cause another event. Bytes that it had no room for do not.
            if self.received < self.answer.len() {
                break;
            }
        }
        read_answer(&self.answer[..self.received])
    }

    pub fn forget_answer(&mut self) {
        self.received = 0;
    }
}

/// A connection that waits for each answer.
pub struct Dialogue {
    stream: std::net::TcpStream,
}

/// Longer than the server lets a worker wait for a job.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

impl Dialogue {
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        Ok(Self { stream })
    }

    pub fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(request)?)
    }

    /// The whole answer, head and body.
    pub fn receive(&mut self) -> anyhow::Result<Vec<u8>> {
        let (mut answer, mut piece) = (Vec::new(), [0; USUAL_ANSWER]);
        while read_answer(&answer)?.is_none() {
            let read = self.stream.read(&mut piece)?;
            ensure!(read > 0, "the server has closed the connection");
            answer.extend_from_slice(&piece[..read]);
        }
        Ok(answer)
    }

    /// The body of an answer with this status.
    pub fn expect(&mut self, status: u16) -> anyhow::Result<Vec<u8>> {
        let whole = self.receive()?;
        let answer = read_answer(&whole)?.context("the answer is not whole")?;
        let body = answer.body;
        ensure!(answer.status == status, "{} instead of {status}: {}", answer.status, String::from_utf8_lossy(body));
        Ok(body.to_vec())
    }
}

/// Sends one request on a connection of its own and returns the whole answer.
pub fn ask(address: SocketAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut dialogue = Dialogue::open(address)?;
    dialogue.send(request)?;
    dialogue.receive()
}

/// `None` while the answer is incomplete.
fn read_answer(bytes: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(body_at) = head.parse(bytes)? else { return Ok(None) };
    let status = head.code.context("an answer has a status")?;
    let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length: usize = std::str::from_utf8(length.context("an answer says its length")?.value)?.parse()?;
    let whole = body_at + length;
    if bytes.len() > whole {
        bail!("more was answered than was asked");
    }
    Ok((bytes.len() == whole).then(|| Answer { status, body: &bytes[body_at..] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_returned_once_it_is_complete() {
        let whole = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nx: y\r\n\r\n{}";
        for end in 0..whole.len() {
            assert!(read_answer(&whole[..end]).unwrap().is_none(), "{end} bytes are not all");
        }
        let answer = read_answer(whole).unwrap().unwrap();
        assert_eq!((answer.status, answer.body), (201, &b"{}"[..]));
        assert!(read_answer(&[whole, &b"H"[..]].concat()).is_err());
    }
}
