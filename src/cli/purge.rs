//! `hapax purge`

use tokio_util::sync::CancellationToken;

use super::{block_on, connect, print};
use crate::configuration::Configuration;
use crate::database::Pool;
use crate::idempotency::purger;
use crate::metrics::Metrics;
use crate::server;

pub fn run(configuration: &Configuration) -> anyhow::Result<()> {
    block_on(async {
        drop(connect(configuration).await?);
        let metrics = Metrics::new();
        let pool = Pool::new("purge", server::database_settings(configuration)?, 1, metrics.clone());
        let pace = server::pace(&configuration.purge);
        let deleted = purger::purge(&pool, pace, &metrics, &CancellationToken::new()).await?;
        print(&format!("deleted {deleted} expired keys"))?;
        Ok(())
    })
}
