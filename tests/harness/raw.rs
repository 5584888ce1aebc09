use std::net::SocketAddr;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{Answer, in_time};

/// An HTTP/1.1 connection that sends exactly the bytes that are written.
pub struct RawConnection {
    stream: TcpStream,
    token: String,
    unread: Vec<u8>,
    unwritten: Vec<u8>,
}

impl RawConnection {
    pub async fn open(address: SocketAddr, token: &str) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            token: token.to_owned(),
            unread: Vec::new(),
            unwritten: Vec::new(),
        }
    }

    /// `POST /jobs` with these header lines and this body. Adds the host and the token.
    pub async fn post_jobs(&mut self, headers: &[&[u8]], body: &[u8]) -> Answer {
        self.write_head("POST /jobs", headers).await;
        self.write(body).await;
        self.answer().await
    }

    pub async fn write_head(&mut self, request: &str, headers: &[&[u8]]) {
        let mut head =
            format!("{request} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {}\r\n", self.token).into_bytes();
        for line in headers {
            head.extend_from_slice(line);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        self.write(&head).await;
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        // A server that has already answered may have closed its side.
        let _closed = self.stream.write_all(bytes).await;
    }

    /// Writes as much as the socket accepts without waiting.
    pub async fn write_some(&mut self, mut bytes: &[u8]) {
        self.stream.writable().await.unwrap();
        while !bytes.is_empty()
            && let Ok(written) = self.stream.try_write(bytes)
        {
            bytes = &bytes[written..];
        }
    }

    /// Writes these bytes while answers are read, because either side may have to wait for the other.
    pub fn write_while_reading(&mut self, bytes: Vec<u8>) {
        self.unwritten = bytes;
    }

    /// Closes the client's side only. The server can still answer.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads an answer with a Content-Length.
    pub async fn answer(&mut self) -> Answer {
        in_time("an answer", self.read_answer()).await
    }

    /// Reads an answer to HEAD, whose Content-Length announces a body that is not sent.
    pub async fn answer_to_head(&mut self) -> Answer {
        let (status, headers) = in_time("an answer", self.read_head()).await;
        Answer { status, headers, body: Bytes::new() }
    }

    /// A connection with a small receive buffer, for a client that reads slowly.
    pub async fn open_with_small_buffer(address: SocketAddr, token: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self {
            stream: socket.connect(address).await.unwrap(),
            token: token.to_owned(),
            unread: Vec::new(),
            unwritten: Vec::new(),
        }
    }

    /// Whether the server has reset the connection, even if there are unread bytes.
    pub fn is_reset(&self) -> bool {
        self.stream.take_error().unwrap().is_some()
    }

    /// Reads until the server closes the connection. Returns the number of bytes.
    pub async fn until_closed(&mut self) -> usize {
        let mut bytes = self.unread.len();
        let reading = async {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = self.stream.read(&mut chunk).await {
                bytes += length;
            }
        };
        in_time("the connection is closed", reading).await;
        bytes
    }

    async fn read_answer(&mut self) -> Answer {
        let (status, headers) = self.read_head().await;
        let length = headers.get("content-length").map_or(0, |length| length.to_str().unwrap().parse().unwrap());
        while self.unread.len() < length {
            self.read_more().await;
        }
        Answer { status, headers, body: Bytes::from(self.unread.drain(..length).collect::<Vec<u8>>()) }
    }

    async fn read_head(&mut self) -> (u16, HeaderMap) {
        let head_end = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more().await;
        };
        let head = String::from_utf8(self.unread.drain(..head_end).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let fields = lines.filter_map(|line| line.split_once(": "));
        let headers: HeaderMap = fields
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect();
        (status, headers)
    }

    async fn read_more(&mut self) {
        let mut chunk = [0; 4096];
        let (mut reader, mut writer) = self.stream.split();
        let length = loop {
            tokio::select! {
                read = reader.read(&mut chunk) => break read.unwrap(),
                written = writer.write(&self.unwritten), if !self.unwritten.is_empty() => {
                    self.unwritten.drain(..written.unwrap());
                }
            }
        };
        assert!(length > 0, "closed without an answer, after {:?}", String::from_utf8_lossy(&self.unread));
        self.unread.extend_from_slice(&chunk[..length]);
    }
}
