//! A request's body on its way to the API or S3.

use dormouse_core::limits;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::{Sleep, sleep};

/// The client's body. It breaks off when it stands still while somebody wants to read: its sender would hold a
/// connection, and what has come would be kept, for nothing.
#[derive(Debug)]
pub(crate) struct RequestBody {
    incoming: Incoming,
    /// Runs out while nothing comes.
    patience: Option<Pin<Box<Sleep>>>,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The client's connection or its HTTP broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The client stopped sending.
    #[error("the request body stands still")]
    Stalled,
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        Self {
            incoming,
            patience: None,
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
            self.patience = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)));
        }
        let full = || Box::pin(sleep(limits::BODY_STALL_TIMEOUT));
        let patience = self.patience.get_or_insert_with(full);
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Some(Err(BodyError::Stalled)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
