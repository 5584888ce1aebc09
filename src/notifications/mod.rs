//! Tells other replicas of new jobs and of ends of jobs, by LISTEN and NOTIFY of PostgreSQL.
//!
//! A notification is only a hint. Requests that it wakes look in the database, and a request that waits also looks from
//! time to time without one. So notifications may be lost, late or doubled. They are sent after the commit of what they
//! tell, in statements of their own. See ADR 0034.

mod event;
mod exchange;
mod outbox;
mod payload;
mod queries;

pub use event::Event;
pub use exchange::{Incoming, run};
pub use outbox::Outbox;
