use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::Row;
use crate::memory::Memory;
use crate::target::Target;

const LARGE_FILE: &str = "/docs/swagger-ui-bundle.js";
/// Longer than the server's write deadline.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(40);
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// Small, so that almost all of the answer stays on the server.
const RECEIVE_BUFFER: usize = 4096;
/// As on a real network. On loopback a segment has 64 KiB, so Linux would take a whole file into the socket's buffer.
const SEGMENT: u32 = 1400;

/// Half of the connections read a byte now and then, the other half reads nothing.
pub async fn slow(target: &Target) -> Row {
    let count = target.count(1000, 50);
    let _warm_up = target.server.request("GET", LARGE_FILE).send().await.unwrap().bytes().await;
    let memory = Memory::of(target.server.process());
    let until = Instant::now() + GIVEN_UP_AFTER;
    let mut readers = Vec::new();
    for n in 0..count {
        readers.push(tokio::spawn(read(target.server.address, n % 2 == 0, until)));
    }
    let mut open = [0, 0];
    for (n, reader) in readers.into_iter().enumerate() {
        open[n % 2] += usize::from(reader.await.unwrap());
    }
    let (growth, before) = (memory.growth(), memory.before());
    Row {
        attack: format!("{count} connections"),
        result: format!(
            "{growth} more than {before}; open after {} s: {} of {} that read a byte each {} ms, {} of {} that read nothing",
            GIVEN_UP_AFTER.as_secs(),
            open[0],
            count.div_ceil(2),
            READ_INTERVAL.as_millis(),
            open[1],
            count / 2
        ),
        neighbour: None,
    }
}

/// Whether the connection is still open at the end.
async fn read(address: SocketAddr, reads: bool, until: Instant) -> bool {
    let Some(mut stream) = ask(address).await else { return false };
    let reading = async {
        let mut byte = [0];
        while reads && matches!(stream.read(&mut byte).await, Ok(1)) {
            sleep(READ_INTERVAL).await;
        }
        if !reads {
            std::future::pending::<()>().await;
        }
    };
    if tokio::time::timeout_at(until, reading).await.is_ok() {
        return false;
    }
    // There are unread bytes. The same event says whether the server has closed its side.
    let ready = timeout(Duration::from_secs(1), stream.ready(Interest::READABLE | Interest::ERROR)).await;
    !matches!(ready, Ok(Ok(ready)) if ready.is_read_closed() || ready.is_error())
}

async fn ask(address: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER).ok()?;
    socket.set_tcp_mss(SEGMENT).ok()?;
    socket.set_nonblocking(true).ok()?;
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(address).await.ok()?;
    let request = format!("GET {LARGE_FILE} HTTP/1.1\r\nhost: siege\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    Some(stream)
}
