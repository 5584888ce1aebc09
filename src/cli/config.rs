//! `hapax config`

use super::print;
use crate::configuration::Configuration;

pub fn run(configuration: &Configuration) -> anyhow::Result<()> {
    print(configuration.to_toml()?.trim_end())
}
