//! The queue of a grouped write, its limits, and the pending writes.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{GroupedWrite, Size};
use crate::database::DatabaseError;
use crate::ids::TenantId;
use crate::overload::{Shed, Usage};
use crate::shares::{Shares, half};

/// The limits of the queue and of one statement. A request that is larger than a limit is accepted and sent alone.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub batch_jobs: usize,
    pub batch_bytes: usize,
    /// Counts all requests that are not answered yet, in the queue or in a statement.
    pub queue_jobs: usize,
    pub queue_bytes: usize,
    /// How long a request waits until it is sent.
    pub acquire_timeout: Duration,
}

type Answer<W> = Result<<W as GroupedWrite>::Outcome, DatabaseError>;

pub struct Batcher<W: GroupedWrite> {
    queue: Mutex<Queue<W>>,
    arrived: Notify,
    bounds: Bounds,
    /// How many statements of one tenant may be in flight at once, if groups belong to tenants.
    tenant_statements: usize,
    jobs: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// One tenant may use half of either limit. So one tenant cannot fill the queue while the database is slow.
    job_shares: Shares,
    byte_shares: Shares,
}

struct Queue<W: GroupedWrite> {
    /// The pending writes of each group that has some, or a statement in flight.
    groups: HashMap<W::Group, VecDeque<Arc<PendingWrite<W>>>>,
    /// The groups from which a writer may take, in the order of their turns.
    turns: VecDeque<W::Group>,
    /// The number of statements in flight, if groups belong to tenants.
    in_flight: HashMap<TenantId, usize>,
    closed: bool,
}

/// Pending writes for one statement. While it is in flight, its group has no other statement, if groups belong to
/// tenants.
pub struct Batch<W: GroupedWrite> {
    pub writes: Vec<Arc<PendingWrite<W>>>,
    _statement: Option<InFlight<W>>,
}

struct InFlight<W: GroupedWrite> {
    batcher: Arc<Batcher<W>>,
    group: W::Group,
    tenant: TenantId,
}

/// A request in the queue or in a batch.
pub struct PendingWrite<W: GroupedWrite> {
    pub since: Instant,
    pub deadline: Instant,
    tenant: TenantId,
    size: Size,
    identity: Option<Uuid>,
    state: Mutex<WriteState<W>>,
}

/// The request's handle to its pending write. Dropping it cancels a write that is not sent.
struct EnqueuedWrite<W: GroupedWrite> {
    write: Arc<PendingWrite<W>>,
}

/// The progress of a write. The writer marks it as sent. The request may cancel it before that.
enum WriteState<W: GroupedWrite> {
    /// The request can still cancel it.
    Queued(Load<W>),
    Sent(Load<W>),
    /// It was sent and was certainly not committed. The writer will send it again.
    Failed(Load<W>),
    /// Cancelled or answered.
    Done,
}

struct Load<W: GroupedWrite> {
    request: Arc<W::Request>,
    answer: oneshot::Sender<Answer<W>>,
    _permits: [OwnedSemaphorePermit; 4],
}

impl<W: GroupedWrite> Batcher<W> {
    pub fn new(bounds: Bounds, writers: usize) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let queue = Queue { groups: HashMap::new(), turns: VecDeque::new(), in_flight: HashMap::new(), closed: false };
        Self {
            queue: Mutex::new(queue),
            arrived: Notify::new(),
            tenant_statements: half(writers),
            jobs: semaphore(bounds.queue_jobs),
            bytes: semaphore(bounds.queue_bytes),
            job_shares: Shares::new(half(bounds.queue_jobs)),
            byte_shares: Shares::new(half(bounds.queue_bytes)),
            bounds,
        }
    }

    /// See [`super::GroupCommit::enqueue`].
    pub async fn enqueue(&self, request: Arc<W::Request>, deadline: Instant) -> Answer<W> {
        let (enqueued, mut answer) = self.push(request, deadline)?;
        let acquire_ends = deadline.min(Instant::now() + self.bounds.acquire_timeout);
        if let Ok(answered) = timeout_at(acquire_ends, &mut answer).await {
            return answered.unwrap_or(Err(DatabaseError::Unknown));
        }
        if enqueued.write.cancel_if_unsent() {
            return Err(DatabaseError::Shed(Shed::Waited));
        }
        // It was sent and may be committed, so the request waits for the result.
        match timeout_at(deadline, &mut answer).await {
            Ok(Ok(answered)) => answered,
            _ if enqueued.write.cancel_unless_committed() => Err(DatabaseError::Shed(Shed::Waited)),
            _ => Err(DatabaseError::Unknown),
        }
    }

    /// Waits for the next batch. `None` once the queue is closed and empty.
    pub async fn next_batch(self: &Arc<Self>) -> Option<Batch<W>> {
        loop {
            let arrived = self.arrived.notified();
            match self.take() {
                (Some(batch), _) => return Some(batch),
                (None, true) => return None,
                (None, false) => arrived.await,
            }
        }
    }

    /// Accepts no more requests. Those in the queue are still written.
    pub fn close(&self) {
        self.queue().closed = true;
        self.arrived.notify_waiters();
    }

    pub fn usage(&self) -> Usage {
        Usage { now: self.bounds.queue_jobs - self.jobs.available_permits(), limit: self.bounds.queue_jobs }
    }

    fn push(
        &self,
        request: Arc<W::Request>,
        deadline: Instant,
    ) -> Result<(EnqueuedWrite<W>, oneshot::Receiver<Answer<W>>), DatabaseError> {
        let (tenant, size, identity) = (W::tenant(&request), W::size(&request), W::identity(&request));
        let permits = self.acquire(tenant, size).map_err(DatabaseError::Shed)?;
        let (group, (answer, answered)) = (W::group(&request), oneshot::channel());
        let state = Mutex::new(WriteState::Queued(Load { request, answer, _permits: permits }));
        let write = Arc::new(PendingWrite { since: Instant::now(), deadline, tenant, size, identity, state });
        let mut queue = self.queue();
        if queue.closed {
            return Err(DatabaseError::Unavailable("the service is shutting down".to_owned()));
        }
        queue.discard_cancelled();
        queue.push(group, Arc::clone(&write));
        drop(queue);
        self.arrived.notify_one();
        Ok((EnqueuedWrite { write }, answered))
    }

    /// The permits for one request: first from the share of its tenant, then from the queue.
    fn acquire(&self, tenant: TenantId, size: Size) -> Result<[OwnedSemaphorePermit; 4], Shed> {
        let own_jobs = self.job_shares.try_acquire(tenant, size.jobs).ok_or(Shed::TenantQueueFull)?;
        let own_bytes = self.byte_shares.try_acquire(tenant, size.bytes).ok_or(Shed::TenantQueueFull)?;
        let take = |semaphore: &Arc<Semaphore>, units: usize, limit: usize| {
            let units = u32::try_from(units.min(limit)).unwrap_or(u32::MAX);
            Arc::clone(semaphore).try_acquire_many_owned(units).map_err(|_| Shed::QueueFull)
        };
        let jobs = take(&self.jobs, size.jobs, self.bounds.queue_jobs)?;
        let bytes = take(&self.bytes, size.bytes, self.bounds.queue_bytes)?;
        Ok([own_jobs, own_bytes, jobs, bytes])
    }

    /// The next batch, within the limits of one statement, and whether the queue is closed.
    fn take(self: &Arc<Self>) -> (Option<Batch<W>>, bool) {
        let mut queue = self.queue();
        let Some((group, tenant)) = queue.next_turn(self.tenant_statements) else { return (None, queue.closed) };
        let writes = queue.take(&group, self.bounds);
        let statement = if W::OF_ONE_TENANT {
            *queue.in_flight.entry(tenant).or_default() += 1;
            Some(InFlight { batcher: Arc::clone(self), group, tenant })
        } else {
            queue.take_turn_again(group);
            None
        };
        if !queue.turns.is_empty() {
            // Another writer can take the rest.
            self.arrived.notify_one();
        }
        (Some(Batch { writes, _statement: statement }), queue.closed)
    }

    fn queue(&self) -> MutexGuard<'_, Queue<W>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: GroupedWrite> Queue<W> {
    fn push(&mut self, group: W::Group, write: Arc<PendingWrite<W>>) {
        match self.groups.entry(group) {
            Entry::Occupied(mut writes) => writes.get_mut().push_back(write),
            Entry::Vacant(place) => {
                self.turns.push_back(place.key().clone());
                place.insert(VecDeque::from([write]));
            }
        }
    }

    /// Removes cancelled writes of the group whose turn is next. The oldest writes time out first, so they are there.
    fn discard_cancelled(&mut self) {
        while let Some(group) = self.turns.front() {
            let Some(writes) = self.groups.get_mut(group) else { return };
            while writes.front().is_some_and(|write| write.is_done()) {
                writes.pop_front();
            }
            if !writes.is_empty() {
                return;
            }
            self.groups.remove(group);
            self.turns.pop_front();
        }
    }

    /// The first group whose tenant may have another statement in flight.
    fn next_turn(&mut self, tenant_statements: usize) -> Option<(W::Group, TenantId)> {
        let tenant_of = |group: &W::Group| self.groups.get(group).and_then(VecDeque::front).map(|write| write.tenant);
        let may_start = |tenant: TenantId| self.in_flight.get(&tenant).is_none_or(|count| *count < tenant_statements);
        let place = self.turns.iter().position(|group| tenant_of(group).is_some_and(may_start))?;
        let tenant = tenant_of(&self.turns[place])?;
        self.turns.remove(place).map(|group| (group, tenant))
    }

    /// Takes writes for one statement.
    fn take(&mut self, group: &W::Group, bounds: Bounds) -> Vec<Arc<PendingWrite<W>>> {
        let Some(waiting) = self.groups.get_mut(group) else { return Vec::new() };
        let (mut taken, mut identities) = (Vec::new(), HashSet::new());
        let (mut jobs, mut bytes, mut place) = (0, 0, 0);
        while let Some(write) = waiting.get(place) {
            let (with_jobs, with_bytes) = (jobs + write.size.jobs, bytes + write.size.bytes);
            if !taken.is_empty() && (with_jobs > bounds.batch_jobs || with_bytes > bounds.batch_bytes) {
                break;
            }
            if write.identity.is_some_and(|identity| !identities.insert(identity)) {
                place += 1;
                continue;
            }
            (jobs, bytes) = (with_jobs, with_bytes);
            taken.extend(waiting.remove(place));
        }
        taken
    }

    /// The group gets another turn after the others if it has more writes.
    fn take_turn_again(&mut self, group: W::Group) {
        if self.groups.get(&group).is_some_and(|writes| !writes.is_empty()) {
            self.turns.push_back(group);
        } else {
            self.groups.remove(&group);
        }
    }
}

impl<W: GroupedWrite> Drop for InFlight<W> {
    fn drop(&mut self) {
        let mut queue = self.batcher.queue();
        if let Entry::Occupied(mut count) = queue.in_flight.entry(self.tenant) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        queue.take_turn_again(self.group.clone());
        drop(queue);
        self.batcher.arrived.notify_one();
    }
}

impl<W: GroupedWrite> PendingWrite<W> {
    /// Returns the request to send. From now on it cannot be cancelled. `None` if it is cancelled or answered.
    pub fn mark_sent(&self) -> Option<Arc<W::Request>> {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, WriteState::Done) {
            WriteState::Queued(load) | WriteState::Sent(load) | WriteState::Failed(load) => WriteState::Sent(load),
            WriteState::Done => WriteState::Done,
        };
        match &*state {
            WriteState::Sent(load) => Some(Arc::clone(&load.request)),
            _ => None,
        }
    }

    /// Records that the statement was certainly not committed. The writer sends it again.
    pub fn mark_failed(&self) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, WriteState::Done) {
            WriteState::Sent(load) => WriteState::Failed(load),
            other => other,
        };
    }

    /// Sends the result to the request, once.
    pub fn answer(&self, answer: Answer<W>) {
        if let WriteState::Queued(load) | WriteState::Sent(load) | WriteState::Failed(load) =
            std::mem::replace(&mut *self.state(), WriteState::Done)
        {
            // If the request has ended, its repetition finds the result.
            let _ = load.answer.send(answer);
        }
    }

    /// Cancels the write if it was not sent. Returns whether it did.
    fn cancel_if_unsent(&self) -> bool {
        self.cancel_if(|state| matches!(state, WriteState::Queued(_)))
    }

    /// Cancels the write if it cannot have been committed. Returns whether it did.
    fn cancel_unless_committed(&self) -> bool {
        self.cancel_if(|state| matches!(state, WriteState::Queued(_) | WriteState::Failed(_)))
    }

    fn cancel_if(&self, may_cancel: impl FnOnce(&WriteState<W>) -> bool) -> bool {
        let mut state = self.state();
        let cancelled = may_cancel(&state);
        if cancelled {
            *state = WriteState::Done;
        }
        cancelled
    }

    fn is_done(&self) -> bool {
        matches!(*self.state(), WriteState::Done)
    }

    fn state(&self) -> MutexGuard<'_, WriteState<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: GroupedWrite> Drop for EnqueuedWrite<W> {
    fn drop(&mut self) {
        self.write.cancel_if_unsent();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use futures_util::poll;
    use sqlx::PgConnection;

    use super::*;
    use crate::database::WriteOptions;

    /// A write for tests that send nothing.
    pub struct Notes<const OF_ONE_TENANT: bool>;

    #[derive(Clone, Copy)]
    pub struct Note {
        pub tenant: TenantId,
        pub group: u8,
        pub bytes: usize,
        pub identity: Option<Uuid>,
    }

    impl<const OF_ONE_TENANT: bool> GroupedWrite for Notes<OF_ONE_TENANT> {
        type Request = Note;
        type Outcome = ();
        type Group = u8;

        const NAME: &'static str = "note";
        const OF_ONE_TENANT: bool = OF_ONE_TENANT;

        fn tenant(note: &Note) -> TenantId {
            note.tenant
        }

        fn group(note: &Note) -> u8 {
            note.group
        }

        fn size(note: &Note) -> Size {
            Size { jobs: 1, bytes: note.bytes }
        }

        fn identity(note: &Note) -> Option<Uuid> {
            note.identity
        }

        async fn write(
            &self,
            _: &mut PgConnection,
            notes: &[Arc<Note>],
            _: WriteOptions,
        ) -> sqlx::Result<Vec<Option<()>>> {
            Ok(vec![Some(()); notes.len()])
        }
    }

    type Shared = Batcher<Notes<false>>;

    pub const BOUNDS: Bounds = Bounds {
        batch_jobs: 3,
        batch_bytes: 8192,
        queue_jobs: 5,
        queue_bytes: 16 * 1024,
        acquire_timeout: Duration::from_secs(1),
    };

    const ROOMY: Bounds = Bounds { queue_jobs: 20, ..BOUNDS };

    /// A note of one of some tenants.
    pub fn note(tenant: u128, bytes: usize) -> Arc<Note> {
        Arc::new(Note { tenant: TenantId(Uuid::from_u128(tenant)), group: 0, bytes, identity: None })
    }

    fn batcher() -> Arc<Shared> {
        Arc::new(Batcher::new(BOUNDS, 2))
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    macro_rules! enqueued {
        ($batcher:expr, $bytes:expr) => {
            enqueued!($batcher, $bytes, 0)
        };
        ($batcher:expr, $bytes:expr, $tenant:expr) => {{
            let mut write = Box::pin($batcher.enqueue(note($tenant, $bytes), in_a_minute()));
            assert!(poll!(&mut write).is_pending());
            write
        }};
    }

    fn answer_all<W: GroupedWrite<Outcome = ()>>(batch: Batch<W>) -> usize {
        let sent = batch.writes.iter().filter(|write| write.mark_sent().is_some());
        sent.map(|write| write.answer(Ok(()))).count()
    }

    #[tokio::test]
    async fn a_batch_takes_what_has_arrived_within_its_limits() {
        let batcher = batcher();
        let mut enqueued = Vec::new();
        for (bytes, tenant) in [(10, 0), (10, 1), (10, 0), (6000, 1), (6000, 0)] {
            enqueued.push(enqueued!(batcher, bytes, tenant));
        }
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sizes.push(answer_all(batcher.next_batch().await.unwrap()));
        }
        assert_eq!(sizes, [3, 1, 1], "by count, then by bytes");
        for write in enqueued {
            assert!(write.await.is_ok());
        }
        let large = enqueued!(batcher, 100_000);
        assert_eq!(answer_all(batcher.next_batch().await.unwrap()), 1, "too large for a batch, it is sent alone");
        assert!(large.await.is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_immediately_until_a_request_is_answered() {
        for (bytes, fit) in [(10, 5), (6000, 2)] {
            let batcher = batcher();
            let mut enqueued = Vec::new();
            for tenant in 0..fit {
                enqueued.push(enqueued!(batcher, bytes, tenant));
            }
            let refused = batcher.enqueue(note(fit, bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::QueueFull))), "{refused:?}");
            let batch = batcher.next_batch().await.unwrap();
            let refused = batcher.enqueue(note(fit, bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::QueueFull))), "a request in a statement counts");
            answer_all(batch);
            let _write = enqueued!(batcher, bytes);
        }
    }

    #[tokio::test]
    async fn one_tenant_can_use_half_of_the_queue() {
        for (bytes, fit) in [(10, 3), (5000, 1)] {
            let batcher = batcher();
            let _writes: Vec<_> = (0..fit).map(|_| batcher.push(note(0, bytes), in_a_minute()).unwrap()).collect();
            let refused = batcher.enqueue(note(0, bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::TenantQueueFull))), "{refused:?}");
            let _other = enqueued!(batcher, bytes, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_not_sent_in_time_is_cancelled() {
        let batcher = batcher();
        let started = Instant::now();
        let unsent = batcher.enqueue(note(0, 10), in_a_minute()).await;
        assert!(matches!(unsent, Err(DatabaseError::Shed(Shed::Waited))), "{unsent:?}");
        assert_eq!(started.elapsed(), BOUNDS.acquire_timeout);
        assert_eq!(batcher.usage().now, 0, "its permits are free");
        assert!(batcher.enqueue(note(0, 10), in_a_minute()).await.is_err());
        assert_eq!(batcher.queue().groups[&0].len(), 1, "without a writer, the next write removes cancelled ones");
        assert_eq!(answer_all(batcher.next_batch().await.unwrap()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_was_sent_waits_until_its_deadline() {
        let batcher = batcher();
        let started = Instant::now();
        let write = enqueued!(batcher, 10);
        let batch = batcher.next_batch().await.unwrap();
        assert!(batch.writes[0].mark_sent().is_some());
        let answer = write.await;
        assert!(matches!(answer, Err(DatabaseError::Unknown)), "{answer:?}");
        assert_eq!(started.elapsed(), Duration::from_secs(60));
        assert!(batch.writes[0].mark_sent().is_some(), "it may still be sent again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_statement_failed_can_be_cancelled() {
        let batcher = batcher();
        let write = enqueued!(batcher, 10);
        let batch = batcher.next_batch().await.unwrap();
        assert!(batch.writes[0].mark_sent().is_some());
        batch.writes[0].mark_failed();
        let started = Instant::now();
        let answer = write.await;
        assert_eq!(started.elapsed(), Duration::from_secs(60), "the writer was going to send it again");
        assert!(matches!(answer, Err(DatabaseError::Shed(Shed::Waited))), "{answer:?}");
        assert!(batch.writes[0].mark_sent().is_none(), "it is cancelled");
    }

    #[tokio::test]
    async fn a_write_whose_request_ends_before_it_is_sent_is_cancelled() {
        let batcher = batcher();
        drop(enqueued!(batcher, 10));
        assert_eq!(batcher.usage().now, 0);
        assert_eq!(answer_all(batcher.next_batch().await.unwrap()), 0);
    }

    #[tokio::test]
    async fn a_closed_queue_accepts_no_write_and_empties() {
        let batcher = batcher();
        let enqueued: Vec<_> = vec![enqueued!(batcher, 10), enqueued!(batcher, 10), enqueued!(batcher, 6000)];
        batcher.close();
        let refused = batcher.enqueue(note(1, 10), in_a_minute()).await;
        assert!(matches!(refused, Err(DatabaseError::Unavailable(_))), "{refused:?}");
        let mut sent = 0;
        while let Some(batch) = batcher.next_batch().await {
            sent += answer_all(batch);
        }
        assert_eq!(sent, enqueued.len());
    }

    #[tokio::test]
    async fn a_waiting_writer_wakes_when_a_write_arrives_or_the_queue_closes() {
        let batcher = batcher();
        let mut writers = [Box::pin(batcher.next_batch()), Box::pin(batcher.next_batch())];
        for writer in &mut writers {
            assert!(poll!(writer).is_pending());
        }
        let [one, two] = writers;
        let write = enqueued!(batcher, 10);
        assert_eq!(answer_all(one.await.unwrap()), 1);
        assert!(write.await.is_ok());
        batcher.close();
        assert!(two.await.is_none());
    }

    fn of_one_tenant(tenant: u128, group: u8, identity: Option<u128>) -> Arc<Note> {
        let (tenant, identity) = (TenantId(Uuid::from_u128(tenant)), identity.map(Uuid::from_u128));
        Arc::new(Note { tenant, group, bytes: 10, identity })
    }

    #[tokio::test]
    async fn a_group_of_a_tenant_has_one_statement_in_flight_and_a_tenant_half_of_the_writers() {
        let batcher = Arc::new(Batcher::<Notes<true>>::new(ROOMY, 4));
        let push = |tenant, group| batcher.push(of_one_tenant(tenant, group, None), in_a_minute()).unwrap();
        let _first = [push(1, 0), push(1, 1), push(1, 2)];
        let batches = [batcher.next_batch().await.unwrap(), batcher.next_batch().await.unwrap()];
        let _again = push(1, 0);
        let mut third = Box::pin(batcher.next_batch());
        assert!(poll!(&mut third).is_pending(), "the tenant has two statements in flight");
        let _other = push(2, 3);
        assert_eq!(third.await.unwrap().writes[0].tenant, TenantId(Uuid::from_u128(2)));
        let [in_flight, ended] = batches;
        assert_eq!(answer_all(ended), 1);
        let next = batcher.next_batch().await.unwrap();
        assert_eq!(
            Notes::<true>::group(&next.writes[0].mark_sent().unwrap()),
            2,
            "group 0 still has a statement in flight"
        );
        drop((in_flight, next));
        let last = batcher.next_batch().await.unwrap();
        assert_eq!(Notes::<true>::group(&last.writes[0].mark_sent().unwrap()), 0);
        drop(last);
        let queue = batcher.queue();
        assert!(queue.groups.is_empty() && queue.turns.is_empty() && queue.in_flight.is_empty(), "nothing is kept");
    }

    #[tokio::test]
    async fn a_statement_takes_one_of_the_requests_with_the_same_identity() {
        let batcher = Arc::new(Batcher::<Notes<true>>::new(ROOMY, 2));
        let push = |identity| batcher.push(of_one_tenant(1, 0, Some(identity)), in_a_minute()).unwrap();
        let _writes = [push(7), push(7), push(8), push(7)];
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sizes.push(answer_all(batcher.next_batch().await.unwrap()));
        }
        assert_eq!(sizes, [2, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn groups_whose_writes_are_all_cancelled_are_removed() {
        let batcher = Arc::new(Batcher::<Notes<true>>::new(ROOMY, 2));
        for group in 0..200 {
            drop(batcher.push(of_one_tenant(1, group, None), in_a_minute()).unwrap());
        }
        assert_eq!(batcher.queue().groups.len(), 1, "without a writer, the next write removes cancelled ones");
    }
}
