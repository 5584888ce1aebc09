//! How many requests are worked on at once.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Problem;
use crate::metrics::{Level, Shed};

/// A place for each request that may be worked on; one more is told so at once.
pub struct Admission {
    places: Semaphore,
    limit: usize,
}

impl Admission {
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { places: Semaphore::new(limit), limit }
    }

    /// # Errors
    /// [`Problem::Shed`] if every place is taken.
    pub fn enter(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.places.try_acquire().map_err(|_| Problem::Shed(Shed::InFlight))
    }

    pub fn level(&self) -> Level {
        Level { now: self.limit - self.places.available_permits(), limit: self.limit }
    }
}
