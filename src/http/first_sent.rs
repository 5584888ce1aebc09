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

const FIRST_SENT: HeaderName = HeaderName::from_static("repeatability-first-sent");

/// By how much the clocks of clients, replicas and the database may differ.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

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
    /// Whether the key of the request may have expired by `deadline`, by when this copy is carried out at the latest. The
    /// allowance for clocks that differ makes it too old somewhat early, never late.
    pub fn is_too_old(self, time_to_live: Duration, deadline: Instant) -> bool {
        let Some(first_sent) = self.0 else { return false };
        let allowance = CLOCK_TOLERANCE.min(time_to_live / 4);
        let carried_out = SystemTime::now() + deadline.saturating_duration_since(Instant::now());
        first_sent + time_to_live <= carried_out + allowance
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
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn ago(time: Duration) -> FirstSent {
        FirstSent(Some(SystemTime::now() - time))
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_too_old_when_its_key_may_have_expired_by_its_deadline() {
        let in_ten_seconds = Instant::now() + Duration::from_secs(10);
        let too_old = |first_sent: FirstSent, time_to_live| first_sent.is_too_old(time_to_live, in_ten_seconds);
        let seconds = Duration::from_secs;
        assert!(!too_old(FirstSent(None), DAY));
        assert!(!too_old(ago(Duration::ZERO), DAY));
        // A day, less a minute for the clocks and ten seconds for the deadline.
        assert!(!too_old(ago(DAY - seconds(72)), DAY) && too_old(ago(DAY - seconds(70)), DAY));
        // A short life is not used up by the allowance.
        assert!(!too_old(ago(seconds(15)), seconds(40)) && too_old(ago(seconds(20)), seconds(40)));
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
