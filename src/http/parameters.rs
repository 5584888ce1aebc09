//! The query string. Every parameter must be known, valid and given at most once.
//!
//! Owns how a parameter is parsed and refused. The handlers decide which parameters exist and what they mean.

use std::ops::RangeInclusive;
use std::time::Duration;

use actix_web::HttpRequest;
use chrono::{DateTime, Utc};
use url::form_urlencoded;

use super::Problem;
use crate::jobs;

/// A parameter that is refused, and why.
#[derive(Debug)]
pub struct InvalidParameter {
    pub name: &'static str,
    pub why: String,
}

/// A parameter with its decoded value. `None` if it is not given.
#[derive(Clone, Debug)]
pub struct Parameter {
    name: &'static str,
    value: Option<String>,
}

pub const CURSOR: &str = "cursor";
/// The allowed page sizes.
const LIMITS: RangeInclusive<u16> = 1..=200;
const LIMIT_DEFAULT: u16 = 50;

/// The parameters of these names, in the order of `names`.
///
/// # Errors
/// If the request has a parameter that is not in `names`, or one of them twice.
pub fn parameters<const N: usize>(request: &HttpRequest, names: [&'static str; N]) -> Result<[Parameter; N], Problem> {
    let mut parameters = names.map(|name| Parameter { name, value: None });
    for (name, value) in form_urlencoded::parse(request.query_string().as_bytes()) {
        let Some(parameter) = parameters.iter_mut().find(|parameter| parameter.name == name) else {
            return Err(unknown(&name));
        };
        if parameter.value.replace(value.into_owned()).is_some() {
            return Err(parameter.refused("the parameter is sent twice; send it once"));
        }
    }
    Ok(parameters)
}

/// The problem for an unknown parameter. It shows at most 64 characters of the name.
pub fn unknown(name: &str) -> Problem {
    const SHOWN_LENGTH_MAX: usize = 64;
    Problem::UnknownParameter(name.chars().take(SHOWN_LENGTH_MAX).collect())
}

impl Parameter {
    /// # Errors
    /// If `read` does not accept the value. `expected` then tells the client what to send.
    pub fn read<T>(&self, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Problem> {
        let value = self.value.as_deref().map(|value| read(value).ok_or_else(|| self.refused(expected)));
        value.transpose()
    }

    pub fn limit(&self) -> Result<u16, Problem> {
        let expected = format!("expected an integer from {} to {}", LIMITS.start(), LIMITS.end());
        // Only the canonical spelling of the number is accepted.
        let limit = |text: &str| text.parse().ok().filter(|n: &u16| LIMITS.contains(n) && n.to_string() == text);
        Ok(self.read(&expected, limit)?.unwrap_or(LIMIT_DEFAULT))
    }

    /// A number of seconds. Zero if it is not given.
    pub fn seconds(&self, range: RangeInclusive<u16>) -> Result<Duration, Problem> {
        let expected = format!("expected an integer from {} to {}", range.start(), range.end());
        let seconds = |text: &str| text.parse().ok().filter(|n: &u16| range.contains(n) && n.to_string() == text);
        Ok(Duration::from_secs(self.read(&expected, seconds)?.unwrap_or(0).into()))
    }

    /// The name of a job type or a queue.
    pub fn name(&self) -> Result<Option<String>, Problem> {
        let name = |text: &str| jobs::is_name(text).then(|| text.to_owned());
        self.read("expected 1 to 128 visible ASCII characters without spaces", name)
    }

    pub fn moment(&self) -> Result<Option<DateTime<Utc>>, Problem> {
        let expected = self.value.as_deref().map_or("", |text| {
            // In a query, a raw + is a space.
            if jobs::moment(&text.replace(' ', "+")).is_some() {
                "a raw + in a query means a space; send the + of the offset as %2B"
            } else {
                jobs::why_no_moment(text)
            }
        });
        self.read(expected, jobs::moment)
    }

    /// The position at which a page begins, from the `Link` of the page before.
    pub fn cursor<T>(&self, read: impl FnOnce(Vec<u8>) -> Option<T>) -> Result<Option<T>, Problem> {
        let decode = |text: &str| hex::decode(text).ok().filter(|bytes| hex::encode(bytes) == text);
        self.read("expected a cursor from the `Link` header field of an earlier page", |text| read(decode(text)?))
    }

    fn refused(&self, why: &str) -> Problem {
        Problem::InvalidParameter(InvalidParameter { name: self.name, why: why.to_owned() })
    }
}

/// The `Link` to the next page (RFC 8288): the same request with another cursor.
pub fn next_page(path: &str, parameters: &[Parameter], cursor: impl AsRef<[u8]>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    let given = parameters.iter().filter(|parameter| parameter.name != CURSOR);
    query.extend_pairs(given.filter_map(|parameter| Some((parameter.name, parameter.value.as_deref()?))));
    query.append_pair(CURSOR, &hex::encode(cursor));
    format!("<{path}?{}>; rel=\"next\"", query.finish())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn read(query: &str) -> Result<[Parameter; 2], Problem> {
        parameters(&TestRequest::with_uri(&format!("/jobs?{query}")).to_http_request(), ["queue", CURSOR])
    }

    #[test]
    fn a_link_carries_every_filter_and_one_cursor() {
        let given = read("cursor=00&queue=a%26b%3D%22%3C+%2B").unwrap();
        let link = next_page("/jobs", &given, [0xab, 1]);
        assert_eq!(link, "</jobs?queue=a%26b%3D%22%3C+%2B&cursor=ab01>; rel=\"next\"");
        let [queue, cursor] = read(&link["</jobs?".len()..link.find('>').unwrap()]).unwrap();
        assert_eq!((queue.value, cursor.value), (given[0].value.clone(), Some("ab01".to_owned())));
    }

    #[test]
    fn an_unknown_parameter_is_shown_with_a_shortened_name() {
        let Err(Problem::UnknownParameter(name)) = read(&"x".repeat(1000)) else { panic!("it is unknown") };
        assert_eq!(name, "x".repeat(64));
    }

    #[test]
    fn a_number_is_accepted_only_in_its_canonical_spelling() {
        let limit = |text: &str| Parameter { name: "limit", value: Some(text.to_owned()) }.limit().ok();
        assert_eq!((limit("1"), limit("200")), (Some(1), Some(200)));
        for bad in ["0", "201", "", "+1", "01", "1.0", "1e2", "-1", "٣", " 1", "99999999999999999999"] {
            assert_eq!(limit(bad), None, "{bad}");
        }
    }
}
