//! The context of a request: the named fields that are known so far. Every log line of the request shows them.
//!
//! This is not a span of `tracing`. Spans nest, move between threads and pass each field through a registry and every
//! layer. A request is served on one thread and has one context, so recording a field is one copy.

use std::cell::RefCell;
use std::fmt::{Display, Write};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The named fields of a request, in the order in which they became known. A clone shares the same fields.
#[derive(Clone, Default)]
pub struct RequestContext(Rc<RefCell<Fields>>);

#[derive(Default)]
struct Fields {
    /// Each name with the range of its value in `values`.
    names: Vec<(&'static str, Range<usize>)>,
    values: String,
}

/// A future that is polled with a request's context as the current one.
pub struct InContext<F> {
    context: RequestContext,
    future: F,
}

/// Makes a context the current one until it is dropped. Then the previous one is current again.
struct Entered(Option<RequestContext>);

/// What a request with an idempotency key usually needs: this many fields, and this many bytes for their values.
const FIELDS: usize = 12;
const VALUES_LENGTH: usize = 320;

thread_local! {
    static CURRENT: RefCell<Option<RequestContext>> = const { RefCell::new(None) };
}

impl RequestContext {
    pub fn new() -> Self {
        let fields = Fields { names: Vec::with_capacity(FIELDS), values: String::with_capacity(VALUES_LENGTH) };
        Self(Rc::new(RefCell::new(fields)))
    }

    /// The context of the request that is being served. Outside of a request, an empty context that no log line shows.
    pub fn current() -> Self {
        CURRENT.with_borrow(|current| current.clone().unwrap_or_default())
    }

    /// Records a field. A later value of the same name replaces the earlier one, so a log line has each member once.
    pub fn record(&self, name: &'static str, value: &str) {
        self.append(name, |values| values.push_str(value));
    }

    /// Records a field whose value is not a string yet.
    pub fn record_value(&self, name: &'static str, value: impl Display) {
        self.append(name, |values| write!(values, "{value}").expect("writing to a string cannot fail"));
    }

    fn append(&self, name: &'static str, append: impl FnOnce(&mut String)) {
        let fields = &mut *self.0.borrow_mut();
        let start = fields.values.len();
        append(&mut fields.values);
        let place = start..fields.values.len();
        match fields.names.iter_mut().find(|(known, _)| *known == name) {
            Some((_, earlier)) => *earlier = place,
            None => fields.names.push((name, place)),
        }
    }

    /// Makes this the current context whenever the future is polled.
    pub fn instrument<F: Future + Unpin>(&self, future: F) -> InContext<F> {
        InContext { context: self.clone(), future }
    }

    /// Makes this the current context while a closure runs.
    pub fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.enter();
        work()
    }

    fn enter(&self) -> Entered {
        Entered(CURRENT.replace(Some(self.clone())))
    }
}

/// Calls `each` with every field of the current context. Returns `false` outside of a request.
pub fn show(mut each: impl FnMut(&'static str, &str)) -> bool {
    CURRENT.with_borrow(|current| {
        let Some(RequestContext(fields)) = current else { return false };
        let fields = fields.borrow();
        for (name, place) in &fields.names {
            each(name, &fields.values[place.clone()]);
        }
        true
    })
}

impl<F: Future + Unpin> Future for InContext<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { context, future } = &mut *self;
        let _entered = context.enter();
        Pin::new(future).poll(cx)
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
    fn a_context_is_current_in_its_request_and_nowhere_else() {
        let (outer, inner) = (RequestContext::new(), RequestContext::new());
        outer.record("id", "a");
        inner.record("id", "b");
        outer.in_scope(|| {
            RequestContext::current().record_value("number", 7);
            inner.in_scope(|| assert_eq!(shown().unwrap(), "id=b "));
            assert_eq!(shown().unwrap(), "id=a number=7 ");
        });
        assert_eq!(shown(), None);
        RequestContext::current().record("no", "request");
        assert_eq!(shown(), None);
    }

    #[test]
    fn a_field_that_is_recorded_again_replaces_the_earlier_value() {
        let context = RequestContext::new();
        context.record("job_id", "first");
        context.record("tenant", "acme");
        context.record_value("job_id", 2);
        assert_eq!(context.in_scope(|| shown().unwrap()), "job_id=2 tenant=acme ");
    }

    #[tokio::test]
    async fn requests_that_take_turns_keep_their_contexts_apart() {
        let request = async |id: &str| {
            let context = RequestContext::new();
            context.record("id", id);
            let working = async {
                tokio::task::yield_now().await;
                RequestContext::current().record("late", id);
                shown().unwrap()
            };
            context.instrument(Box::pin(working)).await
        };
        let (first, second) = tokio::join!(request("a"), request("b"));
        assert_eq!((first.as_str(), second.as_str()), ("id=a late=a ", "id=b late=b "));
        assert_eq!(shown(), None);
    }
}
