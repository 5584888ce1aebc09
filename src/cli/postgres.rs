//! The private PostgreSQL of `hapax dev` and `hapax with-postgres`.

use std::path::PathBuf;

use anyhow::anyhow;
use private_postgres::{Durability, Error, Options, Place, PrivatePostgres};

use crate::configuration;

/// Starts PostgreSQL. It ends when the calling thread ends.
pub fn start(place: Place, durability: Durability) -> anyhow::Result<PrivatePostgres> {
    let programs = configuration::variable("HAPAX_POSTGRES_BIN").map(PathBuf::from);
    let options = Options {
        place,
        durability,
        role: "postgres".to_owned(),
        programs,
        notify: |notice| eprintln!("hapax: {notice}"),
    };
    PrivatePostgres::start(&options).map_err(|error| match error {
        Error::NoPrograms => {
            anyhow!("{error}, or set HAPAX_POSTGRES_BIN to the folder that holds `postgres` and `initdb`")
        }
        error => error.into(),
    })
}
