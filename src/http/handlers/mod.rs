//! The handlers, one file for each resource of the API.

pub mod batches;
pub mod claims;
pub mod docs;
pub mod jobs;
pub mod keys;
pub mod lists;
pub mod service;
pub mod submissions;
