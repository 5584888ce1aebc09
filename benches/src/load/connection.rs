//! One connection of the load: sends a request, then receives its answer.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, bail};
use mio::net::TcpStream;

pub struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    /// Bytes of the request that the socket has accepted.
    sent: usize,
    sent_at: Instant,
    answer: Box<[u8; LONGEST_ANSWER]>,
    received: usize,
}

/// The answer to a submission has half a kilobyte.
const LONGEST_ANSWER: usize = 16 * 1024;
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
            answer: Box::new([0; LONGEST_ANSWER]),
            received: 0,
        })
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub fn sent_at(&self) -> Instant {
        self.sent_at
    }

    /// Sends what `next` writes, as far as the socket accepts it.
    pub fn send(&mut self, next: &mut dyn FnMut(&mut Vec<u8>)) -> anyhow::Result<()> {
        next(&mut self.request);
        self.sent = 0;
        self.sent_at = Instant::now();
        self.send_rest()
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
        match self.stream.read(&mut self.answer[self.received..]) {
            Ok(0) => bail!("the server has closed a connection, or its answer is longer than {LONGEST_ANSWER} bytes"),
            Ok(read) => self.received += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("a connection was lost"),
        }
        // One read per event: further bytes cause another event.
        parse(&self.answer[..self.received])
    }

    pub fn forget_answer(&mut self) {
        self.received = 0;
    }
}

/// Sends one request on a connection of its own and returns the whole answer.
pub fn ask(address: SocketAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.write_all(request)?;
    let (mut answer, mut piece) = (Vec::new(), [0; LONGEST_ANSWER]);
    while parse(&answer)?.is_none() {
        let read = stream.read(&mut piece)?;
        anyhow::ensure!(read > 0, "the server has closed the connection");
        answer.extend_from_slice(&piece[..read]);
    }
    Ok(answer)
}

/// `None` while the answer is incomplete.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
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
            assert!(parse(&whole[..end]).unwrap().is_none(), "{end} bytes are not all");
        }
        let answer = parse(whole).unwrap().unwrap();
        assert_eq!((answer.status, answer.body), (201, &b"{}"[..]));
        assert!(parse(&[whole, &b"H"[..]].concat()).is_err());
    }
}
