//! Background tasks that run as long as the HTTP server and must not end before it.

use std::collections::HashMap;
use std::future::Future;

use anyhow::anyhow;
use tokio::task::{Id, JoinError, JoinSet};

/// Tasks that the process needs. If one ends unexpectedly, also by a panic, the process must end, too.
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

    /// Waits until a task ends unexpectedly, and returns its name and the reason. Waits for ever if none ends.
    pub async fn ended(&mut self) -> anyhow::Error {
        match self.running.join_next_with_id().await {
            Some(ended) => self.explain(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits until all tasks have ended. The caller has told them to stop.
    pub async fn finish(&mut self) {
        while let Some(ended) = self.running.join_next_with_id().await {
            if !matches!(ended, Ok((_, Ok(())))) {
                tracing::error!(error = format!("{:#}", self.explain(ended)), "a task failed during shutdown");
            }
        }
    }

    fn explain(&self, ended: Result<(Id, anyhow::Result<()>), JoinError>) -> anyhow::Error {
        let name = |id| self.names.get(&id).copied().unwrap_or("a task");
        match ended {
            Ok((id, Ok(()))) => anyhow!("{} ended unexpectedly", name(id)),
            Ok((id, Err(error))) => error.context(format!("{} ended", name(id))),
            // The panic's message is in the log already.
            Err(error) if error.is_panic() => anyhow!("{} panicked", name(error.id())),
            Err(error) => anyhow!("{} was cancelled", name(error.id())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_is_named_in_the_error() {
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
    async fn finish_waits_for_tasks_that_are_stopping() {
        let mut tasks = Tasks::default();
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        tasks.start("a writer", async { Ok(told.await?) });
        assert!(futures_util::poll!(Box::pin(tasks.finish())).is_pending());
        tell.send(()).unwrap();
        tasks.finish().await;
    }
}
