//! A limit on the log lines for requests that were not admitted.
//!
//! An admitted request is charged to a quota, which limits the log lines of its caller. But anybody can send requests
//! without a token, and a caller can go on sending after its quota is used up. The metrics count all of these requests.
//! The log shows a limited number.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::access::{Quota, Rate};
use crate::ids::TenantId;

pub struct RefusedLines {
    /// One bucket for each tenant whose token was verified, and one for all other requests together.
    quota: Quota<Option<TenantId>>,
    left_out: AtomicU64,
}

/// Enough to see what happens. Costs a fraction of a percent of one core.
const RATE: Rate = Rate { per_second: 100, burst: 1000 };

impl RefusedLines {
    /// If another line may be written, the number of lines that were suppressed since the last one.
    pub fn admit(&self, tenant: Option<TenantId>) -> Option<u64> {
        if self.quota.take(&tenant).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

impl Default for RefusedLines {
    fn default() -> Self {
        Self { quota: Quota::new("refused_lines", RATE), left_out: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn suppressed_lines_are_counted_and_each_tenant_has_its_own_limit() {
        let (lines, tenant) = (RefusedLines::default(), Some(TenantId(Uuid::nil())));
        assert!((0..RATE.burst).all(|_| lines.admit(None) == Some(0)));
        assert!((0..7).all(|_| lines.admit(None).is_none()));
        assert_eq!(lines.admit(tenant), Some(7));
        assert_eq!(lines.admit(None), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([lines.admit(None), lines.admit(None)], [Some(1), Some(0)]);
    }
}
