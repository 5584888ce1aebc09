//! What is known of a request, which every line that is logged on its way shows.
//!
//! Not a span of `tracing`'s. Those may be many, within one another, on any thread, so each goes through a registry and
//! each field through every layer; a request has one set of facts, on one thread, and what it learns is one copy.

use std::cell::RefCell;
use std::fmt::{Display, Write};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A request's facts, each with a name and a text, in the order in which they became known.
#[derive(Clone, Default)]
pub struct Facts(Rc<RefCell<Known>>);

#[derive(Default)]
struct Known {
    /// Each with the place of its text.
    names: Vec<(&'static str, Range<usize>)>,
    texts: String,
}

/// A future during which its facts are the current ones.
pub struct Within<F> {
    facts: Facts,
    future: F,
}

/// While this lives, its facts are the current ones; then again those from before.
struct Entered(Option<Facts>);

/// As many as a request that bears a key has, and what their texts take as a rule.
const FACTS: usize = 12;
const TEXTS_LENGTH: usize = 320;

thread_local! {
    static CURRENT: RefCell<Option<Facts>> = const { RefCell::new(None) };
}

impl Facts {
    pub fn new() -> Self {
        let known = Known { names: Vec::with_capacity(FACTS), texts: String::with_capacity(TEXTS_LENGTH) };
        Self(Rc::new(RefCell::new(known)))
    }

    /// Those of the request that is being worked on; facts of nobody's if there is none.
    pub fn current() -> Self {
        CURRENT.with_borrow(|current| current.clone().unwrap_or_default())
    }

    /// Adds a fact. A later text of the same name replaces the earlier one, so a log line has each member once.
    pub fn note(&self, name: &'static str, text: &str) {
        self.record(name, |texts| texts.push_str(text));
    }

    /// Adds a fact that is not a text yet.
    pub fn note_value(&self, name: &'static str, value: impl Display) {
        self.record(name, |texts| write!(texts, "{value}").expect("writing to a string cannot fail"));
    }

    fn record(&self, name: &'static str, append: impl FnOnce(&mut String)) {
        let known = &mut *self.0.borrow_mut();
        let start = known.texts.len();
        append(&mut known.texts);
        let place = start..known.texts.len();
        match known.names.iter_mut().find(|(known, _)| *known == name) {
            Some((_, earlier)) => *earlier = place,
            None => known.names.push((name, place)),
        }
    }

    /// Makes them the current ones for as long as a future is polled.
    pub fn within<F: Future + Unpin>(&self, future: F) -> Within<F> {
        Within { facts: self.clone(), future }
    }

    /// Makes them the current ones for this.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.enter();
        work()
    }

    fn enter(&self) -> Entered {
        Entered(CURRENT.replace(Some(self.clone())))
    }
}

/// Shows the current facts one by one; `false` if there is no request.
pub fn show(mut each: impl FnMut(&'static str, &str)) -> bool {
    CURRENT.with_borrow(|current| {
        let Some(Facts(known)) = current else { return false };
        let known = known.borrow();
        for (name, place) in &known.names {
            each(name, &known.texts[place.clone()]);
        }
        true
    })
}

impl<F: Future + Unpin> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { facts, future } = &mut *self;
        let _entered = facts.enter();
        Pin::new(future).poll(context)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Option<String> {
        let mut text = String::new();
        show(|name, value| text.extend([name, "=", value, " "])).then_some(text)
    }

    #[test]
    fn facts_are_current_within_their_request_and_nowhere_else() {
        let (outer, inner) = (Facts::new(), Facts::new());
        outer.note("id", "a");
        inner.note("id", "b");
        outer.during(|| {
            Facts::current().note_value("number", 7);
            inner.during(|| assert_eq!(shown().unwrap(), "id=b "));
            assert_eq!(shown().unwrap(), "id=a number=7 ");
        });
        assert_eq!(shown(), None);
        Facts::current().note("of", "nobody");
        assert_eq!(shown(), None);
    }

    #[test]
    fn a_fact_that_is_recorded_again_replaces_the_earlier_one() {
        let facts = Facts::new();
        facts.note("job_id", "first");
        facts.note("tenant", "acme");
        facts.note_value("job_id", 2);
        assert_eq!(facts.during(|| shown().unwrap()), "job_id=2 tenant=acme ");
    }

    #[tokio::test]
    async fn requests_that_take_turns_keep_their_facts_apart() {
        let request = async |id: &str| {
            let facts = Facts::new();
            facts.note("id", id);
            let working = async {
                tokio::task::yield_now().await;
                Facts::current().note("late", id);
                shown().unwrap()
            };
            facts.within(Box::pin(working)).await
        };
        let (first, second) = tokio::join!(request("a"), request("b"));
        assert_eq!((first.as_str(), second.as_str()), ("id=a late=a ", "id=b late=b "));
        assert_eq!(shown(), None);
    }
}
