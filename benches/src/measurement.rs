//! The figures of a row, and the median of several rounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::Load;

/// One row in one round. A figure that was not measured is `None`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Measurement {
    pub per_second: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    /// CPU time per request or job, of the server, of PostgreSQL and of the load.
    pub server_us: Option<f64>,
    pub postgres_us: Option<f64>,
    pub load_us: Option<f64>,
    /// Bytes of WAL per request or job, warm-up included.
    pub wal_bytes: Option<f64>,
    /// The share of updates that were HOT: they change no index.
    pub hot_share: Option<f64>,
    pub refused: u64,
}

impl Measurement {
    pub fn of(load: &Load) -> Self {
        let each = |spent: Duration| Some(spent.as_secs_f64() * 1e6 / load.answered.max(1) as f64);
        let latency = |quantile: f64| Some(load.latency.value_at_quantile(quantile) as f64 / 1e3);
        Self {
            per_second: load.answered as f64 / load.elapsed.as_secs_f64(),
            p50_us: latency(0.5),
            p99_us: latency(0.99),
            p999_us: latency(0.999),
            server_us: each(load.spent.server),
            postgres_us: each(load.spent.postgres),
            load_us: each(load.spent.load),
            wal_bytes: None,
            hot_share: None,
            refused: load.refused,
        }
    }
}

/// The median, the least and the greatest of some values.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub greatest: f64,
}

impl Spread {
    /// `None` if there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let odd = values.len() % 2 == 1;
        let median = if odd { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { least, median, greatest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Spread::of([3.0, 1.0, 8.0]).unwrap();
        assert_eq!((odd.least, odd.median, odd.greatest), (1.0, 3.0, 8.0));
        assert_eq!(Spread::of([4.0, 1.0, 8.0, 2.0]).unwrap().median, 3.0);
        assert!(Spread::of([]).is_none());
    }
}
