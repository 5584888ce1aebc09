//! An answer's body on its way out.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::{HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use serde::Serialize;

use super::body::Leftover;
use super::body_memory::HeldBytes;
use super::connection::Busy;

/// How much of a body is handed to the connection at once. The framework copies a whole piece into the connection's write
/// buffer, and keeps it there until the client has taken it.
pub const PIECE_BYTES: usize = 16 * 1024;

/// A JSON text as a body, with a newline at its end for whoever reads it at a terminal.
pub fn json(response: &mut HttpResponseBuilder, value: &impl Serialize) -> HttpResponse {
    let mut text = serde_json::to_vec(value).expect("an answer's members all have a JSON form");
    text.push(b'\n');
    response.content_type("application/json").body(text)
}

/// A body that leaves in pieces, and what has to live until it has left.
struct Outgoing {
    body: BoxBody,
    /// What is left of the part that `body` gave last.
    rest: Bytes,
    /// The rest of a request whose body has not arrived in full. While it lives, the framework does not read a chunked
    /// body to its end, however long that is, but closes the connection behind this answer.
    _unread: Option<Leftover>,
    /// The memory that the body takes, from its tenant's share.
    _held: Option<HeldBytes>,
    /// No other request is started before this body has left.
    _busy: Option<Busy>,
}

/// Lets a body leave in pieces if it is large, or if something has to live as long as it does.
pub fn in_pieces(
    response: ServiceResponse<BoxBody>,
    unread: Option<Leftover>,
    held: Option<HeldBytes>,
    busy: Option<Busy>,
) -> ServiceResponse<BoxBody> {
    if !is_large(response.response().body()) && unread.is_none() {
        return response;
    }
    response.map_body(|_, body| {
        BoxBody::new(Outgoing { body, rest: Bytes::new(), _unread: unread, _held: held, _busy: busy })
    })
}

/// Whether a body is more than one piece.
pub fn is_large(body: &BoxBody) -> bool {
    match body.size() {
        BodySize::Sized(bytes) => bytes > PIECE_BYTES as u64,
        BodySize::Stream => true,
        BodySize::None => false,
    }
}

impl MessageBody for Outgoing {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Box<dyn std::error::Error>>>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(context)) {
                Some(Ok(part)) => self.rest = part,
                ended => return Poll::Ready(ended),
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(self.rest.split_to(piece))))
    }
}
