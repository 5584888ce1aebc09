//! What runs beside the HTTP server for as long as it serves, and must not end before it.

use std::collections::HashMap;
use std::future::Future;

use anyhow::anyhow;
use tokio::task::{Id, JoinError, JoinSet};

/// Tasks of which each is needed: when one ends by itself, by a panic too, the process must not go on without it.
#[derive(Default)]
pub struct Tasks {
    running: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    pub fn start(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits until one ends that was not told to, and says which and why. For ever, if all go on.
    pub async fn ended(&mut self) -> anyhow::Error {
        match self.running.join_next_with_id().await {
            Some(ended) => self.explain(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits for all to end, now that they were told to.
    pub async fn finish(&mut self) {
        while let Some(ended) = self.running.join_next_with_id().await {
            if !matches!(ended, Ok((_, Ok(())))) {
                tracing::error!(error = format!("{:#}", self.explain(ended)), "a task failed while it was stopping");
            }
        }
    }

    fn explain(&self, ended: Result<(Id, anyhow::Result<()>), JoinError>) -> anyhow::Error {
        let name = |id| self.names.get(&id).copied().unwrap_or("a task");
        match ended {
            Ok((id, Ok(()))) => anyhow!("{} ended, though nobody told it to", name(id)),
            Ok((id, Err(error))) => error.context(format!("{} ended", name(id))),
            // The panic's own words are in the log already.
            Err(error) if error.is_panic() => anyhow!("{} panicked", name(error.id())),
            Err(error) => anyhow!("{} was cancelled", name(error.id())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_is_named_however_it_ends() {
        for (task, words) in [
            (Box::pin(async { Ok(()) }) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>, "the purger ended"),
            (Box::pin(async { Err(anyhow!("no more files")) }), "the purger ended: no more files"),
            (Box::pin(async { panic!("a defect") }), "the purger panicked"),
        ] {
            let mut tasks = Tasks::default();
            tasks.start("a writer", std::future::pending());
            tasks.start("the purger", task);
            let error = format!("{:#}", tasks.ended().await);
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[tokio::test]
    async fn tasks_that_were_told_to_end_are_waited_for() {
        let mut tasks = Tasks::default();
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        tasks.start("a writer", async { Ok(told.await?) });
        assert!(futures_util::poll!(Box::pin(tasks.finish())).is_pending());
        tell.send(()).unwrap();
        tasks.finish().await;
    }
}
