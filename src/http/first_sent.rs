//! `Repeatability-First-Sent` (OASIS Repeatable Requests 1.0): a guard against a copy that arrives after its key has
//! expired, and would be taken for a new request. See ADR 0025.

use std::future::{Ready, ready};
use std::time::{Duration, SystemTime};

use actix_web::dev::Payload;
use actix_web::http::header::HeaderName;
use actix_web::{FromRequest, HttpRequest};
use thiserror::Error;
use tokio::time::Instant;

use super::Problem;
use super::extractors::Deadline;

const FIRST_SENT: HeaderName = HeaderName::from_static("repeatability-first-sent");

/// By how much the clocks of clients, replicas and the database may differ.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// A request whose key may have expired.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld;

/// When the client has first sent a request, if it says so.
#[derive(Clone, Copy)]
pub struct FirstSent(Option<SystemTime>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidFirstSent {
    #[error("the Repeatability-First-Sent header is sent more than once")]
    Repeated,
    #[error("the value is not an IMF-fixdate (RFC 9110, section 5.6.7), such as Sat, 28 Nov 2026 04:00:00 GMT")]
    Malformed,
    #[error("the time is more than 60 s ahead of this server's clock")]
    Future,
}

impl FirstSent {
    /// Brings the deadline of a request forward to the moment when its key may expire, so that it is not carried out after
    /// that.
    ///
    /// Not a margin of the whole deadline: with keys that live no longer than a request may take, every request would be
    /// too old. And not a smaller margin without a new deadline: a copy that waits could be carried out with an expired key.
    ///
    /// # Errors
    /// [`TooOld`] if no time is left.
    pub fn limit_deadline(self, request: &HttpRequest, time_to_live: Duration) -> Result<(), TooOld> {
        if let Some(left) = self.time_left(time_to_live)? {
            Deadline::limit(request, Instant::now() + left);
        }
        Ok(())
    }

    /// How long the key of the request lives for certain; `None` if the client does not say when it has first sent it. The
    /// allowance for clocks that differ makes that somewhat shorter, never longer.
    fn time_left(self, time_to_live: Duration) -> Result<Option<Duration>, TooOld> {
        let Some(first_sent) = self.0 else { return Ok(None) };
        let allowance = CLOCK_TOLERANCE.min(time_to_live / 4);
        match (first_sent + (time_to_live - allowance)).duration_since(SystemTime::now()) {
            Ok(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(TooOld),
        }
    }

    fn read<'a>(mut lines: impl Iterator<Item = &'a [u8]>, now: SystemTime) -> Result<Self, InvalidFirstSent> {
        let Some(line) = lines.next() else { return Ok(Self(None)) };
        if lines.next().is_some() {
            return Err(InvalidFirstSent::Repeated);
        }
        let text = str::from_utf8(line).map_err(|_| InvalidFirstSent::Malformed)?.trim_matches([' ', '\t']);
        // The parser takes the two obsolete forms of a date, too, and any day of the week.
        let time = httpdate::parse_http_date(text).ok().filter(|time| httpdate::fmt_http_date(*time) == text);
        let time = time.ok_or(InvalidFirstSent::Malformed)?;
        if time > now + CLOCK_TOLERANCE {
            return Err(InvalidFirstSent::Future);
        }
        Ok(Self(Some(time)))
    }
}

impl FromRequest for FirstSent {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let lines = request.headers().get_all(FIRST_SENT).map(|line| line.as_bytes());
        ready(Self::read(lines, SystemTime::now()).map_err(Problem::InvalidFirstSent))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::HttpMessage;
    use actix_web::test::TestRequest;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn ago(time: Duration) -> FirstSent {
        FirstSent(Some(SystemTime::now() - time))
    }

    #[test]
    fn a_request_has_as_much_time_as_its_key_lives_less_an_allowance_for_clocks() {
        let seconds = Duration::from_secs;
        assert_eq!(FirstSent(None).time_left(DAY), Ok(None));
        for (sent, time_to_live, left) in [
            (ago(Duration::ZERO), DAY, DAY - seconds(60)),
            (ago(DAY - seconds(3600)), DAY, seconds(3600 - 60)),
            (ago(seconds(8000)), seconds(20_000), seconds(20_000 - 8000 - 60)),
            // A short life is not used up by the allowance.
            (ago(seconds(5)), seconds(200), seconds(200 - 5 - 50)),
        ] {
            let found = sent.time_left(time_to_live).unwrap().unwrap();
            assert!(found <= left && found > left / 2, "{found:?} of {left:?}");
        }
        assert_eq!(ago(DAY - seconds(60)).time_left(DAY), Err(TooOld));
        assert_eq!(ago(seconds(6)).time_left(seconds(8)), Err(TooOld));
    }

    #[actix_web::test]
    async fn a_request_whose_key_soon_expires_has_a_nearer_deadline() {
        let request = TestRequest::default().to_http_request();
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        request.extensions_mut().insert(Deadline(now + hour));
        ago(Duration::ZERO).limit_deadline(&request, DAY).unwrap();
        assert_eq!(Deadline::of(&request), now + hour);
        ago(DAY - hour).limit_deadline(&request, DAY).unwrap();
        assert!(Deadline::of(&request) < now + hour);
    }

    #[test]
    fn only_a_date_in_its_one_form_that_is_not_in_the_future_is_taken() {
        let now = httpdate::parse_http_date("Sat, 28 Nov 2026 04:00:00 GMT").unwrap();
        let read = |lines: &[&str]| FirstSent::read(lines.iter().map(|line| line.as_bytes()), now).map(|read| read.0);
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["Sat, 28 Nov 2026 03:59:59 GMT"]), Ok(Some(now - Duration::from_secs(1))));
        assert_eq!(read(&["Sat, 28 Nov 2026 04:01:00 GMT"]), Ok(Some(now + CLOCK_TOLERANCE)));
        assert_eq!(read(&["Sat, 28 Nov 2026 04:01:01 GMT"]), Err(InvalidFirstSent::Future));
        assert_eq!(read(&["Sat, 28 Nov 2026 03:59:59 GMT"; 2]), Err(InvalidFirstSent::Repeated));
        for bad in [
            "",
            "Fri, 28 Nov 2026 03:00:00 GMT",
            "Saturday, 28-Nov-26 03:00:00 GMT",
            "Sat Nov 28 03:00:00 2026",
            "Sat, 28 Nov 2026 03:00:60 GMT",
            "Sat, 28 Nov 2026 03:00:00 UTC",
            "2026-11-28T03:00:00Z",
        ] {
            assert_eq!(read(&[bad]), Err(InvalidFirstSent::Malformed), "{bad}");
        }
    }
}
