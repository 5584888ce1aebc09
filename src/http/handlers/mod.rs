//! The handlers, a file for each noun of the API.

pub mod batches;
pub mod docs;
pub mod jobs;
pub mod keys;
pub mod lists;
pub mod service;
pub mod submissions;
