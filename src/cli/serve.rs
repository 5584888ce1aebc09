//! `hapax serve`

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, bail};
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
        serve_until_signalled(&configuration, listener).await
    })
}

/// The first SIGTERM or SIGINT asks for an orderly end, the second ends at once.
pub async fn serve_until_signalled(configuration: &Configuration, listener: TcpListener) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let mut serving = std::pin::pin!(server::run(configuration, listener, shutdown.clone()));
    loop {
        tokio::select! {
            served = &mut serving => return served,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            bail!("told to stop a second time: stopped at once");
        }
        shutdown.cancel();
    }
}

pub fn start_logging(configuration: &Configuration) -> anyhow::Result<()> {
    telemetry::init(configuration.log.format, &configuration.log.filter).context("setting log.filter")
}

pub fn listen(configuration: &Configuration) -> anyhow::Result<TcpListener> {
    let bind = configuration.server.bind;
    TcpListener::bind(bind).with_context(|| format!("setting server.bind: {bind} cannot be had"))
}
