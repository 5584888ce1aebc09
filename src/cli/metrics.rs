//! `hapax metrics`

use super::print;
use crate::metrics;

pub fn run() -> anyhow::Result<()> {
    print(metrics::document().trim_end())
}
