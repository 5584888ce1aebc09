//! A client's connection: how long it may keep the server waiting, and whether it takes more requests.
//!
//! The framework has a deadline for the first request's head and for an idle connection. It has none for the head of a
//! later request and none for a client that does not read its answer. [`Connection`] adds both. See ADR 0028.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

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
    /// Armed only while a deadline runs, and left as it is when that ends: to arm it for each request would cost more.
    timer: Option<Pin<Box<Sleep>>>,
}

/// What the requests of one connection share. A handler finds it as connection data.
pub struct ConnectionState {
    /// A request is being worked on.
    busy: Cell<bool>,
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
            head_since: Cell::default(),
            closing: Cell::default(),
            _counted: counted,
        };
        Self { io, discard, state: Rc::new(state), deadlines, stalled_since: None, timer: None }
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
            self.stalled_since = None;
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
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if read.is_ready() {
            self.state.bytes_arrived();
        } else {
            self.check_deadlines(context)?;
        }
        read
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
    /// Begins a request; `None` if an earlier request or its answer has closed the connection. What comes behind must
    /// not be carried out (RFC 9112, section 9.6).
    pub fn begin(self: &Rc<Self>) -> Option<Busy> {
        if self.closing.get() {
            return None;
        }
        self.busy.set(true);
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
            let busy = server.state().begin().unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn nothing_begins_behind_the_last_request() {
        let (_client, server) = connection();
        let state = server.state();
        drop(state.begin().unwrap());
        let last = state.begin().unwrap();
        state.close();
        drop(last);
        assert!(state.begin().is_none());
        advance(Duration::from_secs(1)).await;
    }
}
