//! The text of a notification: the sender, then events with their counts, in hexadecimal.

use super::Event;

/// Tells the notifications of one replica from those of the others. Made at random when the replica starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender(pub [u8; Sender::LENGTH]);

impl Sender {
    const LENGTH: usize = 8;
}

/// An event and how often it happened, up to 255.
pub type Counted = (Event, u8);

/// PostgreSQL refuses a payload of 8000 bytes.
const TEXT_MAX: usize = 7999;
const COUNTED_LENGTH: usize = Event::LENGTH + 1;
/// 443.
const EVENTS_MAX: usize = (TEXT_MAX / 2 - Sender::LENGTH) / COUNTED_LENGTH;

/// As few payloads as hold all events.
pub fn encode(sender: Sender, events: &[Counted]) -> Vec<String> {
    let payload = |events: &[Counted]| {
        let mut bytes = sender.0.to_vec();
        for (event, count) in events {
            bytes.extend(event.0);
            bytes.push(*count);
        }
        hex::encode(bytes)
    };
    events.chunks(EVENTS_MAX).map(payload).collect()
}

/// `None` if it is not a payload of Hapax. Any program with access to the database can send one.
pub fn decode(payload: &str) -> Option<(Sender, Vec<Counted>)> {
    let bytes = hex::decode(payload).ok()?;
    let (sender, events) = bytes.split_first_chunk()?;
    let (events, rest) = events.as_chunks::<COUNTED_LENGTH>();
    if !rest.is_empty() {
        return None;
    }
    let counted = |[hash @ .., count]: &[u8; COUNTED_LENGTH]| (Event(*hash), *count);
    Some((Sender(*sender), events.iter().map(counted).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: Sender = Sender([0xab; 8]);

    #[test]
    fn events_arrive_with_their_counts_in_payloads_that_postgresql_accepts() {
        for (events, payloads) in [(0_u64, 0), (1, 1), (443, 1), (444, 2), (2048, 5)] {
            let sent: Vec<_> = (0..events).map(|n| (Event(n.to_be_bytes()), u8::try_from(n % 256).unwrap())).collect();
            let encoded = encode(SENDER, &sent);
            assert_eq!(encoded.len(), payloads);
            assert!(encoded.iter().all(|payload| payload.len() < 8000));
            let (senders, received): (Vec<_>, Vec<_>) = encoded.iter().map(|payload| decode(payload).unwrap()).unzip();
            assert!(senders.iter().all(|sender| *sender == SENDER));
            assert_eq!(received.concat(), sent);
        }
    }

    #[test]
    fn another_text_is_not_a_payload() {
        for text in ["", "ab", "abababababababa", "hello", "abababababababab00", "abababababababab\u{e9}"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
