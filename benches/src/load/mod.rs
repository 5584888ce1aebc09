//! A closed-loop load: each connection sends its next request when the previous one has been answered.
//!
//! One thread and one readiness queue, because it shares the cores with what it measures. It parses only the status and
//! the length of an answer, and keeps the first unexpected answer. What is sent, and what an answer counts, is the
//! [`Traffic`].

mod connection;

pub use connection::{Answer, Dialogue, ask};

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};

use crate::account::{Accounts, Spent};
use connection::Connection;

pub struct Plan {
    pub address: SocketAddr,
    pub connections: usize,
    pub extent: Extent,
}

/// What the connections send, and what the answers count.
pub trait Traffic {
    /// Writes the next request of a connection, from its first byte. `false` if the connection has nothing to send any
    /// more.
    fn write(&mut self, connection: usize, request: &mut Vec<u8>) -> bool;

    /// What the answer to this request counts.
    ///
    /// # Errors
    /// If the answer makes the measurement meaningless.
    fn judge(&mut self, connection: usize, answer: &Answer<'_>) -> anyhow::Result<Verdict>;
}

/// What an answer counts.
pub enum Verdict {
    /// So many units of what is measured, requests or jobs. Its latency is recorded if `timed`.
    Expected { units: u64, timed: bool },
    /// The status is not the expected one.
    Refused { expected: u16 },
}

/// Requests that do not depend on earlier answers. Each one counts if it gets the expected status.
pub struct Independent<Write> {
    expected: u16,
    write: Write,
}

impl<Write: FnMut(usize, &mut Vec<u8>)> Independent<Write> {
    /// `write` gets the number of the connection.
    pub fn new(expected: u16, write: Write) -> Self {
        Self { expected, write }
    }
}

impl<Write: FnMut(usize, &mut Vec<u8>)> Traffic for Independent<Write> {
    fn write(&mut self, connection: usize, request: &mut Vec<u8>) -> bool {
        (self.write)(connection, request);
        true
    }

    fn judge(&mut self, _: usize, answer: &Answer<'_>) -> anyhow::Result<Verdict> {
        let expected = self.expected;
        let is_expected = answer.status == expected;
        Ok(if is_expected { Verdict::Expected { units: 1, timed: true } } else { Verdict::Refused { expected } })
    }
}

#[derive(Clone, Copy)]
pub enum Extent {
    /// A warm-up, then the measured time.
    Time { warm_up: Duration, measured: Duration },
    /// This many requests, measured from the first to the last.
    Requests(u64),
}

/// The result of a load.
pub struct Load {
    /// Units during the measurement: expected answers, or what the [`Traffic`] counts instead.
    pub answered: u64,
    pub elapsed: Duration,
    /// Of the timed answers, in nanoseconds, from the first byte sent to the last byte received.
    pub latency: Histogram<u64>,
    /// CPU time during the measurement.
    pub spent: Spent,
    /// Units in total, including the warm-up.
    pub answered_in_all: u64,
    /// Other answers in total.
    pub refused: u64,
}

/// Timeout without any answer, which ends the run. Longer than the server's own deadline.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);
/// Latencies are recorded to three digits, up to a minute.
const DIGITS: u8 = 3;
const LONGEST: Duration = Duration::from_secs(60);

/// Sends what `traffic` writes. Ends early if no connection has anything to send any more.
///
/// # Errors
/// If a connection is lost, if there is no answer for [`GIVEN_UP_AFTER`], or if one request in a hundred is refused.
pub fn run(plan: &Plan, accounts: Accounts, traffic: &mut dyn Traffic) -> anyhow::Result<Load> {
    let mut crowd = Crowd::connect(plan)?;
    let (mut counted, extent) = (Counted::new()?, plan.extent);
    let began = Instant::now();
    let (start, limit) = match extent {
        Extent::Time { warm_up, .. } => (began + warm_up, u64::MAX),
        Extent::Requests(requests) => (began, requests),
    };
    crowd.send_all(limit, traffic)?;
    while Instant::now() < start {
        crowd.turn(start, limit, traffic, &mut counted)?;
    }
    let (spent, begun) = (accounts.read()?, Instant::now());
    counted.begin();
    let end = match extent {
        Extent::Time { measured, .. } => Some(begun + measured),
        Extent::Requests(_) => None,
    };
    while crowd.waiting > 0 && end.is_none_or(|end| Instant::now() < end) {
        crowd.turn(end.unwrap_or_else(|| Instant::now() + GIVEN_UP_AFTER), limit, traffic, &mut counted)?;
    }
    let (elapsed, spent) = (begun.elapsed(), accounts.read()? - spent);
    let (answered, latency) = counted.end();
    // Waits for all outstanding answers, so that the rows in the database can be counted.
    while crowd.waiting > 0 {
        crowd.turn(Instant::now() + GIVEN_UP_AFTER, 0, traffic, &mut counted)?;
    }
    counted.judge()?;
    Ok(Load { answered, elapsed, latency, spent, answered_in_all: counted.answered_in_all, refused: counted.refused })
}

/// All connections, and how many of them wait for an answer.
struct Crowd {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    waiting: usize,
    sent: u64,
    heard: Instant,
}

impl Crowd {
    fn connect(plan: &Plan) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(plan.connections);
        for number in 0..plan.connections {
            let mut connection = Connection::open(plan.address)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(connection.stream(), Token(number), interest)?;
            connections.push(connection);
        }
        let events = Events::with_capacity(plan.connections);
        Ok(Self { poll, events, connections, waiting: 0, sent: 0, heard: Instant::now() })
    }

    fn send_all(&mut self, limit: u64, traffic: &mut dyn Traffic) -> anyhow::Result<()> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        for (number, connection) in self.connections.iter_mut().take(limit).enumerate() {
            if connection.send(|request| traffic.write(number, request))? {
                self.waiting += 1;
                self.sent += 1;
            }
        }
        self.heard = Instant::now();
        Ok(())
    }

    /// Receives available answers, waiting until `until` at most, and sends further requests up to `limit`.
    fn turn(
        &mut self,
        until: Instant,
        limit: u64,
        traffic: &mut dyn Traffic,
        counted: &mut Counted,
    ) -> anyhow::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        self.poll.poll(&mut self.events, Some(left.min(GIVEN_UP_AFTER))).context("interrupted")?;
        for event in &self.events {
            let number = event.token().0;
            let connection = &mut self.connections[number];
            connection.send_rest()?;
            let sent_at = connection.sent_at();
            let Some(answer) = connection.receive()? else { continue };
            self.heard = Instant::now();
            counted.count(&answer, &traffic.judge(number, &answer)?, self.heard - sent_at)?;
            connection.forget_answer();
            if self.sent < limit && connection.send(|request| traffic.write(number, request))? {
                self.sent += 1;
            } else {
                self.waiting -= 1;
            }
        }
        if self.heard.elapsed() > GIVEN_UP_AFTER {
            bail!("nothing was answered for {} s", GIVEN_UP_AFTER.as_secs());
        }
        Ok(())
    }
}

/// The answers during the measurement and in total.
struct Counted {
    answered: u64,
    latency: Histogram<u64>,
    answered_in_all: u64,
    refused: u64,
    first_refusal: Option<String>,
}

/// A run fails if more than one request in this many is refused. Checked at the end, and earlier if there are more
/// refusals than all connections together could have at the start.
const REFUSED_AT_MOST: u64 = 100;
const REFUSED_AT_ONCE: u64 = 1000;

impl Counted {
    fn new() -> anyhow::Result<Self> {
        let latency = Histogram::new_with_max(u64::try_from(LONGEST.as_nanos())?, DIGITS)?;
        Ok(Self { answered: 0, latency, answered_in_all: 0, refused: 0, first_refusal: None })
    }

    fn begin(&mut self) {
        self.answered = 0;
        self.latency.reset();
    }

    fn count(&mut self, answer: &Answer<'_>, verdict: &Verdict, latency: Duration) -> anyhow::Result<()> {
        let expected = match *verdict {
            Verdict::Refused { expected } => expected,
            Verdict::Expected { units, timed } => {
                self.answered += units;
                self.answered_in_all += units;
                if timed {
                    self.latency.saturating_record(u64::try_from(latency.as_nanos())?);
                }
                return Ok(());
            }
        };
        self.refused += 1;
        let status = answer.status;
        self.first_refusal
            .get_or_insert_with(|| format!("{status} instead of {expected}: {}", String::from_utf8_lossy(answer.body)));
        // Many refusals end the run early.
        if self.refused > REFUSED_AT_ONCE { self.judge() } else { Ok(()) }
    }

    /// A few refusals are acceptable under load. More would make the row meaningless.
    fn judge(&self) -> anyhow::Result<()> {
        match &self.first_refusal {
            Some(refusal) if self.refused * REFUSED_AT_MOST > self.answered_in_all => bail!("{refusal}"),
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> (u64, Histogram<u64>) {
        (self.answered, self.latency.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    /// A server whose answers' status depends on their number. Counts the requests.
    fn server(status: fn(u64) -> u16) -> (SocketAddr, Arc<AtomicU64>) {
        server_of("{}".to_owned(), status)
    }

    fn server_of(body: String, status: fn(u64) -> u16) -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::<AtomicU64>::default());
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (count, body) = (Arc::clone(&count), body.clone());
                std::thread::spawn(move || {
                    while stream.read_exact(&mut [0; REQUEST.len()]).is_ok() {
                        let status = status(count.fetch_add(1, Ordering::Relaxed));
                        let length = body.len();
                        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}");
                        stream.write_all(answer.as_bytes()).unwrap();
                    }
                });
            }
        });
        (address, asked)
    }

    fn load(address: SocketAddr, extent: Extent) -> anyhow::Result<Load> {
        let itself = std::process::id();
        let accounts = Accounts { server: Some(itself), postmaster: itself };
        let plan = Plan { address, connections: 4, extent };
        let mut traffic = Independent::new(201, |_, request| {
            request.clear();
            request.extend_from_slice(REQUEST);
        });
        run(&plan, accounts, &mut traffic)
    }

    #[test]
    fn every_request_is_answered_and_counted() {
        let (address, asked) = server(|_| 201);
        let load = load(address, Extent::Requests(1000)).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1000);
        assert_eq!((load.answered, load.answered_in_all, load.latency.len()), (1000, 1000, 1000));
    }

    #[test]
    fn an_answer_may_be_longer_than_the_buffer() {
        let (address, _) = server_of("x".repeat(100_000), |_| 201);
        assert_eq!(load(address, Extent::Requests(100)).unwrap().answered, 100);
    }

    #[test]
    fn answers_during_the_warm_up_count_only_in_total() {
        let (address, asked) = server(|_| 201);
        let (warm_up, measured) = (Duration::from_millis(50), Duration::ZERO);
        let load = load(address, Extent::Time { warm_up, measured }).unwrap();
        assert_eq!((load.answered, load.latency.len()), (0, 0));
        assert!(load.answered_in_all > 0);
        assert_eq!(load.answered_in_all, asked.load(Ordering::Relaxed));
    }

    #[test]
    fn refusals_are_counted_separately_and_many_end_the_run() {
        let (address, _) = server(|number| if number == 500 { 503 } else { 201 });
        let one_refused = load(address, Extent::Requests(1000)).unwrap();
        assert_eq!((one_refused.answered, one_refused.refused), (999, 1));
        let (address, _) = server(|number| if number % 20 == 19 { 503 } else { 201 });
        let error = load(address, Extent::Requests(1000)).err().expect("it has given up");
        assert_eq!(error.to_string(), "503 instead of 201: {}");
    }
}
