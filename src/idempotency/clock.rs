//! A clock for lifetimes that PostgreSQL has measured.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment of the machine's monotonic clock.
///
/// Not `std::time::Instant`: on Linux that clock stops while the machine sleeps or its virtual machine is paused, so a
/// lifetime of one minute could last a night.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    pub fn now() -> Self {
        #[cfg(target_os = "linux")]
        const CLOCK: ClockId = ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        const CLOCK: ClockId = ClockId::Monotonic;
        Self(clock_gettime(CLOCK).try_into().unwrap_or_default())
    }

    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}
