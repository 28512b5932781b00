//! A request's body on its way to the app.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use dormouse_core::limits;
use http::header;
use http::request::Parts;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::exchange::Exchange;
use crate::headers;
use crate::stall::{BodyError, Stall};
use crate::tasks::Tasks;

/// The client's body, with an end that is kind to clients.
///
/// Many a client writes its whole body before it looks for an answer. If the connection closes or the
/// stream is reset under it, the answer is lost. So a body that nobody wants, because the request was
/// refused or the app answered early, is still read for a while; what is read is dropped.
///
/// A body of a stated length is an upload, and one that stands still while it is wanted breaks off: its
/// sender would hold a place in the MicroVM for nothing. Where no length is stated, the body may be one
/// half of a conversation, such as gRPC's, and silence is part of it. While the app does not read,
/// nothing is wanted, and no time runs.
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    /// Whether the client writes by now. One that waits for `100 Continue` does not, and reading
    /// asks it to.
    begun: bool,
    /// Where the rest is read.
    tasks: Tasks,
    exchange: Arc<Exchange>,
    stall: Stall,
    /// Of the connection to the app, if it has room for one body only.
    room: Option<OwnedSemaphorePermit>,
}

impl RequestBody {
    pub(crate) fn new(
        request: &Parts,
        incoming: Incoming,
        tasks: &Tasks,
        exchange: Arc<Exchange>,
        stall_timeout: Duration,
    ) -> Self {
        Self {
            incoming: Some(incoming),
            begun: !request.headers.contains_key(header::EXPECT),
            tasks: tasks.clone(),
            exchange,
            stall: Stall::new(stall_timeout),
            room: None,
        }
    }

    /// A body of the same exchange that has nothing in it.
    pub(crate) fn emptied(&self) -> Self {
        Self {
            incoming: None,
            begun: true,
            tasks: self.tasks.clone(),
            exchange: Arc::clone(&self.exchange),
            stall: self.stall.anew(),
            room: None,
        }
    }

    /// Keeps the room that it has on a connection until it is over.
    pub(crate) fn occupy(&mut self, room: OwnedSemaphorePermit) {
        self.room = Some(room);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.begun = true;
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(context) else {
            if incoming.size_hint().exact().is_none() {
                return Poll::Pending;
            }
            ready!(self.stall.poll(context));
            self.incoming = None;
            return Poll::Ready(Some(Err(BodyError::Stalled)));
        };
        self.stall.moves();
        match &frame {
            Some(Ok(frame)) => self
                .exchange
                .received(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) | None => self.incoming = None,
        }
        Poll::Ready(frame.map(|frame| frame.map(without_platform).map_err(BodyError::Broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.begun || self.is_end_stream() {
            return;
        }
        if let Some(incoming) = self.incoming.take() {
            let rest = self.exchange.rest();
            self.tasks.spawn(async move {
                let _rest = rest;
                timeout(limits::UNREAD_BODY_TIMEOUT, discard(incoming)).await
            });
        }
    }
}

/// Trailers are headers, too.
fn without_platform(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(headers::trailers_for_app(trailers)),
        Err(frame) => frame,
    }
}

async fn discard(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}
