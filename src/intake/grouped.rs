//! Submissions that are inserted by group commit.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tokio::time::Instant;

use super::{Submission, queries};
use crate::database::{Pool, WriteOptions};
use crate::group_commit::{GroupedWrite, Size};
use crate::idempotency;
use crate::idempotency::queries::Stored;
use crate::ids::TenantId;

/// Inserts submissions of all tenants, none of which is unique by content.
pub struct InsertSubmissions;

/// The result of a statement for one submission.
#[derive(Debug)]
pub enum Insertion {
    /// The job is committed. The key expires at this time.
    Inserted(DateTime<Utc>),
    /// The key is taken. This is its row.
    Conflict(Stored),
    /// The key was taken, but its row is gone or could not be read.
    Retry,
}

/// The size of a row without the texts of the client.
const ROW_BYTES: usize = 512;

impl GroupedWrite for InsertSubmissions {
    type Request = Submission;
    type Outcome = Insertion;
    type Group = ();

    const NAME: &'static str = "submit_many";
    const OF_ONE_TENANT: bool = false;

    fn tenant(submission: &Submission) -> TenantId {
        submission.draft.tenant
    }

    fn group(_: &Submission) {}

    fn size(submission: &Submission) -> Size {
        Size { jobs: 1, bytes: ROW_BYTES + submission.bytes() }
    }

    /// A taken key is left to [`GroupedWrite::resolve`].
    async fn write(
        &self,
        connection: &mut PgConnection,
        submissions: &[Arc<Submission>],
        options: WriteOptions,
    ) -> sqlx::Result<Vec<Option<Insertion>>> {
        let inserted = queries::submit_many(connection, submissions, options).await?;
        let insertion = |submission: &Arc<Submission>| {
            inserted.get(&submission.draft.answer.job_id).copied().map(Insertion::Inserted)
        };
        Ok(submissions.iter().map(insertion).collect())
    }

    /// Reads the rows of taken keys. This needs a second statement: the snapshot of the first one is older than the
    /// transaction that it waited for.
    async fn resolve(&self, pool: &Pool, submissions: Vec<Arc<Submission>>, deadline: Instant) -> Vec<Insertion> {
        let count = submissions.len();
        let find = async move |connection: &mut _| {
            let keys = submissions.iter().map(|submission| &submission.keyed.key);
            idempotency::queries::find_all(connection, keys).await
        };
        let mut found = pool.complete("find_keys", deadline, find).await.unwrap_or_else(|error| {
            // Each request then reads its own key. If that fails, too, it gets the error.
            tracing::debug!(%error, "the taken keys of a batch could not be read together");
            Default::default()
        });
        (0..count).map(|place| found.remove(&place).map_or(Insertion::Retry, Insertion::Conflict)).collect()
    }
}
