use std::fmt::Display;
use std::time::Duration;

/// How long the harness waits for something that must happen. It only decides when a hang is reported as a failure, so it
/// is far longer than a slow and busy machine needs: no test may depend on how fast the machine is.
pub const ENOUGH: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Awaits something that must happen; panics with `what` if it does not.
pub async fn in_time<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(ENOUGH, future).await;
    waited.unwrap_or_else(|_| panic!("not within {} s: {what}", ENOUGH.as_secs()))
}

/// Polls until there is a value.
pub async fn until<T>(what: impl Display, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(value) = poll().await {
                return value;
            }
            // A busy loop would take the processor from the very processes that it waits for.
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    in_time(what, polling).await
}
