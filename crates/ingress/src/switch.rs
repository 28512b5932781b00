//! Connections that go on with another protocol: the asking, the switch, and the bytes from then on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use dormouse_core::limits;
use http::request::Parts;
use http::{HeaderValue, Method, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::exchange::{Exchange, MeasuredStream};
use crate::frames::{self, Frames};
use crate::headers;
use crate::refusal::Refusal;
use crate::upstream::Connection;

const WEBSOCKET: &str = "websocket";
/// The server, or what is behind it, goes away (RFC 6455, section 7.4.1).
const GOING_AWAY: u16 = 1001;

/// How a client asks to go on with another protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// HTTP/1.1's `Upgrade`, and what it names.
    Upgrade(HeaderValue),
    /// A WebSocket on a stream of HTTP/2 (RFC 8441).
    Stream,
}

impl Ask {
    /// What `request` asks for, if anything. `CONNECT` to elsewhere is refused: an endpoint is an origin.
    pub(crate) fn of(request: &Parts) -> Result<Option<Self>, Refusal> {
        if request.method == Method::CONNECT {
            return match request.extensions.get::<hyper::ext::Protocol>() {
                Some(protocol) if protocol.as_str() == WEBSOCKET => Ok(Some(Self::Stream)),
                Some(_) => Err(Refusal::UnknownProtocol),
                None => Err(Refusal::Connect),
            };
        }
        if request.version != Version::HTTP_11 {
            return Ok(None);
        }
        Ok(headers::upgrade(&request.headers).map(Self::Upgrade))
    }

    pub(crate) fn is_websocket(&self) -> bool {
        match self {
            Self::Upgrade(protocol) => is_websocket(protocol),
            Self::Stream => true,
        }
    }

    /// The protocol as an `Upgrade` header names it.
    pub(crate) fn protocol(&self) -> HeaderValue {
        match self {
            Self::Upgrade(protocol) => protocol.clone(),
            Self::Stream => HeaderValue::from_static(WEBSOCKET),
        }
    }
}

/// Whether an `Upgrade` header names WebSocket, among others maybe.
pub(crate) fn is_websocket(protocol: &HeaderValue) -> bool {
    let names = protocol.as_bytes().split(|byte| *byte == b',');
    names
        .map(<[u8]>::trim_ascii)
        .any(|name| name.eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
}

/// Copies between client and app until both have closed, or one has failed. `connection` is the app's, which has to
/// stay until it is switched.
pub(crate) async fn join(
    client: OnUpgrade,
    app: OnUpgrade,
    connection: Option<Connection>,
    websocket: bool,
    exchange: Arc<Exchange>,
) {
    let switched = tokio::try_join!(client, app);
    drop(connection);
    let (client, app) = match switched {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "the protocol was not switched");
            return;
        }
    };
    let mut client = MeasuredStream::new(TokioIo::new(client), exchange);
    let mut app = TokioIo::new(app);
    let copied = if websocket {
        let mut app = Parting::new(app);
        let parted = app.parted.clone();
        tokio::select! {
            copied = copy_bidirectional(&mut client, &mut app) => copied,
            error = overtime(parted) => Err(error),
        }
    } else {
        copy_bidirectional(&mut client, &mut app).await
    };
    if let Err(error) = copied {
        tracing::debug!(%error, "a switched connection broke");
    }
}

/// Waits as long as a client has to close its side after it was told that the app is gone.
async fn overtime(parted: CancellationToken) -> io::Error {
    parted.cancelled().await;
    sleep(limits::WEBSOCKET_CLOSE_TIMEOUT).await;
    io::ErrorKind::TimedOut.into()
}

/// The app's side of a WebSocket, which ends well where it can.
///
/// A tunnel breaks when its MicroVM falls asleep or ends. Between two frames the client can still be told: it
/// reads a close frame and an end. Amid a frame there is no room for it, and the break is a break.
struct Parting<T> {
    app: T,
    frames: Frames,
    /// What is left to tell the client, once the tunnel has broken.
    farewell: Bytes,
    parted: CancellationToken,
}

impl<T> Parting<T> {
    fn new(app: T) -> Self {
        Self {
            app,
            frames: Frames::default(),
            farewell: Bytes::new(),
            parted: CancellationToken::new(),
        }
    }

    fn part(&mut self) {
        if !self.frames.closing() {
            self.farewell = frames::close(GOING_AWAY, "the MicroVM went away").into();
        }
        self.parted.cancel();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Parting<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.parted.is_cancelled() {
            let begin = buffer.filled().len();
            match ready!(Pin::new(&mut self.app).poll_read(context, buffer)) {
                Ok(()) => {
                    self.frames.pass(&buffer.filled()[begin..]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if self.frames.between() => {
                    tracing::debug!(%error, "a websocket's app is gone");
                    self.part();
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let length = self.farewell.len().min(buffer.remaining());
        buffer.put_slice(&self.farewell.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Parting<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.parted.is_cancelled() {
            // The client's last words: there is nobody to hear them.
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.app).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.parted.is_cancelled() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.app).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.parted.is_cancelled() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.app).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// A tunnel that breaks after these bytes.
    struct Breaking(&'static [u8]);

    impl AsyncRead for Breaking {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let (piece, rest) = self.0.split_at(1);
            buffer.put_slice(piece);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    async fn read(bytes: &'static [u8]) -> (io::Result<usize>, Vec<u8>) {
        let mut seen = Vec::new();
        let ended = Parting::new(Breaking(bytes)).read_to_end(&mut seen).await;
        (ended, seen)
    }

    #[tokio::test]
    async fn between_frames_a_break_is_a_farewell() {
        for bytes in [&b""[..], b"\x81\x02hi"] {
            let (ended, seen) = read(bytes).await;
            ended.expect("an end");
            let farewell = b"\x88\x17\x03\xe9the MicroVM went away";
            assert_eq!(seen, [bytes, farewell].concat());
        }
    }

    #[tokio::test]
    async fn amid_a_frame_a_break_is_a_break() {
        for bytes in [&b"\x81"[..], b"\x81\x02", b"\x81\x02h", b"\x88\x02"] {
            let (ended, seen) = read(bytes).await;
            assert_eq!(
                ended.expect_err("a break").kind(),
                io::ErrorKind::ConnectionReset
            );
            assert_eq!(seen, bytes);
        }
    }

    #[tokio::test]
    async fn nothing_follows_the_apps_own_farewell() {
        let (ended, seen) = read(b"\x88\x02\x03\xe8").await;
        ended.expect("an end");
        assert_eq!(seen, b"\x88\x02\x03\xe8");
    }
}
