//! The addresses that a server has.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
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

/// With room for a burst of connections, where the standard library leaves it at 128.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    const BACKLOG: u32 = 4096;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}
