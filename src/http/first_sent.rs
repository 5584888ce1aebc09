//! `Repeatability-First-Sent` (OASIS Repeatable Requests 1.0): refuses a retry that arrives after its idempotency key
//! has expired. The server would otherwise take it for a new request. See ADR 0025.

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

/// The allowed difference between the clocks of clients, replicas and the database.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// A request whose key may have expired.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld;

/// The time at which the client first sent the request. `None` if it does not say.
#[derive(Clone, Copy)]
pub struct FirstSent(Option<SystemTime>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidFirstSent {
    #[error("`Repeatability-First-Sent` header is sent more than once. Send it once")]
    Repeated,
    #[error(
        "the value of `Repeatability-First-Sent` is not an IMF-fixdate (RFC 9110, section 5.6.7). Send the time of the \
         first attempt in this form: Sat, 28 Nov 2026 04:00:00 GMT"
    )]
    Malformed,
    #[error(
        "the time in `Repeatability-First-Sent` is more than 60 s ahead of the server's clock. Send the time of the \
         first attempt, and check the client's clock"
    )]
    Future,
}

impl FirstSent {
    /// Moves the request's deadline to the time when its key may expire, so that the request has no effect after that.
    ///
    /// Two simpler rules would fail. If a key had to live for the whole deadline of the request, then with short-lived
    /// keys every request would be too old. If it had to live for a shorter margin and the deadline stayed as it is, a
    /// retry that waits could take effect with an expired key.
    ///
    /// # Errors
    /// [`TooOld`] if the key may have expired already.
    pub fn limit_deadline(self, request: &HttpRequest, time_to_live: Duration) -> Result<(), TooOld> {
        if let Some(left) = self.time_left(time_to_live)? {
            Deadline::limit(request, Instant::now() + left);
        }
        Ok(())
    }

    /// How long the request's key is certain to live. `None` if the client does not say when it first sent the request.
    /// The allowance for clock differences makes this time shorter, never longer.
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
        // The parser also accepts the two obsolete date formats, and a wrong day of the week.
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
    fn the_time_left_is_that_of_the_key_less_an_allowance_for_clocks() {
        let seconds = Duration::from_secs;
        assert_eq!(FirstSent(None).time_left(DAY), Ok(None));
        for (sent, time_to_live, left) in [
            (ago(Duration::ZERO), DAY, DAY - seconds(60)),
            (ago(DAY - seconds(3600)), DAY, seconds(3600 - 60)),
            (ago(seconds(8000)), seconds(20_000), seconds(20_000 - 8000 - 60)),
            // The allowance is at most a quarter of the time to live.
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
    fn only_an_imf_fixdate_that_is_not_in_the_future_is_accepted() {
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
