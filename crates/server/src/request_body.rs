//! A request's body on its way to the API or S3.

use dormouse_core::limits;
use dormouse_ingress::{BodyError, Stall};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The client's body. It breaks off when it stands still while somebody wants to read: its sender would hold a
/// connection, and what has come would be kept, for nothing.
#[derive(Debug)]
pub(crate) struct RequestBody {
    incoming: Incoming,
    stall: Stall,
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        Self {
            incoming,
            stall: Stall::new(limits::BODY_STALL_TIMEOUT),
        }
    }
}

impl From<RequestBody> for s3s::Body {
    fn from(body: RequestBody) -> Self {
        Self::http_body_unsync(body)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) {
            self.stall.moves();
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)));
        }
        ready!(self.stall.poll(context));
        Poll::Ready(Some(Err(BodyError::Stalled)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
