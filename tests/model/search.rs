//! Breadth-first search through all states that a model can reach.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// What one action led to.
pub struct Step<State, Action> {
    pub action: Action,
    pub next: State,
    /// The properties that the step violates.
    pub violated: Vec<&'static str>,
}

pub struct Found<Action> {
    pub states: usize,
    /// The shortest path to a violation of the property, if one can be reached.
    pub violation: Option<Violation<Action>>,
}

pub struct Violation<Action> {
    pub property: &'static str,
    pub path: Vec<Action>,
}

impl<Action: Debug> Debug for Violation<Action> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "violated: {}", self.property)?;
        self.path.iter().enumerate().try_for_each(|(number, action)| write!(f, "\n  {}. {action:?}", number + 1))
    }
}

/// Visits every state that can be reached from `initial`, until one of the `properties` is violated.
pub fn search<State: Copy + Eq + Hash, Action: Copy>(
    initial: State,
    steps: impl Fn(&State) -> Vec<Step<State, Action>>,
    properties: &[&'static str],
) -> Found<Action> {
    /// More than a run of this test may visit.
    const LIMIT: usize = 3_000_000;
    let mut seen = HashSet::from([initial]);
    // Each state with the place of the state before it, and the action that led here.
    let mut visited: Vec<(State, usize, Option<Action>)> = vec![(initial, 0, None)];
    let mut place = 0;
    while let Some((state, ..)) = visited.get(place).copied() {
        for Step { action, next, violated } in steps(&state) {
            if let Some(property) = violated.into_iter().find(|violated| properties.contains(violated)) {
                let path = path_to(&visited, place).into_iter().chain([action]).collect();
                return Found { states: visited.len(), violation: Some(Violation { property, path }) };
            }
            // The comparison saves hashing the many requests that change nothing.
            if next != state && seen.insert(next) {
                visited.push((next, place, Some(action)));
            }
        }
        place += 1;
        assert!(visited.len() < LIMIT, "the model has too many states");
    }
    Found { states: visited.len(), violation: None }
}

fn path_to<State, Action: Copy>(visited: &[(State, usize, Option<Action>)], mut place: usize) -> Vec<Action> {
    let mut path = Vec::new();
    while let (_, before, Some(action)) = &visited[place] {
        path.push(*action);
        place = *before;
    }
    path.reverse();
    path
}
