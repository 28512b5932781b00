//! A request's body on its way to the app.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use dormouse_core::limits;
use http::header;
use http::request::Parts;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::Visit;
use crate::headers;
use crate::tasks::Tasks;

/// The client's body, with an end that is kind to clients.
///
/// Many a client writes its whole body before it looks for an answer. If the connection closes or the
/// stream is reset under it, the answer is lost. So a body that nobody wants, because the request was
/// refused or the app answered early, is still read for a while; what is read is dropped.
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    /// Whether the client writes by now. One that waits for `100 Continue` does not, and reading
    /// asks it to.
    begun: bool,
    /// Where the rest is read.
    tasks: Tasks,
    /// The stay of which this body is a part.
    visit: Option<Arc<dyn Visit>>,
}

impl RequestBody {
    pub(crate) fn new(request: &Parts, incoming: Incoming, tasks: &Tasks) -> Self {
        Self {
            incoming: Some(incoming),
            begun: !request.headers.contains_key(header::EXPECT),
            tasks: tasks.clone(),
            visit: None,
        }
    }

    pub(crate) fn empty(tasks: &Tasks) -> Self {
        Self {
            incoming: None,
            begun: true,
            tasks: tasks.clone(),
            visit: None,
        }
    }

    /// Makes the body part of `visit`: while it goes on there is a request in flight.
    pub(crate) fn stay(&mut self, visit: Arc<dyn Visit>) {
        self.visit = Some(visit);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.begun = true;
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(incoming).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.incoming = None;
        }
        polled.map_ok(without_platform)
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
            let discarded = timeout(limits::UNREAD_BODY_TIMEOUT, discard(incoming));
            self.tasks.spawn(discarded);
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
