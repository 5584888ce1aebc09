//! The log lines about look-ups that failed: one in ten seconds at most, however many strangers send tokens.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::database::{DatabaseError, with_causes};

/// Writes some of the failures, and counts those in between.
#[derive(Default)]
pub struct FailureLog(Mutex<State>);

#[derive(Default)]
struct State {
    last_line: Option<Instant>,
    /// Since the last line.
    failures: u64,
}

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

impl FailureLog {
    /// A statement has failed. The requests that wait for it do not log that.
    pub fn write(&self, error: &DatabaseError) {
        if let Some(failures) = self.count() {
            tracing::error!(error = with_causes(error), failures, "access tokens could not be looked up");
        }
    }

    /// Counts a failure. If a line is due, it is about as many failures as are returned.
    fn count(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.failures += 1;
        if state.last_line.is_some_and(|at| at.elapsed() < INTERVAL) {
            return None;
        }
        state.last_line = Some(Instant::now());
        Some(std::mem::take(&mut state.failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_is_due_once_in_an_interval_and_tells_how_many_failures_there_were() {
        let log = FailureLog::default();
        assert_eq!([log.count(), log.count(), log.count()], [Some(1), None, None]);
        tokio::time::advance(INTERVAL).await;
        assert_eq!([log.count(), log.count()], [Some(3), None]);
    }
}
