//! One request and all that comes of it: what it takes part in while it lasts, and the line in the
//! access log and the counts at its end.
//!
//! Whoever still has to do with the exchange holds it: the body on its way in, the one on its way out,
//! the task that copies a switched connection. When the last lets go, it is over.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use dormouse_core::{EndpointId, limits};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tracing::Span;

use crate::Visit;
use crate::connections::{Busy, Rest};
use crate::metrics::Sums;
use crate::refusal::Refusal;
use crate::traffic::{Turn, Vm};

/// The target of the access log's lines.
pub const ACCESS_LOG: &str = "dormouse::access";

/// Names the trace that a request belongs to (W3C Trace Context).
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// What is known of an exchange. Times are from step to step.
pub(crate) struct Exchange {
    begun: Instant,
    request_id: HeaderValue,
    trace_id: Option<String>,
    method: Method,
    path: String,
    version: Version,
    sums: Arc<Sums>,
    busy: Busy,
    destination: OnceLock<Destination>,
    visit: Mutex<Option<Arc<dyn Visit>>>,
    wake: OnceLock<Duration>,
    connect: OnceLock<Duration>,
    first_byte: OnceLock<Duration>,
    refusal: OnceLock<Refusal>,
    /// Zero until there is one.
    status: AtomicU16,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Whether the answer came to its end.
    complete: AtomicBool,
}

/// Where an exchange goes, once it is admitted.
struct Destination {
    endpoint: EndpointId,
    /// None for a shell.
    port: Option<u16>,
    vm: Option<Arc<Vm>>,
    turn: OnceLock<Turn>,
}

impl Exchange {
    pub(crate) fn begin(
        request: &Parts,
        request_id: &HeaderValue,
        sums: Arc<Sums>,
        busy: Busy,
    ) -> Self {
        Self {
            begun: Instant::now(),
            request_id: request_id.clone(),
            trace_id: trace_id(&request.headers).map(str::to_owned),
            method: request.method.clone(),
            path: bounded(request.uri.path()).to_owned(),
            version: request.version,
            sums,
            busy,
            destination: OnceLock::new(),
            visit: Mutex::default(),
            wake: OnceLock::new(),
            connect: OnceLock::new(),
            first_byte: OnceLock::new(),
            refusal: OnceLock::new(),
            status: AtomicU16::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            complete: AtomicBool::new(false),
        }
    }

    fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The token lets it pass, to a MicroVM if there is one.
    pub(crate) fn admitted(&self, endpoint: &EndpointId, port: Option<u16>, vm: Option<Arc<Vm>>) {
        let destination = Destination {
            endpoint: *endpoint,
            port,
            vm,
            turn: OnceLock::new(),
        };
        let _ = self.destination.set(destination);
    }

    /// It has its turn, and keeps it to its end.
    pub(crate) fn has_turn(&self, turn: Turn) {
        if let Some(destination) = self.destination.get() {
            let _ = destination.turn.set(turn);
        }
    }

    /// It is let in: the MicroVM has a request in flight until the exchange is over.
    pub(crate) fn visits(&self, visit: Arc<dyn Visit>) {
        let mut place = self.visit.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(visit);
    }

    /// Its MicroVM, which slept, is awake.
    pub(crate) fn woken(&self) {
        let after = self.begun.elapsed();
        self.sums.wake.observe(after.as_secs_f64());
        let _ = self.wake.set(after);
    }

    /// There is a way to the app; making it took so long.
    pub(crate) fn connected(&self, took: Duration) {
        self.sums.connect.observe(took.as_secs_f64());
        let _ = self.connect.set(took);
    }

    /// The head of the app's answer is here, `after` the request went out.
    pub(crate) fn first_byte(&self, after: Duration) {
        self.sums.first_byte.observe(after.as_secs_f64());
        let _ = self.first_byte.set(after);
    }

    /// What is left of it is the refusal's few words, for which no connection has to stay.
    pub(crate) fn refused(&self, refusal: Refusal) {
        self.busy.end();
        let _ = self.refusal.set(refusal);
    }

    pub(crate) fn answered(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// Nobody wants the rest of its body, which still comes.
    pub(crate) fn rest(&self) -> Rest {
        self.busy.rest()
    }

    pub(crate) fn received(&self, length: usize) {
        self.bytes_in.fetch_add(length as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, length: usize) {
        self.bytes_out.fetch_add(length as u64, Ordering::Relaxed);
    }

    /// Nothing is missing of the answer.
    pub(crate) fn completed(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    /// A span for one step, by which its events are found again.
    pub(crate) fn step(&self, step: &'static str) -> Span {
        tracing::debug_span!(
            target: "dormouse::exchange",
            "exchange",
            step,
            request_id = self.request_id(),
            trace_id = self.trace_id,
        )
    }

    fn count(&self, status: u16, duration: Duration) {
        self.sums.duration.observe(duration.as_secs_f64());
        let refusal = self.refusal.get();
        if let Some(refusal) = refusal {
            self.sums.refused(*refusal);
        }
        let vm = self.destination.get().and_then(|to| to.vm.as_ref());
        if let (Some(vm), Some(_)) = (vm, refusal) {
            vm.counters.refused.inc();
        }
        if let Ok(status) = StatusCode::from_u16(status) {
            self.sums.all.answered(status);
            if let Some(vm) = vm {
                vm.counters.answered(status);
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let duration = self.begun.elapsed();
        let status = *self.status.get_mut();
        self.count(status, duration);
        let to = self.destination.get();
        let us = |time: Option<&Duration>| time.map(|time| micros(*time));
        // No header, no query and no body: they hold tokens and what is nobody's business. Text is
        // recorded as text, so that each format escapes it.
        tracing::info!(
            target: ACCESS_LOG,
            request_id = self.request_id(),
            trace_id = self.trace_id,
            endpoint = to.map(|to| to.endpoint.to_string()),
            microvm = to.and_then(|to| to.vm.as_ref()).map(|vm| vm.microvm.as_str()),
            port = to.and_then(|to| to.port),
            protocol = protocol(self.version),
            method = self.method.as_str(),
            path = self.path,
            status = (status != 0).then_some(status),
            refusal = self.refusal.get().map(|refusal| refusal.name()),
            complete = self.complete.load(Ordering::Relaxed),
            bytes_in = self.bytes_in.load(Ordering::Relaxed),
            bytes_out = self.bytes_out.load(Ordering::Relaxed),
            duration_us = micros(duration),
            wake_us = us(self.wake.get()),
            connect_us = us(self.connect.get()),
            first_byte_us = us(self.first_byte.get()),
            "request"
        );
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// As much of a path as the log takes.
fn bounded(path: &str) -> &str {
    &path[..path.floor_char_boundary(limits::LOGGED_PATH_BYTES_MAX)]
}

/// The trace that a client says its request belongs to: 32 hexadecimal digits.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(TRACE_PARENT)?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, id) = (parts.next()?, parts.next()?);
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let valid = version.len() == 2
        && hex(version)
        && version != "ff"
        && id.len() == 32
        && hex(id)
        && id.bytes().any(|b| b != b'0');
    valid.then_some(id)
}

/// A holder's part of an exchange: whether the client has something to take from it.
struct Delivery {
    exchange: Arc<Exchange>,
    offers: bool,
}

impl Delivery {
    fn new(exchange: Arc<Exchange>) -> Self {
        Self {
            exchange,
            offers: false,
        }
    }

    fn set_offers(&mut self, offers: bool) {
        if std::mem::replace(&mut self.offers, offers) == offers {
            return;
        }
        if offers {
            self.exchange.busy.offered();
        } else {
            self.exchange.busy.taken();
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.set_offers(false);
    }
}

/// An answer's body, which the exchange lasts as long as.
pub(crate) struct Measured<B> {
    body: B,
    delivery: Delivery,
}

impl<B: Body> Measured<B> {
    pub(crate) fn new(body: B, exchange: Arc<Exchange>) -> Self {
        if body.is_end_stream() {
            exchange.completed();
        }
        let mut delivery = Delivery::new(exchange);
        // The head.
        delivery.set_offers(true);
        Self { body, delivery }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Measured<B> {
    type Data = Bytes;
    type Error = B::Error;

    /// Is asked for more when the client has room for it.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, delivery } = &mut *self;
        delivery.set_offers(false);
        let frame = ready!(Pin::new(&mut *body).poll_frame(context));
        delivery.set_offers(true);
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                delivery.exchange.sent(length);
                // Whoever knows the length may not ask again.
                if body.is_end_stream() {
                    delivery.exchange.completed();
                }
            }
            Some(Err(_)) => {}
            None => delivery.exchange.completed(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The client's side of a switched connection.
pub(crate) struct MeasuredStream<S> {
    stream: S,
    delivery: Delivery,
}

impl<S> MeasuredStream<S> {
    pub(crate) fn new(stream: S, exchange: Arc<Exchange>) -> Self {
        Self {
            stream,
            delivery: Delivery::new(exchange),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MeasuredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let received = buffer.filled().len() - before;
        self.delivery.exchange.received(received);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MeasuredStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.delivery.set_offers(written.is_pending());
        let length = ready!(written)?;
        self.delivery.exchange.sent(length);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_trace_is_known_by_its_id_and_by_nothing_else() {
        let parse = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACE_PARENT, HeaderValue::from_static(text));
            trace_id(&headers).map(str::to_owned)
        };
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(parse(good).as_deref(), Some(id));
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47\"}-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(trace_id(&HeaderMap::new()), None);
    }

    #[test]
    fn a_long_path_is_cut_between_characters() {
        let long = format!("/{}", "\u{20ac}".repeat(1000));
        let cut = bounded(&long);
        assert!(cut.len() <= limits::LOGGED_PATH_BYTES_MAX && cut.len() > 250);
        assert!(long.starts_with(cut));
        assert_eq!(bounded("/short"), "/short");
    }
}
