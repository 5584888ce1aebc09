//! How many log lines may be written for requests that were not admitted.
//!
//! A request that is admitted has been charged to a quota, which bounds its caller's lines. Anybody can send requests
//! without a token, and a caller whose quota is used up can go on sending. The metrics count each of these; the log has
//! as many as help.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::access::{Quota, Rate};
use crate::ids::TenantId;

pub struct RefusedLines {
    /// Of a tenant whose token was verified, and of all others together.
    quota: Quota<Option<TenantId>>,
    left_out: AtomicU64,
}

/// Enough to see what happens, and on one core a fraction of a percent.
const RATE: Rate = Rate { per_second: 100, burst: 1000 };

impl RefusedLines {
    /// How many lines were left out since the last one, if another may be written.
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
    async fn what_is_left_out_is_counted_and_a_tenant_leaves_out_its_own() {
        let (lines, tenant) = (RefusedLines::default(), Some(TenantId(Uuid::nil())));
        assert!((0..RATE.burst).all(|_| lines.admit(None) == Some(0)));
        assert!((0..7).all(|_| lines.admit(None).is_none()));
        assert_eq!(lines.admit(tenant), Some(7));
        assert_eq!(lines.admit(None), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([lines.admit(None), lines.admit(None)], [Some(1), Some(0)]);
    }
}
