//! `hapax serve`

use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::block_on;
use crate::configuration::{Configuration, Overrides};
use crate::{server, telemetry};

#[derive(clap::Args)]
pub struct Arguments {
    /// Where to listen; counts above the setting server.bind.
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<SocketAddr>,
}

pub fn run(arguments: Arguments, overrides: Overrides) -> anyhow::Result<()> {
    let configuration = Configuration::load(&Overrides { bind: arguments.bind, ..overrides })?;
    start_logging(&configuration)?;
    block_on(async {
        let listener = listen(&configuration)?;
        let shutdown = CancellationToken::new();
        stop_on_signal(shutdown.clone())?;
        server::run(&configuration, listener, shutdown).await
    })
}

pub fn start_logging(configuration: &Configuration) -> anyhow::Result<()> {
    telemetry::init(configuration.log.format, &configuration.log.filter).context("setting log.filter")
}

pub fn listen(configuration: &Configuration) -> anyhow::Result<TcpListener> {
    let bind = configuration.server.bind;
    TcpListener::bind(bind).with_context(|| format!("setting server.bind: {bind} cannot be had"))
}

/// The first SIGTERM or SIGINT asks for an orderly end, the second ends at once.
pub fn stop_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if shutdown.is_cancelled() {
                tracing::warn!("told to stop a second time: stopping at once");
                std::process::exit(1);
            }
            shutdown.cancel();
        }
    });
    Ok(())
}
