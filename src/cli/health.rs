//! `hapax health`: health probes for a container whose image has no curl.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::configuration::Configuration;

#[derive(clap::Args)]
pub struct Arguments {
    /// Ask /readyz instead of /healthz: whether the server is ready for requests, not only whether it is alive.
    #[arg(long)]
    ready: bool,
}

/// Enough, because a server answers both probes within a second.
const DEADLINE: Duration = Duration::from_secs(2);

pub fn run(arguments: &Arguments, configuration: &Configuration) -> anyhow::Result<()> {
    let (bind, path) = match configuration.metrics.bind {
        _ if arguments.ready => (configuration.server.bind, "/readyz"),
        // This address answers even when the API is at its connection limit.
        Some(operations) => (operations, "/healthz"),
        None => (configuration.server.bind, "/healthz"),
    };
    let address = SocketAddr::new(reachable(bind.ip()), bind.port());
    let asked = ask(address, path).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow::anyhow!("no answer within {} s", DEADLINE.as_secs()),
        _ => error.into(),
    });
    let status = asked.with_context(|| format!("http://{address}{path} does not answer"))?;
    if status != "200" {
        bail!("http://{address}{path} answers {status}");
    }
    Ok(())
}

/// The loopback address if the server listens on all addresses.
fn reachable(bound: IpAddr) -> IpAddr {
    match bound {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// Sends one GET and returns its status code.
fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    const STATUS_LINE: usize = "HTTP/1.1 200".len();
    let ends = Instant::now() + DEADLINE;
    let left = || ends.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&address, left())?;
    stream.set_write_timeout(Some(left()))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    stream.set_read_timeout(Some(left()))?;
    let mut line = [0; STATUS_LINE];
    stream.read_exact(&mut line)?;
    let line = String::from_utf8_lossy(&line);
    Ok(line.split(' ').nth(1).unwrap_or_default().to_owned())
}
