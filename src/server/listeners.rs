//! The addresses that a server has.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context;
use rustix::net::sockopt;
use tokio::net::TcpSocket;

use crate::configuration::Configuration;

/// Bound before anything else is begun, so that an address that is taken is known at once.
pub struct Listeners {
    pub api: TcpListener,
    /// For metrics and probes. `None` where the default address was taken: a second server on one machine starts without
    /// further ado.
    pub(super) operations: Option<TcpListener>,
}

impl Listeners {
    /// # Errors
    /// When an address that was asked for cannot be had.
    pub fn bind(configuration: &Configuration) -> anyhow::Result<Self> {
        let bind = configuration.server.bind;
        let api = listen(bind).with_context(|| format!("setting server.bind: {bind} cannot be had"))?;
        let (bind, asked_for) = configuration.metrics_bind();
        let operations = match listen(bind) {
            Ok(listener) => Some(listener),
            Err(error) if asked_for => {
                return Err(error).with_context(|| format!("setting metrics.bind: {bind} cannot be had"));
            }
            Err(error) => {
                tracing::warn!(%bind, %error, "metrics are not served; set metrics.bind to a free address");
                None
            }
        };
        Ok(Self { api, operations })
    }

    /// As it is shown in the log.
    pub(super) fn operations_address(&self) -> anyhow::Result<Option<String>> {
        Ok(self.operations.as_ref().map(TcpListener::local_addr).transpose()?.map(|address| address.to_string()))
    }
}

/// With room for a burst of connections, where the standard library leaves it at 128. Connections inherit the options.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    const BACKLOG: u32 = 4096;
    /// For a client that is gone without a word.
    const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
    const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
    const KEEP_ALIVE_PROBES: u32 = 3;
    /// What the system keeps for each direction of a connection. By itself it would grow to megabytes for a client that
    /// does not read, and for one that sends what nobody reads; a container's memory limit counts them.
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
