//! A client's connection: its deadlines, and the pacing of its requests.
//!
//! The framework has a deadline for the first request's head and for an idle connection. It has none for the head of a
//! later request and none for a client that does not read its answer. [`Connection`] adds both.
//!
//! The framework also parses every request that has arrived, up to thousands in one read. So [`Connection`] passes it
//! one head at a time, then the body as soon as the handler asks for it, and nothing else until the request is
//! answered. See ADR 0028.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use memchr::memchr_iter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::metrics::CountedConnection;

/// How long a client may keep the server waiting.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionDeadlines {
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// Between two writes of an answer that the client accepts.
    pub write: Duration,
}

/// A byte stream that fails with [`io::ErrorKind::TimedOut`] after a deadline. The framework then closes it.
pub struct Connection<T> {
    io: T,
    /// Makes the system discard unsent bytes when the stream is closed because of a deadline. Otherwise it would keep
    /// them for minutes.
    discard: fn(&T),
    state: Rc<ConnectionState>,
    deadlines: ConnectionDeadlines,
    /// Since when the client has accepted no byte of an answer, while there are bytes to send.
    stalled_since: Option<Instant>,
    /// Bytes that have arrived, but that the framework must not get yet.
    ahead: BytesMut,
    scan: HeadScan,
    /// Set only when a deadline is checked, and not reset when that deadline ends. To set it for each request would
    /// cost more.
    timer: Option<Pin<Box<Sleep>>>,
}

/// The state that the requests of one connection share. Handlers get it as connection data.
pub struct ConnectionState {
    next: Cell<Next>,
    /// The length of the current request's body, until the handler asks for the body.
    body: Cell<Option<BodyLength>>,
    /// Whether a request is in progress.
    busy: Cell<bool>,
    /// Bytes of the body that the framework has got, chunk framing included.
    body_bytes: Cell<usize>,
    /// Wakes the task when it may read again.
    waiting: RefCell<Option<Waker>>,
    /// When the first byte of the next request's head arrived.
    head_since: Cell<Option<Instant>>,
    /// Whether a request or an answer had `Connection: close`.
    closing: Cell<bool>,
    /// Whether the client has closed its side of the connection. Bytes that the framework has not got may be left.
    ended: Cell<bool>,
    /// Wakes a request that waits when the client closes its side.
    awaiting_end: RefCell<Option<Waker>>,
    _counted: Option<CountedConnection>,
}

/// What the framework gets next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A head, up to its end.
    Head,
    /// Nothing. The framework has got a head and has not yet started its request, or the handler has not asked for the
    /// request's body, or the framework has got all of the body.
    Nothing,
    Body(BodyLength),
}

/// How long a body is (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// The number of remaining bytes.
    Bytes(u64),
    /// Unknown. The framework finds the end.
    Chunked,
}

/// Finds the end of a head: an empty line after a line that is not empty.
#[derive(Default)]
struct HeadScan {
    /// Whether the current line so far has more than a carriage return.
    in_line: bool,
    /// Whether a line that is not empty has begun.
    in_head: bool,
}

/// The connection's request is in progress until this is dropped.
pub struct Busy(Rc<ConnectionState>);

/// The most bytes that are read ahead while a request is in progress.
const READ_AHEAD_BYTES: usize = 512;

/// The framework gets at least this much of a chunked body at a time, even if it has empty lines.
const CHUNKED_BYTES_MIN: usize = 1024;

impl<T> Connection<T> {
    /// `counted` is set for connections that the metrics count.
    pub fn new(io: T, discard: fn(&T), deadlines: ConnectionDeadlines, counted: Option<CountedConnection>) -> Self {
        let state = ConnectionState {
            next: Cell::new(Next::Head),
            body: Cell::default(),
            busy: Cell::default(),
            body_bytes: Cell::default(),
            waiting: RefCell::default(),
            head_since: Cell::default(),
            closing: Cell::default(),
            ended: Cell::default(),
            awaiting_end: RefCell::default(),
            _counted: counted,
        };
        Self {
            io,
            discard,
            state: Rc::new(state),
            deadlines,
            stalled_since: None,
            ahead: BytesMut::new(),
            scan: HeadScan::default(),
            timer: None,
        }
    }

    pub fn state(&self) -> Rc<ConnectionState> {
        Rc::clone(&self.state)
    }

    /// Must be called whenever the stream has to wait. Fails if a deadline has passed. Otherwise makes sure that the
    /// task is woken at the deadline.
    fn check_deadlines(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let head = self.state.head_since.get().map(|since| since + self.deadlines.head);
        let write = self.stalled_since.map(|since| since + self.deadlines.write);
        let Some(deadline) = head.into_iter().chain(write).min() else { return Ok(()) };
        if deadline <= Instant::now() {
            (self.discard)(&self.io);
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // A timer that is set to an earlier time may stay so: it wakes the task, which comes here again.
        while timer.deadline() > deadline || timer.as_mut().poll(context).is_ready() {
            timer.as_mut().reset(deadline);
        }
        Ok(())
    }

    fn written(&mut self, wrote: &Poll<io::Result<usize>>, context: &mut Context<'_>) -> io::Result<()> {
        if wrote.is_ready() {
            if self.stalled_since.take().is_some() {
                // `poll_read` did nothing in the meantime.
                context.waker().wake_by_ref();
            }
            return Ok(());
        }
        self.stalled_since.get_or_insert_with(Instant::now);
        self.check_deadlines(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stalled_since.is_some() {
            // `written` wakes the task when the client accepts bytes.
            self.check_deadlines(context)?;
            return Poll::Pending;
        }
        if self.state.next.get() == Next::Nothing {
            ready!(self.read_ahead(context))?;
            self.state.waiting.borrow_mut().replace(context.waker().clone());
            self.check_deadlines(context)?;
            return Poll::Pending;
        }
        if !self.ahead.is_empty() {
            let arrived = self.ahead.len().min(buffer.remaining());
            let this = &mut *self;
            let length = this.state.take(&this.ahead[..arrived], &mut this.scan);
            buffer.put_slice(&this.ahead.split_to(length));
            return Poll::Ready(Ok(()));
        }
        if self.state.ended.get() {
            return Poll::Ready(Ok(()));
        }
        let start = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if read.is_pending() {
            self.check_deadlines(context)?;
        }
        ready!(read)?;
        let this = &mut *self;
        let arrived = &buffer.filled()[start..];
        let length = this.state.take(arrived, &mut this.scan);
        this.ahead = BytesMut::from(&arrived[length..]);
        buffer.set_filled(start + length);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> Connection<T> {
    /// Reads a few bytes into `ahead`, to learn when the client closes its side. If none have arrived, returns `Pending`:
    /// the system then wakes the task when bytes arrive, so the end of the request does not have to.
    fn read_ahead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.state.ended.get() && self.ahead.len() < READ_AHEAD_BYTES {
            let mut space = [MaybeUninit::uninit(); READ_AHEAD_BYTES];
            let mut buffer = ReadBuf::uninit(&mut space[self.ahead.len()..]);
            match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
                Poll::Pending if self.ahead.is_empty() => {
                    self.check_deadlines(context)?;
                    return Poll::Pending;
                }
                Poll::Pending => break,
                Poll::Ready(read) => read?,
            }
            if buffer.filled().is_empty() {
                self.state.end();
            }
            self.ahead.extend_from_slice(buffer.filled());
        }
        Poll::Ready(Ok(()))
    }
}

impl HeadScan {
    /// The number of bytes up to the end of the head. An end within the first `min` bytes does not count. `None` if the
    /// end has not arrived.
    fn until_empty_line(&mut self, bytes: &[u8], min: usize) -> Option<usize> {
        let mut line_start = 0;
        for line_feed in memchr_iter(b'\n', bytes) {
            self.see(&bytes[line_start..line_feed]);
            line_start = line_feed + 1;
            let is_empty = !std::mem::take(&mut self.in_line);
            if is_empty && self.in_head && line_start >= min {
                *self = Self::default();
                return Some(line_start);
            }
        }
        self.see(&bytes[line_start..]);
        None
    }

    fn see(&mut self, part_of_line: &[u8]) {
        self.in_line |= !matches!(part_of_line, b"" | b"\r");
        self.in_head |= self.in_line;
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write(context, bytes);
        self.written(&wrote, context)?;
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write_vectored(context, pieces);
        self.written(&wrote, context)?;
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl ConnectionState {
    /// How many of the arrived bytes the framework gets now.
    fn take(&self, arrived: &[u8], scan: &mut HeadScan) -> usize {
        match self.next.get() {
            Next::Nothing => 0,
            Next::Head => {
                if !arrived.is_empty() && self.head_since.get().is_none() {
                    self.head_since.set(Some(Instant::now()));
                }
                let end = scan.until_empty_line(arrived, 0);
                if end.is_some() {
                    self.next.set(Next::Nothing);
                }
                end.unwrap_or(arrived.len())
            }
            Next::Body(BodyLength::Bytes(due)) => {
                let length = usize::try_from(due).unwrap_or(usize::MAX).min(arrived.len());
                self.body_bytes.update(|bytes| bytes + length);
                match due - length as u64 {
                    0 => self.body_ended(),
                    due => self.next.set(Next::Body(BodyLength::Bytes(due))),
                }
                length
            }
            // The body may end at each empty line, and the next head would follow.
            Next::Body(BodyLength::Chunked) => {
                let mut scan = HeadScan { in_line: false, in_head: true };
                let length = scan.until_empty_line(arrived, CHUNKED_BYTES_MIN).unwrap_or(arrived.len());
                self.body_bytes.update(|bytes| bytes + length);
                length
            }
        }
    }

    fn hand_over(&self, next: Next) {
        self.next.set(next);
        if next != Next::Nothing
            && let Some(waiting) = self.waiting.take()
        {
            waiting.wake();
        }
    }

    /// Starts a request. `None` if an earlier request or its answer had `Connection: close`: the server must not
    /// process any request after it (RFC 9112, section 9.6).
    pub fn start_request(self: &Rc<Self>, body: Option<BodyLength>) -> Option<Busy> {
        self.head_since.set(None);
        if self.closing.get() {
            return None;
        }
        self.busy.set(true);
        self.body.set(body.filter(|length| *length != BodyLength::Bytes(0)));
        self.body_bytes.set(0);
        self.next.set(Next::Nothing);
        Some(Busy(Rc::clone(self)))
    }

    /// Called when the handler asks for the body.
    pub fn want_body(&self) {
        if let Some(length) = self.body.take() {
            self.hand_over(Next::Body(length));
        }
    }

    /// Called when the framework has got the whole body.
    pub fn body_ended(&self) {
        self.next.set(if self.busy.get() { Next::Nothing } else { Next::Head });
    }

    /// The bytes of the body that the framework has got, chunk framing included.
    pub fn body_bytes(&self) -> usize {
        self.body_bytes.get()
    }

    fn end(&self) {
        self.ended.set(true);
        if let Some(waiting) = self.awaiting_end.take() {
            waiting.wake();
        }
    }

    /// Returns once the client has closed its side of the connection, while a request is in progress. Not noticed behind
    /// more than [`READ_AHEAD_BYTES`] of later requests.
    pub async fn closed_by_client(&self) {
        poll_fn(|context| {
            if self.ended.get() {
                return Poll::Ready(());
            }
            self.awaiting_end.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Makes the current request the last one of the connection.
    pub fn close(&self) {
        self.closing.set(true);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(false);
        // The framework discards the rest of the body.
        self.0.want_body();
        if self.0.next.get() == Next::Nothing {
            self.0.hand_over(Next::Head);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::advance;

    use super::*;

    const DEADLINES: ConnectionDeadlines =
        ConnectionDeadlines { head: Duration::from_secs(10), write: Duration::from_secs(20) };

    fn connection() -> (DuplexStream, Connection<DuplexStream>) {
        let (client, server) = duplex(8);
        (client, Connection::new(server, |_| {}, DEADLINES, None))
    }

    fn timed_out<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
        result.unwrap_err().kind() == io::ErrorKind::TimedOut
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_arrives_slowly_is_ended_by_its_deadline() {
        let (mut client, mut server) = connection();
        let began = Instant::now();
        let reading = async {
            while server.read_u8().await? != b'!' {}
            Ok(())
        };
        let dripping = async {
            loop {
                client.write_u8(b'x').await?;
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        };
        let ended: io::Result<()> = tokio::select! { ended = reading => ended, ended = dripping => ended };
        assert!(timed_out(ended));
        assert_eq!(began.elapsed(), DEADLINES.head);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_and_a_request_in_progress_have_no_deadline_here() {
        let (mut client, mut server) = connection();
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, server.read_u8()).await.is_err(), "the framework ends idle connections");
        for _ in 0..3 {
            client.write_u8(b'x').await.unwrap();
            server.read_u8().await.unwrap();
            let busy = server.state().start_request(Some(BodyLength::Chunked)).unwrap();
            assert!(tokio::time::timeout(day, server.read_u8()).await.is_err(), "a body has its own deadline");
            drop(busy);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_disconnected_but_a_slow_one_is_not() {
        let (mut client, mut server) = connection();
        let writing = server.write_all(&[0; 40]);
        let reading = async {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(19)).await;
                client.read_exact(&mut [0; 8]).await?;
            }
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! { written = writing => written.unwrap(), ended = reading => ended.unwrap() }
        let began = Instant::now();
        assert!(timed_out(server.write_all(&[0; 40]).await));
        assert_eq!(began.elapsed(), DEADLINES.write);
    }

    /// Reads as the framework does: until no more bytes are available.
    async fn read_at_once(server: &mut Connection<DuplexStream>) -> Vec<u8> {
        let mut bytes = Vec::new();
        std::future::poll_fn(|context| {
            loop {
                let mut space = [0; 64];
                let mut buffer = ReadBuf::new(&mut space);
                match Pin::new(&mut *server).poll_read(context, &mut buffer) {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => return Poll::Ready(()),
                }
                bytes.extend_from_slice(buffer.filled());
            }
        })
        .await;
        bytes
    }

    fn connection_with_room() -> (DuplexStream, Connection<DuplexStream>) {
        let (client, server) = duplex(4096);
        (client, Connection::new(server, |_| {}, DEADLINES, None))
    }

    #[tokio::test]
    async fn the_framework_gets_one_head_at_a_time() {
        for separator in ["\r\n\r\n", "\n\n", "\n\r\n"] {
            let (mut client, mut server) = connection_with_room();
            let head = format!("GET / HTTP/1.1\r\nhost: x{separator}");
            client.write_all(head.repeat(20).as_bytes()).await.unwrap();
            for n in 0..20 {
                assert_eq!(String::from_utf8(read_at_once(&mut server).await).unwrap(), head, "{n}");
                assert_eq!(read_at_once(&mut server).await, b"", "until the request is done");
                drop(server.state().start_request(None));
            }
            // The same if a part ends within the separator.
            let (first, second) = head.split_at(head.len() - 1);
            client.write_all(first.as_bytes()).await.unwrap();
            assert_eq!(read_at_once(&mut server).await, first.as_bytes());
            client.write_all(format!("{second}{head}").as_bytes()).await.unwrap();
            assert_eq!(read_at_once(&mut server).await, second.as_bytes());
            drop(server.state().start_request(None));
            assert_eq!(read_at_once(&mut server).await, head.as_bytes());
        }
    }

    /// A client that has sent the head of a POST and `more`. The server has read the head.
    async fn posted(more: &str) -> (DuplexStream, Connection<DuplexStream>) {
        const HEAD: &str = "POST / HTTP/1.1\r\n\r\n";
        let (mut client, mut server) = connection_with_room();
        client.write_all(format!("{HEAD}{more}").as_bytes()).await.unwrap();
        assert_eq!(read_at_once(&mut server).await, HEAD.as_bytes());
        (client, server)
    }

    #[tokio::test]
    async fn the_framework_gets_a_body_on_request_but_not_what_follows_it() {
        let (body, behind) = ("{\n\n\"a\":1,\r\n\r\n\n\n\n\"b\":2}\n", "GET / HTTP/1.1\r\n\r\n");
        let (mut client, mut server) = posted(&format!("{body}{}", behind.repeat(2))).await;
        let busy = server.state().start_request(Some(BodyLength::Bytes(body.len() as u64))).unwrap();
        assert_eq!(read_at_once(&mut server).await, b"", "not wanted yet");
        server.state().want_body();
        assert_eq!(read_at_once(&mut server).await, body.as_bytes(), "in one part, although it has empty lines");
        client.write_all(behind.as_bytes()).await.unwrap();
        assert_eq!(read_at_once(&mut server).await, b"");
        drop(busy);
        for _ in 0..3 {
            assert_eq!(read_at_once(&mut server).await, behind.as_bytes());
            drop(server.state().start_request(None));
        }
    }

    #[tokio::test]
    async fn the_framework_gets_a_chunked_body_of_empty_lines_in_large_parts() {
        let body = "\n".repeat(3000);
        let (_client, mut server) = posted(&body).await;
        let _busy = server.state().start_request(Some(BodyLength::Chunked)).unwrap();
        server.state().want_body();
        let mut context = Context::from_waker(Waker::noop());
        let (mut read, mut parts) = (0, 0);
        while read < body.len() {
            let mut space = [0; 4096];
            let mut buffer = ReadBuf::new(&mut space);
            assert!(Pin::new(&mut server).poll_read(&mut context, &mut buffer).is_ready());
            (read, parts) = (read + buffer.filled().len(), parts + 1);
        }
        assert!(parts <= 5, "{parts}");
        assert_eq!(server.state().body_bytes(), body.len());
    }

    #[tokio::test]
    async fn empty_lines_before_a_head_do_not_end_it() {
        let (mut client, mut server) = connection_with_room();
        let text = format!("{}GET / HTTP/1.1\r\n\r\n", "\r\n".repeat(100));
        client.write_all(text.as_bytes()).await.unwrap();
        assert_eq!(String::from_utf8(read_at_once(&mut server).await).unwrap(), text);
    }

    #[tokio::test]
    async fn only_a_few_bytes_are_read_ahead_during_a_request() {
        let (mut client, mut server) = posted("").await;
        let busy = server.state().start_request(None).unwrap();
        assert_eq!(read_at_once(&mut server).await, b"");
        client.write_all(&[b'y'; 4096]).await.unwrap();
        assert_eq!(read_at_once(&mut server).await, b"");
        assert_eq!(read_at_once(&mut server).await, b"");
        assert_eq!(server.ahead.len(), READ_AHEAD_BYTES);
        let mut reading = Box::pin(server.read_u8());
        assert!(futures_util::poll!(&mut reading).is_pending());
        drop(busy);
        assert_eq!(reading.await.unwrap(), b'y');
    }

    #[tokio::test]
    async fn an_end_of_stream_during_a_request_is_reported_after_it() {
        let (client, mut server) = posted("GET").await;
        let busy = server.state().start_request(None).unwrap();
        drop(client);
        assert_eq!(read_at_once(&mut server).await, b"");
        drop(busy);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"GET");
    }

    #[tokio::test]
    async fn a_request_learns_that_the_client_has_closed_its_side_also_behind_a_few_bytes() {
        for behind in ["", "\r\n"] {
            let (client, mut server) = posted(behind).await;
            let (_busy, state) = (server.state().start_request(None).unwrap(), server.state());
            let mut closed = Box::pin(state.closed_by_client());
            assert_eq!(read_at_once(&mut server).await, b"");
            assert!(futures_util::poll!(&mut closed).is_pending());
            drop(client);
            assert_eq!(read_at_once(&mut server).await, b"");
            assert!(futures_util::poll!(&mut closed).is_ready(), "{behind:?}");
        }
    }

    #[tokio::test]
    async fn an_unread_body_is_not_taken_for_a_head() {
        let (_client, mut server) = posted("12345\nGET / HTTP/1.1\r\n\r\nnext").await;
        drop(server.state().start_request(Some(BodyLength::Bytes(6))));
        assert_eq!(read_at_once(&mut server).await, b"12345\nGET / HTTP/1.1\r\n\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn no_request_starts_after_the_last_one() {
        let (_client, server) = connection();
        let state = server.state();
        drop(state.start_request(None).unwrap());
        let last = state.start_request(None).unwrap();
        state.close();
        drop(last);
        assert!(state.start_request(None).is_none());
        advance(Duration::from_secs(1)).await;
    }
}
