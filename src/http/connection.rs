//! A client's connection: how long it may keep the server waiting, and whether it takes more requests.
//!
//! The framework has a deadline for the first request's head and for an idle connection. It has none for the head of a
//! later request and none for a client that does not read its answer. [`Connection`] adds both.
//!
//! The framework also parses every request that has arrived, some thousands in one read. So [`Connection`] hands it one
//! head at a time, and none while an answer waits for the client or a request without a body is being worked on. See
//! ADR 0028.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use memchr::memchr_iter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::metrics::CountedConnection;

/// How long a client may keep a connection waiting.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionDeadlines {
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// Between two bytes of an answer that the client accepts.
    pub write: Duration,
}

/// A byte stream that fails with [`io::ErrorKind::TimedOut`] when the client keeps it waiting for too long. The
/// framework then closes it.
pub struct Connection<T> {
    io: T,
    /// Has the system throw away what the client has not taken, when the stream is closed because of a deadline. It would
    /// keep it for minutes otherwise.
    discard: fn(&T),
    state: Rc<ConnectionState>,
    deadlines: ConnectionDeadlines,
    /// Since when no byte of an answer has been accepted, while there is one to send.
    stalled_since: Option<Instant>,
    /// What has arrived behind a head that was handed over.
    ahead: BytesMut,
    /// The framework is to look at what it has before it gets more.
    paused: bool,
    /// Since the last line feed there has been nothing, or a carriage return: the next line feed ends a head.
    line_is_empty: bool,
    /// Armed only while a deadline runs, and left as it is when that ends: to arm it for each request would cost more.
    timer: Option<Pin<Box<Sleep>>>,
}

/// What the requests of one connection share. A handler finds it as connection data.
pub struct ConnectionState {
    /// A request is being worked on.
    busy: Cell<bool>,
    /// It has a body, which may still be arriving.
    has_body: Cell<bool>,
    /// Who waits to read until the request is done.
    waiting: RefCell<Option<Waker>>,
    /// When the first byte of the next request's head arrived.
    head_since: Cell<Option<Instant>>,
    /// A request or an answer said `Connection: close`.
    closing: Cell<bool>,
    _counted: Option<CountedConnection>,
}

/// While this lives, a request is being worked on.
pub struct Busy(Rc<ConnectionState>);

impl<T> Connection<T> {
    /// `counted`: for the connections that the metrics count.
    pub fn new(io: T, discard: fn(&T), deadlines: ConnectionDeadlines, counted: Option<CountedConnection>) -> Self {
        let state = ConnectionState {
            busy: Cell::default(),
            has_body: Cell::default(),
            waiting: RefCell::default(),
            head_since: Cell::default(),
            closing: Cell::default(),
            _counted: counted,
        };
        Self {
            io,
            discard,
            state: Rc::new(state),
            deadlines,
            stalled_since: None,
            ahead: BytesMut::new(),
            paused: false,
            line_is_empty: false,
            timer: None,
        }
    }

    pub fn state(&self) -> Rc<ConnectionState> {
        Rc::clone(&self.state)
    }

    /// Called whenever the stream has to wait: fails once a deadline has passed, else sees that the task is woken then.
    fn check_deadlines(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let head = self.state.head_since.get().map(|since| since + self.deadlines.head);
        let write = self.stalled_since.map(|since| since + self.deadlines.write);
        let Some(deadline) = head.into_iter().chain(write).min() else { return Ok(()) };
        if deadline <= Instant::now() {
            (self.discard)(&self.io);
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // Armed for an earlier moment it may stay: the task is woken, and comes here again.
        while timer.deadline() > deadline || timer.as_mut().poll(context).is_ready() {
            timer.as_mut().reset(deadline);
        }
        Ok(())
    }

    fn written(&mut self, wrote: &Poll<io::Result<usize>>, context: &mut Context<'_>) -> io::Result<()> {
        if wrote.is_ready() {
            if self.stalled_since.take().is_some() {
                // Reading was put off meanwhile.
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
        if self.stalled_since.is_some() || self.state.withholds(context.waker()) {
            // Woken when the client takes something, or when the request is done.
            self.check_deadlines(context)?;
            return Poll::Pending;
        }
        if std::mem::take(&mut self.paused) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let start = buffer.filled().len();
        if self.ahead.is_empty() {
            let read = Pin::new(&mut self.io).poll_read(context, buffer);
            if read.is_pending() {
                self.check_deadlines(context)?;
            }
            ready!(read)?;
        } else {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(length));
        }
        self.state.bytes_arrived();
        self.keep_what_follows_a_head(buffer, start);
        Poll::Ready(Ok(()))
    }
}

impl<T> Connection<T> {
    /// Takes out of the buffer again what was read behind the end of a head, or behind what looks like one in a body.
    fn keep_what_follows_a_head(&mut self, buffer: &mut ReadBuf<'_>, start: usize) {
        let arrived = &buffer.filled()[start..];
        let mut line_start = 0;
        for line_feed in memchr_iter(b'\n', arrived) {
            let line = &arrived[line_start..line_feed];
            let ends_head = line.is_empty() || line == b"\r";
            line_start = line_feed + 1;
            if !std::mem::replace(&mut self.line_is_empty, true) || !ends_head || line_start == arrived.len() {
                continue;
            }
            let mut rest = BytesMut::from(&arrived[line_start..]);
            rest.unsplit(std::mem::take(&mut self.ahead));
            self.ahead = rest;
            self.paused = true;
            buffer.set_filled(start + line_start);
            return;
        }
        let last_line = &arrived[line_start..];
        self.line_is_empty &= last_line.is_empty() || last_line == b"\r";
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
    /// Whether nothing more is to be read for now: not even the rest of a body is expected. Wakes `waker` when that is over.
    fn withholds(&self, waker: &Waker) -> bool {
        let withholds = self.busy.get() && !self.has_body.get();
        if withholds {
            self.waiting.borrow_mut().replace(waker.clone());
        }
        withholds
    }

    /// Begins a request; `None` if an earlier request or its answer has closed the connection. What comes behind must
    /// not be carried out (RFC 9112, section 9.6).
    pub fn start_request(self: &Rc<Self>, has_body: bool) -> Option<Busy> {
        if self.closing.get() {
            return None;
        }
        self.busy.set(true);
        self.has_body.set(has_body);
        self.head_since.set(None);
        Some(Busy(Rc::clone(self)))
    }

    /// The request that is being worked on is the last one.
    pub fn close(&self) {
        self.closing.set(true);
    }

    fn bytes_arrived(&self) {
        if !self.busy.get() && self.head_since.get().is_none() {
            self.head_since.set(Some(Instant::now()));
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(false);
        if let Some(waiting) = self.0.waiting.take() {
            waiting.wake();
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
    async fn a_head_that_does_not_end_ends_the_connection_however_it_drips() {
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
    async fn an_idle_connection_and_a_request_under_way_have_no_deadline_here() {
        let (mut client, mut server) = connection();
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, server.read_u8()).await.is_err(), "idle: for the framework to end");
        for _ in 0..3 {
            client.write_u8(b'x').await.unwrap();
            server.read_u8().await.unwrap();
            let busy = server.state().start_request(true).unwrap();
            assert!(tokio::time::timeout(day, server.read_u8()).await.is_err(), "a body has a deadline of its own");
            drop(busy);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_accepts_nothing_ends_the_connection_and_a_slow_one_does_not() {
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

    /// What is read at once, as the framework does: until nothing more is there for now.
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
    async fn heads_are_handed_over_one_by_one_however_they_arrive() {
        for separator in ["\r\n\r\n", "\n\n", "\n\r\n"] {
            let (mut client, mut server) = connection_with_room();
            let head = format!("GET / HTTP/1.1\r\nhost: x{separator}");
            client.write_all(head.repeat(20).as_bytes()).await.unwrap();
            for n in 0..20 {
                assert_eq!(String::from_utf8(read_at_once(&mut server).await).unwrap(), head, "{n}");
            }
            // And where a part ends within the separator.
            let (first, second) = head.split_at(head.len() - 1);
            client.write_all(first.as_bytes()).await.unwrap();
            assert_eq!(read_at_once(&mut server).await, first.as_bytes());
            client.write_all(format!("{second}{head}").as_bytes()).await.unwrap();
            assert_eq!(read_at_once(&mut server).await, second.as_bytes());
            assert_eq!(read_at_once(&mut server).await, head.as_bytes());
        }
    }

    #[tokio::test]
    async fn a_body_is_handed_over_whole_though_it_has_empty_lines() {
        let (mut client, mut server) = connection_with_room();
        let request = "POST / HTTP/1.1\r\n\r\n{\n\n\"a\":1,\r\n\r\n\n\n\n\"b\":2}\n";
        client.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        while read.len() < request.len() {
            read.extend(read_at_once(&mut server).await);
        }
        assert_eq!(String::from_utf8(read).unwrap(), request);
    }

    #[tokio::test]
    async fn nothing_is_read_while_a_request_without_a_body_is_worked_on() {
        let (mut client, mut server) = connection_with_room();
        client.write_all(b"x").await.unwrap();
        assert_eq!(read_at_once(&mut server).await, b"x");
        let busy = server.state().start_request(false).unwrap();
        client.write_all(b"y").await.unwrap();
        assert_eq!(read_at_once(&mut server).await, b"");
        let mut reading = Box::pin(server.read_u8());
        assert!(futures_util::poll!(&mut reading).is_pending());
        drop(busy);
        assert_eq!(reading.await.unwrap(), b'y');
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_begins_behind_the_last_request() {
        let (_client, server) = connection();
        let state = server.state();
        drop(state.start_request(false).unwrap());
        let last = state.start_request(false).unwrap();
        state.close();
        drop(last);
        assert!(state.start_request(false).is_none());
        advance(Duration::from_secs(1)).await;
    }
}
