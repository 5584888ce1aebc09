//! `hapax serve`

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::block_on;
use crate::configuration::{Configuration, Overrides, address};
use crate::metrics::Metrics;
use crate::server::{self, Listeners};
use crate::telemetry::{self, Log};

#[derive(clap::Args)]
pub struct Arguments {
    /// The address to listen on. Overrides the setting server.bind.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    bind: Option<SocketAddr>,
}

pub fn run(arguments: Arguments, overrides: Overrides) -> anyhow::Result<()> {
    let configuration = Configuration::load(&Overrides { bind: arguments.bind, ..overrides })?;
    let metrics = Metrics::new();
    let _log = start_logging(&configuration, &metrics)?;
    block_on(async {
        let listeners = Listeners::bind(&configuration)?;
        serve_until_signalled(&configuration, listeners, metrics).await
    })
}

/// The first SIGTERM or SIGINT starts a graceful shutdown. A later one stops the process immediately. Signals within
/// the first second are ignored, because a terminal, make and a process manager may each forward the same signal.
pub async fn serve_until_signalled(
    configuration: &Configuration,
    listeners: Listeners,
    metrics: Metrics,
) -> anyhow::Result<()> {
    const DUPLICATE_SIGNAL_WINDOW: Duration = Duration::from_secs(1);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let mut first_signal: Option<Instant> = None;
    let mut serving = std::pin::pin!(server::run(configuration, listeners, metrics, shutdown.clone()));
    loop {
        tokio::select! {
            served = &mut serving => return served,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if first_signal.get_or_insert_with(Instant::now).elapsed() > DUPLICATE_SIGNAL_WINDOW {
            bail!("stopped immediately after a second signal");
        }
        shutdown.cancel();
    }
}

pub fn start_logging(configuration: &Configuration, metrics: &Metrics) -> anyhow::Result<Log> {
    let settings = &configuration.log;
    telemetry::init(settings.format, &settings.filter, metrics.clone()).context("setting log.filter")
}
