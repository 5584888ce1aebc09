//! Rate-limited logging of failed token look-ups: at most one line every 10 seconds.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::database::{DatabaseError, with_causes};

/// Logs some failures and counts the others.
#[derive(Default)]
pub struct FailureLog(Mutex<State>);

#[derive(Default)]
struct State {
    last_line: Option<Instant>,
    /// Failures since the last line.
    failures: u64,
}

/// Minimum time between two log lines.
const INTERVAL: Duration = Duration::from_secs(10);

impl FailureLog {
    /// Records that a look-up statement failed. The requests that wait for it do not log the failure themselves.
    pub fn write(&self, error: &DatabaseError) {
        if let Some(failures) = self.count() {
            tracing::error!(error = with_causes(error), failures, "access tokens could not be looked up");
        }
    }

    /// Counts a failure. If a line is due, returns how many failures it stands for.
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
    async fn one_line_is_logged_per_interval_with_the_number_of_failures() {
        let log = FailureLog::default();
        assert_eq!([log.count(), log.count(), log.count()], [Some(1), None, None]);
        tokio::time::advance(INTERVAL).await;
        assert_eq!([log.count(), log.count()], [Some(3), None]);
    }
}
