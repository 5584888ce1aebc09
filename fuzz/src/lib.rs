//! The modules that the targets fuzz, from the service's own files. They need no other module, so a target builds in a
//! minute and without the service's dependencies, and the service makes nothing public for it.

#[path = "../../src/idempotency/fingerprint.rs"]
pub mod fingerprint;
#[path = "../../src/json/mod.rs"]
pub mod json;
