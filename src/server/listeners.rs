//! The addresses that a server listens on.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context;
use rustix::net::sockopt;
use tokio::net::TcpSocket;

use crate::configuration::Configuration;

/// The listening sockets. They are bound before anything else starts, so that an address in use is reported
/// immediately.
pub struct Listeners {
    pub api: TcpListener,
    /// For metrics and probes. `None` if the default address was in use, so that a second server on the same machine
    /// starts without extra settings.
    pub(super) operations: Option<TcpListener>,
}

impl Listeners {
    /// # Errors
    /// If the server cannot listen on an address that is set.
    pub fn bind(configuration: &Configuration) -> anyhow::Result<Self> {
        let bind = configuration.server.bind;
        let api = listen(bind).with_context(|| format!("setting server.bind: cannot listen on {bind}"))?;
        let (bind, asked_for) = configuration.metrics_bind();
        let operations = match listen(bind) {
            Ok(listener) => Some(listener),
            Err(error) if asked_for => {
                return Err(error).with_context(|| format!("setting metrics.bind: cannot listen on {bind}"));
            }
            Err(error) => {
                tracing::warn!(%bind, %error, "metrics are not served: set metrics.bind to a free address");
                None
            }
        };
        Ok(Self { api, operations })
    }

    /// The address of the metrics server, for the log.
    pub(super) fn operations_address(&self) -> anyhow::Result<Option<String>> {
        Ok(self.operations.as_ref().map(TcpListener::local_addr).transpose()?.map(|address| address.to_string()))
    }
}

/// Opens a listening socket. Its backlog has room for a burst of connections; that of the standard library is 128.
/// Connections inherit the socket's options.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    const BACKLOG: u32 = 4096;
    /// Keep-alive probes find clients that have disappeared without closing the connection.
    const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
    const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
    const KEEP_ALIVE_PROBES: u32 = 3;
    /// The kernel's buffer for each direction of a connection. By default it grows to megabytes for a client that does
    /// not read, or that sends more than the server reads. A container's memory limit includes these buffers.
    const SYSTEM_BUFFER_BYTES: u32 = 128 * 1024;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SYSTEM_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(SYSTEM_BUFFER_BYTES)?;
    socket.set_keepalive(true)?;
    sockopt::set_tcp_keepidle(&socket, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEP_ALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEP_ALIVE_PROBES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}
