//! An exhaustive check of the protocol of claims: every order of requests, expiries and reclaims, in a small world.
//!
//! It checks the guards, not the SQL. tests/api/protocol.rs checks that the functions do what the model does. ADR 0033 says why the
//! search is written here.

mod properties;
mod protocol;
mod search;

use properties::{
    ANSWERS_ARE_TRUE, CANCELLED_JOBS_END, LIVE_LEASES_STAY, NO_JOB_IS_LOST, ONE_PLACE, ONLY_THE_HOLDER_SETTLES,
    OUTCOMES_STAY, RELEASED_CLAIMS_HOLD_NOTHING, RETRIED_ONCE, SAME_JOBS, TOKENS_RISE,
};
use protocol::{Action, Guard, Outcome, Size, State};
use search::{Found, Step, search};

/// One job that two workers claim three times, and report about in every way.
const ONE_JOB: Size = Size {
    jobs: 1,
    changed_jobs: 1,
    claims: 3,
    outcomes: &[Outcome::Succeeded, Outcome::Failed, Outcome::Released],
    without: None,
};

/// Two jobs in one claim or in two.
const TWO_JOBS: Size =
    Size { jobs: 2, changed_jobs: 1, claims: 2, outcomes: &[Outcome::Succeeded, Outcome::Failed], without: None };

fn run(size: Size, wanted: &[&'static str]) -> Found<Action> {
    let steps = |state: &State| {
        let step = |action| {
            let (next, answer) = size.apply(state, action);
            Step { action, next, violated: properties::violated(&size, state, action, answer, &next) }
        };
        size.actions(state).into_iter().map(step).collect()
    };
    search(size.initial(), steps, wanted)
}

#[test]
fn the_protocol_keeps_every_property_in_every_state() {
    for (size, expected) in [(ONE_JOB, 10_000), (TWO_JOBS, 10_000)] {
        let found = run(size, &properties::ALL);
        println!("{} jobs, {} claims: {} states", size.jobs, size.claims, found.states);
        if let Some(violation) = found.violation {
            panic!("{violation:?}");
        }
        assert!(found.states > expected, "the model has lost behaviour: {} states", found.states);
    }
}

/// Each guard, with the property that it alone holds up.
const NEEDED: [(Guard, &str); 16] = [
    (Guard::ClaimLock, SAME_JOBS),
    (Guard::ClaimRow, SAME_JOBS),
    (Guard::ClaimRemembered, SAME_JOBS),
    (Guard::ReleaseRemembered, RELEASED_CLAIMS_HOLD_NOTHING),
    (Guard::SettleByClaim, ONLY_THE_HOLDER_SETTLES),
    (Guard::SettleNeedsLease, OUTCOMES_STAY),
    (Guard::SettleHonoursCancel, CANCELLED_JOBS_END),
    (Guard::TokenFromVersion, TOKENS_RISE),
    (Guard::HeartbeatNeedsLease, ANSWERS_ARE_TRUE),
    (Guard::ReclaimChecksExpiry, LIVE_LEASES_STAY),
    (Guard::ReclaimChecksLease, ONE_PLACE),
    (Guard::ReclaimLooksAgain, NO_JOB_IS_LOST),
    (Guard::ReclaimHonoursCancel, CANCELLED_JOBS_END),
    (Guard::DeleteTakesLease, ONE_PLACE),
    (Guard::DeleteLooksAgain, ONE_PLACE),
    (Guard::RetryChecksVersion, RETRIED_ONCE),
];

#[test]
fn without_any_one_guard_a_property_is_violated() {
    for (guard, property) in NEEDED {
        let found = run(Size { without: Some(guard), ..ONE_JOB }, &[property]);
        let violation = found.violation.unwrap_or_else(|| panic!("{guard:?} can go: no violation of {property:?}"));
        println!("without {guard:?}, after {} states {violation:?}", found.states);
    }
    let broken: Vec<_> = NEEDED.iter().map(|(_, property)| *property).collect();
    assert_eq!(
        properties::ALL.iter().filter(|property| !broken.contains(property)).count(),
        0,
        "each is seen violated"
    );
}
