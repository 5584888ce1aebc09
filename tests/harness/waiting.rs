use std::fmt::Display;
use std::time::Duration;

/// How long the harness waits before it reports a hang. Far longer than a slow and busy machine needs, because no test
/// may depend on the speed of the machine.
pub const HANG_TIMEOUT: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Awaits a future; panics with `what` if it takes too long.
pub async fn in_time<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(HANG_TIMEOUT, future).await;
    waited.unwrap_or_else(|_| panic!("not within {} s: {what}", HANG_TIMEOUT.as_secs()))
}

/// Polls until there is a value.
pub async fn until<T>(what: impl Display, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(value) = poll().await {
                return value;
            }
            // A busy loop would take the CPU from the processes that it waits for.
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    in_time(what, polling).await
}
