//! What must hold after every action of the model.

use super::protocol::{Action, Answer, CLAIMS, Outcome, Past, REPLICAS, Running, Size, State};

pub const ONE_PLACE: &str = "a job is in exactly one place";
pub const ONLY_THE_HOLDER_SETTLES: &str = "only the holder of a lease settles";
pub const NO_JOB_IS_LOST: &str = "a job of vanished workers is available again after its lease";
pub const TOKENS_RISE: &str = "the token of a lease is greater than every earlier one";
pub const SAME_JOBS: &str = "a repeated claim returns the same jobs and never others";
pub const OUTCOMES_STAY: &str = "the outcome of a job never changes";
pub const LIVE_LEASES_STAY: &str = "a lease that has not expired is not taken";
pub const RELEASED_CLAIMS_HOLD_NOTHING: &str = "a released claim holds no job";
pub const CANCELLED_JOBS_END: &str = "a job whose cancellation was requested is not queued again";
pub const ANSWERS_ARE_TRUE: &str = "an answer says what happened";
pub const RETRIED_ONCE: &str = "copies of a request to retry a job retry it once";

pub const ALL: [&str; 11] = [
    ONE_PLACE,
    ONLY_THE_HOLDER_SETTLES,
    NO_JOB_IS_LOST,
    TOKENS_RISE,
    SAME_JOBS,
    OUTCOMES_STAY,
    LIVE_LEASES_STAY,
    RELEASED_CLAIMS_HOLD_NOTHING,
    CANCELLED_JOBS_END,
    ANSWERS_ARE_TRUE,
    RETRIED_ONCE,
];

/// The properties that an action violates.
pub fn violated(size: &Size, before: &State, action: Action, answer: Answer, after: &State) -> Vec<&'static str> {
    let holds = [
        (ONE_PLACE, is_in_one_place(after)),
        (ONLY_THE_HOLDER_SETTLES, only_the_holder_settles(before, action, after)),
        (NO_JOB_IS_LOST, no_job_is_lost(size, after)),
        (TOKENS_RISE, tokens_rise(before, after)),
        (SAME_JOBS, same_jobs(before, action, answer, after)),
        (OUTCOMES_STAY, outcomes_stay(before, action, after)),
        (LIVE_LEASES_STAY, live_leases_stay(before, action, after)),
        (RELEASED_CLAIMS_HOLD_NOTHING, (0..CLAIMS).all(|claim| !(after.released[claim] && after.holds(claim)))),
        (CANCELLED_JOBS_END, cancelled_jobs_end(before, after)),
        (ANSWERS_ARE_TRUE, answers_are_true(before, action, answer, after)),
        (RETRIED_ONCE, retried_once(before, action, after)),
    ];
    holds.into_iter().filter(|(_, holds)| !holds).map(|(property, _)| property).collect()
}

fn is_in_one_place(state: &State) -> bool {
    state.jobs.iter().all(|job| {
        let places = [job.waiting.is_some(), job.lease.is_some(), job.ended.is_some()];
        places.into_iter().filter(|place| *place).count() == usize::from(!job.deleted)
    })
}

/// A report of a claim without the lease moves nothing.
fn only_the_holder_settles(before: &State, action: Action, after: &State) -> bool {
    let Action::Settle(claim, settled, _) = action else { return true };
    let mut pairs = before.jobs.iter().zip(&after.jobs).enumerate();
    pairs.all(|(job, (before, after))| job == settled && before.lease_of(claim).is_some() || before == after)
}

/// What happens if no request arrives any more: every claim expires and is reclaimed. Then a job waits for another worker,
/// or has ended.
fn no_job_is_lost(size: &Size, after: &State) -> bool {
    let mut state = State { replicas: [None; REPLICAS], ..*after };
    for claim in 0..size.claims {
        if let Some(stored) = state.claims[claim].as_mut().filter(|stored| stored.watched) {
            stored.expired = true;
            state = size.apply(&state, Action::Reclaim(claim)).0;
        }
    }
    state.jobs.iter().all(|job| job.lease.is_none() && (job.deleted || job.waiting.is_some() || job.ended.is_some()))
}

fn tokens_rise(before: &State, after: &State) -> bool {
    before.jobs.iter().zip(&after.jobs).all(|(before, after)| match (before.lease, after.lease) {
        (Some(before), Some(after)) if before.claim == after.claim => before.token == after.token,
        (_, Some(after)) => after.token > before.last_token,
        (_, None) => true,
    })
}

fn same_jobs(before: &State, action: Action, answer: Answer, after: &State) -> bool {
    let claim = match action {
        Action::Claim(claim, _) => claim,
        Action::Continue(replica, _) => match before.replicas[replica] {
            Some(Running::Claim(claim)) => claim,
            _ => return true,
        },
        _ => return true,
    };
    let held = before.tokens_of(claim);
    match before.claimed[claim] {
        true => after.tokens_of(claim) == held && answer != Answer::Nothing,
        false => true,
    }
}

fn outcomes_stay(before: &State, action: Action, after: &State) -> bool {
    if matches!(action, Action::Retry(_) | Action::Delete(_)) {
        return true;
    }
    let deleted = |job: usize| after.jobs[job].deleted && !before.jobs[job].deleted;
    let mut jobs = before.jobs.iter().zip(&after.jobs).enumerate();
    jobs.all(|(job, (before, after))| before.ended.is_none() || before.ended == after.ended || deleted(job))
}

fn live_leases_stay(before: &State, action: Action, after: &State) -> bool {
    before.jobs.iter().zip(&after.jobs).all(|(before_job, after_job)| {
        let Some(lease) = before_job.lease else { return true };
        let is_live = before.claims[lease.claim].is_some_and(|claim| !claim.expired);
        let by_its_worker =
            matches!(action, Action::Settle(..)) || matches!(action, Action::Release(claim) if claim == lease.claim);
        !is_live || by_its_worker || after_job.deleted || after_job.lease_of(lease.claim).is_some()
    })
}

fn cancelled_jobs_end(before: &State, after: &State) -> bool {
    before
        .jobs
        .iter()
        .zip(&after.jobs)
        .all(|(before, after)| !before.lease.is_some_and(|lease| lease.cancel_requested) || after.waiting.is_none())
}

fn answers_are_true(before: &State, action: Action, answer: Answer, after: &State) -> bool {
    match action {
        Action::Heartbeat(claim) => (answer == Answer::Extended) == before.holds(claim),
        Action::Claim(claim, _) => match answer {
            Answer::Jobs(tokens) => tokens == after.tokens_of(claim),
            _ => !after.holds(claim),
        },
        Action::Settle(claim, job, outcome) => {
            let past = Some(Past::Reported(outcome));
            let otherwise = [Outcome::Succeeded, Outcome::Failed, Outcome::Released, Outcome::Cancelled]
                .into_iter()
                .any(|other| other != outcome && after.jobs[job].past[claim] == Some(Past::Reported(other)));
            match answer {
                Answer::Recorded => before.jobs[job] != after.jobs[job] && after.jobs[job].past[claim] == past,
                Answer::AlreadyRecorded => before.jobs[job].past[claim] == past,
                Answer::RecordedOtherwise => otherwise,
                _ => !matches!(before.jobs[job].past[claim], Some(Past::Reported(_))),
            }
        }
        _ => true,
    }
}

fn retried_once(before: &State, action: Action, after: &State) -> bool {
    let Action::Retry(job) = action else { return true };
    before.jobs[job].retried_version.is_none() || before.jobs[job] == after.jobs[job]
}
