//! The protocol of claims as a model: each function of `migrations/` is one action, with the guards that it has there.
//!
//! The environment is the worst that a network, workers and replicas can be. Any request may arrive at any time, any number
//! of times, or never: so the model needs no messages to lose, delay or duplicate them, and a crash of a worker or a
//! replica is a request or an answer that never arrives. Any claim may expire at any time, because only the clock of the
//! database decides that. A worker may report several outcomes of one job.

/// A guard of the functions. The model can be run without one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// `claim`: copies of a claim come one after the other, by a lock on its id.
    ClaimLock,
    /// `claim`: a claim whose row exists gets no new jobs.
    ClaimRow,
    /// `reclaim`: the row of a claim is kept for as long as a copy of its request may arrive.
    ClaimRemembered,
    /// `release`: the id of an unknown claim is stored as released.
    ReleaseRemembered,
    /// `settle`: a lease is found by job and claim, not by job alone.
    SettleByClaim,
    /// `settle`: only a job with a lease moves.
    SettleNeedsLease,
    /// `settle`: a job whose cancellation was requested is not queued again.
    SettleHonoursCancel,
    /// `claim`: the token of a lease is the version of the job, not its attempt.
    TokenFromVersion,
    /// `heartbeat`: only a claim that holds a job is extended.
    HeartbeatNeedsLease,
    /// `reclaim`: the expiry is read from the locked row.
    ReclaimChecksExpiry,
    /// `reclaim`: only a job whose lease it deleted moves.
    ReclaimChecksLease,
    /// `reclaim`: a claim that was extended is looked at again when it expires.
    ReclaimLooksAgain,
    /// `reclaim`: a job whose cancellation was requested is not queued again.
    ReclaimHonoursCancel,
    /// `delete`: looks among the leases, too.
    DeleteTakesLease,
    /// `delete`: starts over if it did not find the job in any table.
    DeleteLooksAgain,
    /// `retry`: requires the version that the client saw.
    RetryChecksVersion,
}

pub const JOBS: usize = 2;
pub const CLAIMS: usize = 3;
pub const REPLICAS: usize = 2;
const MAX_ATTEMPTS: u8 = 2;

/// How large a run of the model is.
#[derive(Clone, Copy)]
pub struct Size {
    pub jobs: usize,
    /// How many of them clients cancel, delete and retry.
    pub changed_jobs: usize,
    /// How many claims the workers make. Two or more are two workers, or one worker twice.
    pub claims: usize,
    pub outcomes: &'static [Outcome],
    pub without: Option<Guard>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Succeeded,
    Failed,
    Released,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Final {
    Succeeded,
    Failed,
    Cancelled,
}

/// Row of `job_queue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Waiting {
    pub attempt: u8,
    pub version: u8,
}

/// Row of `job_leases`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    pub claim: usize,
    pub token: u8,
    pub attempt: u8,
    pub version: u8,
    pub cancel_requested: bool,
}

/// Row of `job_outcomes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ended {
    pub state: Final,
    pub claim: Option<usize>,
    pub attempt: u8,
    pub version: u8,
}

/// What is stored of a claim's lease of a job after it ended: the row of `job_attempts`, or what `job_outcomes` has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Past {
    Reported(Outcome),
    Lost,
}

/// A job's rows in all tables, and what the properties must remember of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Job {
    pub waiting: Option<Waiting>,
    pub lease: Option<Lease>,
    pub ended: Option<Ended>,
    pub deleted: bool,
    pub past: [Option<Past>; CLAIMS],
    /// The greatest token that the job has had.
    pub last_token: u8,
    /// The version that the one request to retry the job names, once it was sent.
    pub retried_version: Option<u8>,
}

/// Row of `claims`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Claim {
    pub expired: bool,
    /// Whether the reclaimer looks at the row when it has expired.
    pub watched: bool,
}

/// A function whose guard is missing, between two of its statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Running {
    /// Has seen that the claim has no row.
    Claim(usize),
    /// Has read that the claim has expired, and whether it holds each job.
    Reclaim(usize, [bool; JOBS]),
    /// Has looked into the queue, or into the queue and the leases.
    Delete(usize, u8),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub jobs: [Job; JOBS],
    pub claims: [Option<Claim>; CLAIMS],
    /// What each replica is in the middle of. Nothing, if every guard is there: a function is one transaction.
    pub replicas: [Option<Running>; REPLICAS],
    /// For the properties: which claims have held jobs, and which were released.
    pub claimed: [bool; CLAIMS],
    pub released: [bool; CLAIMS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `claim`: takes some of the waiting jobs, or none, because other transactions may have locked them.
    Claim(usize, [bool; JOBS]),
    /// The time of the lease has passed.
    Expire(usize),
    Heartbeat(usize),
    Settle(usize, usize, Outcome),
    Release(usize),
    Reclaim(usize),
    /// `reclaim` of a claim that has not expired.
    Look(usize),
    /// `reclaim` forgets a claim that has ended.
    Forget(usize),
    Cancel(usize),
    Delete(usize),
    Retry(usize),
    /// A replica begins or continues a function whose guard is missing.
    Begin(usize, Running),
    Continue(usize, [bool; JOBS]),
}

/// What the caller learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Silent,
    /// The claim's jobs, with their tokens.
    Jobs([Option<u8>; JOBS]),
    Nothing,
    ClaimEnded,
    Extended,
    Recorded,
    AlreadyRecorded,
    RecordedOtherwise,
    LeaseLost,
}

impl Size {
    fn guarded(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    pub fn initial(&self) -> State {
        let mut state = State::default();
        for job in &mut state.jobs[..self.jobs] {
            job.waiting = Some(Waiting { attempt: 0, version: 1 });
        }
        for absent in &mut state.jobs[self.jobs..] {
            absent.deleted = true;
        }
        state
    }

    /// Every action that is possible now.
    pub fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        for claim in 0..self.claims {
            if self.guarded(Guard::ClaimLock) {
                actions.extend(self.choices().map(|wanted| Action::Claim(claim, wanted)));
            }
            for job in 0..self.jobs {
                actions.extend(self.outcomes.iter().map(|outcome| Action::Settle(claim, job, *outcome)));
            }
            actions.extend([Action::Heartbeat(claim), Action::Release(claim)]);
            let Some(stored) = state.claims[claim] else { continue };
            match stored.expired {
                true if stored.watched
                    && self.guarded(Guard::ReclaimChecksExpiry)
                    && self.guarded(Guard::ReclaimChecksLease) =>
                {
                    actions.push(Action::Reclaim(claim));
                }
                true => {}
                false => actions.extend([Action::Expire(claim), Action::Look(claim)]),
            }
            if !self.guarded(Guard::ClaimRemembered) && !state.holds(claim) {
                actions.push(Action::Forget(claim));
            }
        }
        for job in 0..self.changed_jobs {
            actions.extend([Action::Cancel(job), Action::Retry(job)]);
            if self.guarded(Guard::DeleteLooksAgain) {
                actions.push(Action::Delete(job));
            }
        }
        for replica in 0..REPLICAS {
            match state.replicas[replica] {
                None => actions.extend(self.beginnings(state).map(|running| Action::Begin(replica, running))),
                Some(Running::Claim(_)) => {
                    actions.extend(self.choices().map(|wanted| Action::Continue(replica, wanted)))
                }
                Some(_) => actions.push(Action::Continue(replica, [false; JOBS])),
            }
        }
        actions
    }

    fn choices(&self) -> impl Iterator<Item = [bool; JOBS]> {
        (0..1_u8 << self.jobs).map(|bits| std::array::from_fn(|job| bits & 1 << job != 0))
    }

    /// The functions that are not one action, because the guard that makes them so is missing.
    fn beginnings(&self, state: &State) -> impl Iterator<Item = Running> {
        let claims = (0..self.claims).filter(move |_| !self.guarded(Guard::ClaimLock));
        let unknown = claims.filter(move |claim| state.claims[*claim].is_none()).map(Running::Claim);
        let stale = !self.guarded(Guard::ReclaimChecksExpiry) || !self.guarded(Guard::ReclaimChecksLease);
        let expired = (0..self.claims).filter(move |_| stale);
        let expired =
            expired.filter(move |claim| state.claims[*claim].is_some_and(|stored| stored.expired && stored.watched));
        let expired = expired.map(move |claim| {
            Running::Reclaim(claim, std::array::from_fn(|job| state.jobs[job].lease_of(claim).is_some()))
        });
        let jobs = (0..self.jobs).filter(move |_| !self.guarded(Guard::DeleteLooksAgain));
        let deleted = jobs.filter(move |job| !state.jobs[*job].deleted && state.jobs[*job].waiting.is_none());
        unknown.chain(expired).chain(deleted.map(|job| Running::Delete(job, 1)))
    }

    pub fn apply(&self, before: &State, action: Action) -> (State, Answer) {
        let mut state = *before;
        let answer = match action {
            Action::Claim(claim, wanted) => self.claim(&mut state, claim, wanted),
            Action::Expire(claim) => {
                state.claims[claim].as_mut().expect("the claim is stored").expired = true;
                Answer::Silent
            }
            Action::Heartbeat(claim) => self.heartbeat(&mut state, claim),
            Action::Settle(claim, job, outcome) => self.settle(&mut state, claim, job, outcome),
            Action::Release(claim) => self.release(&mut state, claim),
            Action::Reclaim(claim) => {
                let holds = std::array::from_fn(|job| state.jobs[job].lease_of(claim).is_some());
                self.reclaim(&mut state, claim, holds)
            }
            Action::Look(claim) => {
                let watched = self.guarded(Guard::ReclaimLooksAgain);
                state.claims[claim].as_mut().expect("the claim is stored").watched &= watched;
                Answer::Silent
            }
            Action::Forget(claim) => {
                state.claims[claim] = None;
                Answer::Silent
            }
            Action::Cancel(job) => cancel(&mut state.jobs[job]),
            Action::Delete(job) => self.delete(&mut state.jobs[job]),
            Action::Retry(job) => self.retry(&mut state.jobs[job]),
            Action::Begin(replica, running) => {
                state.replicas[replica] = Some(running);
                Answer::Silent
            }
            Action::Continue(replica, wanted) => self.go_on(&mut state, replica, wanted),
        };
        (state, answer)
    }

    fn claim(&self, state: &mut State, claim: usize, wanted: [bool; JOBS]) -> Answer {
        if state.claims[claim].is_some() && self.guarded(Guard::ClaimRow) {
            return match state.holds(claim) {
                true => Answer::Jobs(state.tokens_of(claim)),
                false => Answer::ClaimEnded,
            };
        }
        self.take(state, claim, wanted)
    }

    fn take(&self, state: &mut State, claim: usize, wanted: [bool; JOBS]) -> Answer {
        let mut found = false;
        for (job, _) in state.jobs.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
            let Some(Waiting { attempt, version }) = job.waiting.take() else { continue };
            let (attempt, version) = (attempt + 1, version + 1);
            let token = if self.guarded(Guard::TokenFromVersion) { version } else { attempt };
            job.lease = Some(Lease { claim, token, attempt, version, cancel_requested: false });
            job.last_token = job.last_token.max(token);
            found = true;
        }
        if !found {
            return Answer::Nothing;
        }
        state.claims[claim] = Some(Claim { expired: false, watched: true });
        state.claimed[claim] = true;
        Answer::Jobs(state.tokens_of(claim))
    }

    fn heartbeat(&self, state: &mut State, claim: usize) -> Answer {
        let holds = state.holds(claim) || !self.guarded(Guard::HeartbeatNeedsLease);
        match &mut state.claims[claim] {
            Some(stored) if holds => {
                stored.expired = false;
                Answer::Extended
            }
            _ => Answer::ClaimEnded,
        }
    }

    fn settle(&self, state: &mut State, claim: usize, place: usize, outcome: Outcome) -> Answer {
        let job = &mut state.jobs[place];
        let held = match job.lease {
            Some(lease) => (lease.claim == claim || !self.guarded(Guard::SettleByClaim)).then_some(lease),
            None if self.guarded(Guard::SettleNeedsLease) => None,
            None => job.ended.filter(|ended| ended.claim == Some(claim)).map(|ended| Lease {
                claim,
                token: 0,
                attempt: ended.attempt,
                version: ended.version,
                cancel_requested: false,
            }),
        };
        let Some(lease) = held else {
            return match job.past[claim] {
                Some(Past::Reported(reported)) if reported == outcome => Answer::AlreadyRecorded,
                Some(Past::Reported(_)) => Answer::RecordedOtherwise,
                Some(Past::Lost) | None => Answer::LeaseLost,
            };
        };
        (job.lease, job.ended) = (None, None);
        let end = match outcome {
            Outcome::Succeeded => Some(Final::Succeeded),
            Outcome::Cancelled => Some(Final::Cancelled),
            _ if lease.cancel_requested && self.guarded(Guard::SettleHonoursCancel) => Some(Final::Cancelled),
            Outcome::Failed if lease.attempt >= MAX_ATTEMPTS => Some(Final::Failed),
            Outcome::Failed | Outcome::Released => None,
        };
        // The attempt that ended the job counts.
        let attempt = lease.attempt - u8::from(outcome == Outcome::Released && end.is_none());
        job.leave_lease(lease.version, attempt, end.map(|state| (state, claim)));
        job.past[claim] = Some(Past::Reported(outcome));
        Answer::Recorded
    }

    fn release(&self, state: &mut State, claim: usize) -> Answer {
        state.released[claim] = true;
        if state.claims[claim].is_none() && self.guarded(Guard::ReleaseRemembered) {
            state.claims[claim] = Some(Claim { expired: true, watched: true });
        }
        for job in 0..self.jobs {
            if state.jobs[job].lease_of(claim).is_some() {
                self.settle(state, claim, job, Outcome::Released);
            }
        }
        Answer::Silent
    }

    fn reclaim(&self, state: &mut State, claim: usize, read: [bool; JOBS]) -> Answer {
        for (job, _) in state.jobs.iter_mut().zip(read).filter(|(_, read)| *read) {
            let lease = match job.lease_of(claim) {
                Some(lease) => lease,
                None if self.guarded(Guard::ReclaimChecksLease) => continue,
                None => Lease { claim, token: 0, attempt: 1, version: 2, cancel_requested: false },
            };
            job.lease = job.lease.filter(|lease| lease.claim != claim);
            let end = if lease.cancel_requested && self.guarded(Guard::ReclaimHonoursCancel) {
                Some(Final::Cancelled)
            } else {
                (lease.attempt >= MAX_ATTEMPTS).then_some(Final::Failed)
            };
            job.leave_lease(lease.version, lease.attempt, end.map(|state| (state, claim)));
            job.past[claim] = Some(Past::Lost);
        }
        Answer::Silent
    }

    fn delete(&self, job: &mut Job) -> Answer {
        if !job.deleted {
            (job.waiting, job.ended, job.deleted, job.past) = (None, None, true, [None; CLAIMS]);
            if self.guarded(Guard::DeleteTakesLease) {
                job.lease = None;
            }
        }
        Answer::Silent
    }

    /// The client sends one such request. Later ones are copies of it.
    fn retry(&self, job: &mut Job) -> Answer {
        let Some(ended) = job.ended else { return Answer::Silent };
        let wanted = *job.retried_version.get_or_insert(ended.version);
        if wanted == ended.version || !self.guarded(Guard::RetryChecksVersion) {
            job.ended = None;
            job.waiting = Some(Waiting { attempt: 0, version: ended.version + 1 });
        }
        Answer::Silent
    }

    fn go_on(&self, state: &mut State, replica: usize, wanted: [bool; JOBS]) -> Answer {
        match state.replicas[replica].take().expect("the replica runs a function") {
            // The primary key of the claims undoes what a second copy took.
            Running::Claim(claim) if state.claims[claim].is_some() && wanted != [false; JOBS] => Answer::Silent,
            Running::Claim(claim) => self.take(state, claim, wanted),
            Running::Reclaim(claim, read) => self.reclaim(state, claim, read),
            Running::Delete(job, 1) if state.jobs[job].lease.is_none() => {
                state.replicas[replica] = Some(Running::Delete(job, 2));
                Answer::Silent
            }
            Running::Delete(job, looked) => {
                let job = &mut state.jobs[job];
                match looked {
                    1 => job.lease = None,
                    _ => job.ended = None,
                }
                (job.deleted, job.past) = (true, [None; CLAIMS]);
                Answer::Silent
            }
        }
    }
}

fn cancel(job: &mut Job) -> Answer {
    if let Some(Waiting { attempt, version }) = job.waiting.take() {
        job.ended = Some(Ended { state: Final::Cancelled, claim: None, attempt, version: version + 1 });
    } else if let Some(lease) = job.lease.as_mut().filter(|lease| !lease.cancel_requested) {
        lease.cancel_requested = true;
        lease.version += 1;
    }
    Answer::Silent
}

impl Job {
    pub fn lease_of(&self, claim: usize) -> Option<Lease> {
        self.lease.filter(|lease| lease.claim == claim)
    }

    /// Moves a job that had a lease: to the outcomes if it ends, else into the queue.
    fn leave_lease(&mut self, version: u8, attempt: u8, end: Option<(Final, usize)>) {
        let version = version + 1;
        match end {
            Some((state, claim)) => self.ended = Some(Ended { state, claim: Some(claim), attempt, version }),
            None => self.waiting = Some(Waiting { attempt, version }),
        }
    }
}

impl State {
    pub fn holds(&self, claim: usize) -> bool {
        self.jobs.iter().any(|job| job.lease_of(claim).is_some())
    }

    pub fn tokens_of(&self, claim: usize) -> [Option<u8>; JOBS] {
        self.jobs.map(|job| job.lease_of(claim).map(|lease| lease.token))
    }
}
