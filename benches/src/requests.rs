//! The requests of clients: submissions of the same shape and length, each with a key that looks like a random UUID.

use std::net::SocketAddr;

/// The payload of the job.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// An email to send: 200 bytes of JSON.
    Mail,
    /// This many bytes of JSON, mostly words; at least 64.
    Bytes(usize),
}

impl Payload {
    /// The JSON text, with [`BLANK`] as the order's id.
    pub fn json(self) -> String {
        match self {
            Self::Mail => format!(
                r#"{{"to":"ada@example.com","template":"order-shipped","locale":"en","order":"{BLANK}","items":[{{"sku":"A-1815","quantity":12}},{{"sku":"B-1852","quantity":1}}],"total":"129.90"}}"#
            ),
            Self::Bytes(bytes) => {
                let around = Self::around("").len();
                Self::around(&words(bytes.saturating_sub(around)))
            }
        }
    }

    fn around(note: &str) -> String {
        format!(r#"{{"order":"{BLANK}","note":"{note}"}}"#)
    }
}

/// A placeholder for a UUID.
pub const BLANK: &str = "00000000-0000-0000-0000-000000000000";

/// Text that compresses about as well as natural language.
pub fn words(length: usize) -> String {
    const WORDS: [&str; 16] = [
        "parcel", "left", "the", "depot", "before", "noon", "and", "will", "arrive", "by", "train", "on", "Tuesday",
        "unless", "river", "floods",
    ];
    let mut text = String::new();
    for n in 0.. {
        if text.len() >= length {
            break;
        }
        text.push_str(WORDS[(mix(n) % 16) as usize]);
        text.push(' ');
    }
    text.truncate(length);
    text
}

/// Complete requests that differ only in their key and the order's id. Both are derived from a number.
#[derive(Clone)]
pub struct Requests {
    bytes: Vec<u8>,
    key_at: usize,
    order_at: usize,
    /// Families with different seeds share no key.
    seed: u64,
}

impl Requests {
    pub fn new(address: SocketAddr, token: &str, payload: Payload, seed: u64) -> Self {
        let body = format!(r#"{{"type":"mail.send","payload":{}}}"#, payload.json());
        let head = format!(
            "POST /jobs HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nIdempotency-Key: {BLANK}\r\n\r\n",
            body.len(),
        );
        let at = |text: &str| text.find(BLANK).expect("the template has a blank");
        let (key_at, order_at) = (at(&head), head.len() + at(&body));
        Self { bytes: [head, body].concat().into_bytes(), key_at, order_at, seed }
    }

    /// Writes the request with this number. Always the same bytes.
    pub fn write(&self, number: u64, out: &mut Vec<u8>) {
        let id = uuid(self.seed, number);
        out.clear();
        out.extend_from_slice(&self.bytes);
        for at in [self.key_at, self.order_at] {
            out[at..at + id.len()].copy_from_slice(&id);
        }
    }
}

/// The text of a UUID. It looks random, and numbers of one family never share one.
pub fn uuid(seed: u64, number: u64) -> [u8; 36] {
    // The first half is a bijection of the number, so it never repeats.
    let halves = [mix(seed ^ number), mix(mix(seed).wrapping_add(number))];
    let mut text = [b'-'; 36];
    let places = (0..36).filter(|place| ![8, 13, 18, 23].contains(place));
    let digits = halves.iter().flat_map(|half| (0..16).map(move |digit| (half >> (60 - 4 * digit)) & 0xf));
    for (place, digit) in places.zip(digits) {
        text[place] = b"0123456789abcdef"[digit as usize];
    }
    text
}

/// The mixing step of SplitMix64: a bijection without visible patterns.
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn payloads_are_json_of_the_requested_length() {
        for (payload, length) in [
            (Payload::Mail, 200),
            (Payload::Bytes(64), 64),
            (Payload::Bytes(1024), 1024),
            (Payload::Bytes(16384), 16384),
        ] {
            let json = payload.json();
            assert_eq!(json.len(), length);
            serde_json::from_str::<serde_json::Value>(&json).unwrap();
        }
    }

    #[test]
    fn every_number_has_its_own_constant_key() {
        let requests = |seed| Requests::new(SocketAddr::from(([127, 0, 0, 1], 80)), "hpx_x", Payload::Mail, seed);
        let write = |requests: &Requests, number| {
            let mut out = Vec::new();
            requests.write(number, &mut out);
            String::from_utf8(out).unwrap()
        };
        let all: BTreeSet<String> = [1, 2]
            .into_iter()
            .flat_map(|seed| (0..1000).map(move |n| (seed, n)))
            .map(|(seed, n)| write(&requests(seed), n))
            .collect();
        assert_eq!(all.len(), 2000);
        assert!(!all.iter().any(|text| text.contains(BLANK)), "all blanks are filled in");
        assert_eq!(write(&requests(1), 7), write(&requests(1), 7));
    }
}
