//! Apps that serve TLS themselves: recognised without asking them, and spoken to over TLS.
//!
//! A port that has not spoken yet is addressed in plaintext, and what was said is kept. A TLS server answers that
//! with an alert, with a page that says so, or by hanging up. Only then is the port connected to once more, now with a
//! handshake; if it completes, what was said is said again, and the port is remembered. An app that speaks
//! plaintext so never sees a handshake, unless it hangs up without a word on its very first request, or on two in
//! a row.
//!
//! A TLS server needs to see five bytes. So where an upload is longer than what is kept of it, the rest waits for a
//! moment; if nothing comes back by then, the app is one that listens.
//!
//! What is remembered may change: an app is started anew with TLS, or without. So a port that turns down what it spoke
//! before, or hangs up without a word, is forgotten. That request fails, and the next finds out anew.
//!
//! Nobody verifies the app's certificate: the way to it leads through its own host into its own MicroVM, where
//! nobody else can listen.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use dormouse_core::{EndpointId, limits};
use http::uri::Authority;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::request::Route;
use crate::upstream::Protocol;
use crate::{OpenError, Stream};

/// Opens another tunnel to the same port.
pub(crate) type Reopen = Box<dyn FnOnce() -> Opening + Send>;
/// A tunnel to come.
pub(crate) type Opening = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, OpenError>> + Send>>;

type Port = (EndpointId, u16);
type Turn = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// What a port has been heard to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Plain,
    Tls,
}

/// What is known of the ports of all apps.
pub(crate) struct AppTls {
    http1: TlsConnector,
    http2: TlsConnector,
    ports: Mutex<HashMap<Port, Speech>>,
}

impl AppTls {
    pub(crate) fn new() -> Self {
        Self {
            http1: connector(b"http/1.1"),
            http2: connector(b"h2"),
            ports: Mutex::default(),
        }
    }

    /// The way to speak to the app at the end of a fresh `stream`: the stream itself, or TLS over it or over another
    /// that `reopen` opens. For a port that has not spoken yet that is found out on the way.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        stream: Box<dyn Stream>,
        route: &Route,
        reopen: Reopen,
    ) -> io::Result<Box<dyn Stream>> {
        let port = (route.endpoint, route.port);
        let hello = Hello::new(self, route);
        let (state, turn) = match self.known(&port) {
            Some(Speech::Tls) => {
                return hello.say(stream).await.inspect_err(|_| self.forget(&port));
            }
            Some(Speech::Plain) => (State::Settled(stream), None),
            None => (State::Asking(stream), Some((hello, reopen))),
        };
        Ok(Box::new(Silent {
            state,
            said: Vec::new(),
            patience: None,
            heard: Bytes::new(),
            is_news: true,
            turn,
            apps: Arc::clone(self),
            port,
        }))
    }

    fn known(&self, port: &Port) -> Option<Speech> {
        self.ports.lock().expect("no panic").get(port).copied()
    }

    fn remember(&self, port: &Port, speech: Speech) {
        let mut ports = self.ports.lock().expect("no panic");
        if ports.len() >= limits::APP_PORTS_REMEMBERED && !ports.contains_key(port) {
            // All are found out anew, a few at a time.
            ports.clear();
        }
        ports.insert(*port, speech);
    }

    fn forget(&self, port: &Port) {
        self.ports.lock().expect("no panic").remove(port);
    }

    /// Takes note of a port's first words to plaintext, or of how it hung up without any.
    fn judge(&self, port: &Port, words: &[u8], end: Option<&io::Error>) {
        if !words.is_empty() && !refuses_plaintext(words) {
            self.remember(port, Speech::Plain);
        } else if is_the_apps(end) {
            self.forget(port);
        }
    }
}

/// A handshake that may be made.
struct Hello {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Hello {
    fn new(apps: &AppTls, route: &Route) -> Self {
        // Some servers insist that the name is that of the `Host`.
        let name = Authority::try_from(route.host.as_bytes())
            .ok()
            .and_then(|host| ServerName::try_from(host.host().to_owned()).ok())
            .unwrap_or_else(|| ServerName::try_from("localhost").expect("a name"));
        let connector = match route.protocol {
            Protocol::Http1 => &apps.http1,
            Protocol::H2c => &apps.http2,
        };
        Self {
            connector: connector.clone(),
            name,
        }
    }

    async fn say(self, stream: Box<dyn Stream>) -> io::Result<Box<dyn Stream>> {
        let handshake = self.connector.connect(self.name, stream);
        let tls = timeout(limits::APP_TLS_TIMEOUT, handshake).await??;
        Ok(Box::new(tls))
    }
}

/// A stream over which a port has not spoken yet that is not known to speak TLS.
struct Silent {
    state: State,
    /// All that was written.
    said: Vec<u8>,
    /// How long more than that waits to be written.
    patience: Option<Pin<Box<Sleep>>>,
    /// The port's first words, until they are read.
    heard: Bytes,
    /// Whether those are still to be judged.
    is_news: bool,
    turn: Option<(Hello, Reopen)>,
    apps: Arc<AppTls>,
    port: Port,
}

enum State {
    /// In plaintext.
    Asking(Box<dyn Stream>),
    /// To TLS.
    Turning(Turn),
    Settled(Box<dyn Stream>),
    /// The port has hung up.
    Over(Option<io::Error>),
}

impl Silent {
    /// Waits for the port's first words where they decide how it is spoken to, and acts upon them.
    fn poll_settled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            self.state = match &mut self.state {
                State::Asking(stream) => {
                    let mut space = [0; 1024];
                    let mut buffer = ReadBuf::new(&mut space);
                    let ended = ready!(Pin::new(stream).poll_read(context, &mut buffer));
                    self.heard = Bytes::copy_from_slice(buffer.filled());
                    self.after_first_words(ended.err())
                }
                State::Turning(turn) => match ready!(turn.as_mut().poll(context)) {
                    Ok(stream) => {
                        self.heard.clear();
                        State::Settled(stream)
                    }
                    Err(error) => {
                        tracing::debug!(%error, port = self.port.1, "the app speaks no TLS either");
                        State::Over(None)
                    }
                },
                State::Settled(_) | State::Over(_) => return Poll::Ready(()),
            };
        }
    }

    fn after_first_words(&mut self, error: Option<io::Error>) -> State {
        let State::Asking(stream) = std::mem::replace(&mut self.state, State::Over(None)) else {
            unreachable!("words are heard while asking");
        };
        self.is_news = false;
        if !self.heard.is_empty() && !refuses_plaintext(&self.heard) {
            self.apps.remember(&self.port, Speech::Plain);
            return self.settled(stream);
        }
        match self.turn.take() {
            Some((hello, reopen)) if !self.said.is_empty() && is_the_apps(error.as_ref()) => {
                let (apps, port) = (Arc::clone(&self.apps), self.port);
                let said = std::mem::take(&mut self.said);
                State::Turning(Box::pin(turn(apps, port, hello, reopen, said)))
            }
            _ => State::Over(error),
        }
    }

    /// Waits for the port's first words, but not for long: an app that listens to so much speaks plaintext.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.poll_settled(context).is_ready() {
            return Poll::Ready(());
        }
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(sleep(limits::APP_TLS_PATIENCE)));
        ready!(patience.as_mut().poll(context));
        match std::mem::replace(&mut self.state, State::Over(None)) {
            State::Asking(stream) => self.state = self.settled(stream),
            other => self.state = other,
        }
        Poll::Ready(())
    }

    fn settled(&mut self, stream: Box<dyn Stream>) -> State {
        // The way back holds the stay of a request, which may be over long before the connection.
        self.turn = None;
        State::Settled(stream)
    }
}

/// Whether it is the app that has hung up. A reset of its own comes from the system and has a number; one that the
/// platform makes of a lost MicroVM has none, and must not wake it for a question.
fn is_the_apps(end: Option<&io::Error>) -> bool {
    end.is_none_or(|error| error.raw_os_error().is_some())
}

/// Connects once more, with a handshake, and says what was said before.
async fn turn(
    apps: Arc<AppTls>,
    port: Port,
    hello: Hello,
    reopen: Reopen,
    said: Vec<u8>,
) -> io::Result<Box<dyn Stream>> {
    let stream = reopen().await.map_err(io::Error::other)?;
    let mut stream = hello.say(stream).await?;
    apps.remember(&port, Speech::Tls);
    stream.write_all(&said).await?;
    stream.flush().await?;
    Ok(stream)
}

/// Whether a port's first words are a TLS server's to a client that speaks none: an alert, or a page as Go's server,
/// nginx, Apache and Tomcat have one.
fn refuses_plaintext(words: &[u8]) -> bool {
    const PAGES: [&[u8]; 4] = [
        b"HTTPS server",
        b"HTTPS port",
        b"SSL-enabled server port",
        b"requires TLS",
    ];
    let says = |phrase: &[u8]| words.windows(phrase.len()).any(|window| window == phrase);
    words.starts_with(&[0x15, 0x03])
        || (words.starts_with(b"HTTP/1.")
            && words.get(8..12) == Some(b" 400")
            && PAGES.iter().any(|phrase| says(phrase)))
}

impl AsyncRead for Silent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_settled(context));
        if !self.heard.is_empty() {
            let length = self.heard.len().min(buffer.remaining());
            buffer.put_slice(&self.heard[..length]);
            self.heard.advance(length);
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        match &mut this.state {
            State::Settled(stream) => {
                let begin = buffer.filled().len();
                let read = ready!(Pin::new(stream).poll_read(context, buffer));
                if std::mem::take(&mut this.is_news) {
                    let words = &buffer.filled()[begin..];
                    this.apps.judge(&this.port, words, read.as_ref().err());
                }
                Poll::Ready(read)
            }
            State::Over(error) => Poll::Ready(error.take().map_or(Ok(()), Err)),
            State::Asking(_) | State::Turning(_) => unreachable!("it is settled"),
        }
    }
}

impl AsyncWrite for Silent {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while let State::Asking(stream) = &mut this.state {
            let room = limits::APP_TLS_REPLAY_BYTES_MAX - this.said.len();
            let kept = &bytes[..bytes.len().min(room)];
            if kept.is_empty() {
                ready!(this.poll_patience(context));
                continue;
            }
            match ready!(Pin::new(stream).poll_write(context, kept)) {
                Ok(written) => {
                    this.said.extend_from_slice(&kept[..written]);
                    return Poll::Ready(Ok(written));
                }
                // A port that takes no more may have said why.
                Err(_) => ready!(this.poll_settled(context)),
            }
        }
        ready!(this.poll_settled(context));
        match &mut this.state {
            State::Settled(stream) => Pin::new(stream).poll_write(context, bytes),
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.state {
            State::Settled(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            _ => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                self.poll_write(context, first.map_or(&[], |slice| slice))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(&self.state, State::Settled(stream) if stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Asking(stream) | State::Settled(stream) => Pin::new(stream).poll_flush(context),
            State::Turning(_) | State::Over(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Asking(stream) | State::Settled(stream) => {
                Pin::new(stream).poll_shutdown(context)
            }
            State::Turning(_) | State::Over(_) => Poll::Ready(Ok(())),
        }
    }
}

fn connector(alpn: &[u8]) -> TlsConnector {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyCertificate(
        provider
            .signature_verification_algorithms
            .supported_schemes(),
    ));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Takes whatever certificate the app has made for itself.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, duplex};
    use tokio::time::Instant;
    use uuid::Uuid;

    #[tokio::test(start_paused = true)]
    async fn a_port_that_gets_nothing_but_large_uploads_is_waited_for_once() {
        const LENGTH: usize = 2 * limits::APP_TLS_REPLAY_BYTES_MAX;
        let apps = Arc::new(AppTls::new());
        let route = Route {
            endpoint: EndpointId::new(Uuid::from_u128(1)),
            port: 8080,
            host: HeaderValue::from_static("localhost"),
            protocol: Protocol::Http1,
            ask: None,
            marker: false,
        };
        for pause in [limits::APP_TLS_PATIENCE, Duration::ZERO] {
            let (near, mut app) = duplex(LENGTH);
            let reopen: Reopen = Box::new(|| unreachable!("nothing is turned down"));
            let stream = apps.settle(Box::new(near), &route, reopen).await;
            let mut stream = stream.expect("in plaintext");
            let begun = Instant::now();
            stream.write_all(&[b'x'; LENGTH]).await.expect("taken");
            assert_eq!(begun.elapsed().as_millis(), pause.as_millis());
            app.write_all(b"HTTP/1.1 200 OK\r\n").await.expect("taken");
            let mut words = [0; 15];
            stream.read_exact(&mut words).await.expect("words");
            assert_eq!(&words, b"HTTP/1.1 200 OK");
        }
    }

    #[test]
    fn only_a_tls_server_speaks_like_one() {
        for words in [
            &b"\x15\x03\x01\0\x02\x02\x46"[..],
            b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
            b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n<title>400 The plain HTTP request was sent to HTTPS port",
            b"HTTP/1.1 400 \r\nConnection: close\r\n\r\nBad Request\r\nThis combination of host and port requires TLS.\r\n",
        ] {
            assert!(refuses_plaintext(words));
        }
        for words in [
            &b""[..],
            b"\x15",
            b"\x15\x02",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nabout an HTTPS server",
            b"HTTP/1.1",
        ] {
            assert!(!refuses_plaintext(words), "{words:?}");
        }
    }
}
