//! `hapax errors`

use super::print;
use crate::http;

pub fn run() -> anyhow::Result<()> {
    print(http::errors_document().trim_end())
}
