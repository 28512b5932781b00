//! HTTP/2 frame by frame, as no well-behaved client library lets one write it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::client::{connect, host};
use crate::fixture::{ENDPOINT, Fixture, PATIENCE};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// One setting, as the payload of a SETTINGS frame.
pub(crate) fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A header field, literal and not to be remembered (RFC 7541, section 6.2.2).
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        field.extend(length(text.len()));
        field.extend_from_slice(text.as_bytes());
    }
    field
}

/// An integer with a prefix of seven bits.
fn length(length: usize) -> Vec<u8> {
    if length < 127 {
        return vec![length as u8];
    }
    let (mut bytes, mut rest) = (vec![127], length - 127);
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// The header block of a request to the fixture's endpoint.
pub(crate) fn request(fixture: &Fixture, method: &str) -> Vec<u8> {
    [
        field(":method", method),
        field(":scheme", "https"),
        field(":path", "/"),
        field(":authority", &host(ENDPOINT)),
        field("x-aws-proxy-auth", &fixture.token()),
    ]
    .concat()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A connection past its preface.
pub(crate) struct Connection(TlsStream<TcpStream>);

impl Connection {
    pub(crate) async fn new(fixture: &Fixture) -> Self {
        let mut connection = Self::bare(fixture).await;
        connection.send(PREFACE).await;
        connection.send(&frame(SETTINGS, 0, 0, &[])).await;
        connection
    }

    /// One that has said nothing yet.
    pub(crate) async fn bare(fixture: &Fixture) -> Self {
        Self(connect(fixture, &host(ENDPOINT), "h2").await)
    }

    /// Sends what the proxy still takes; returns whether it did.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = timeout(PATIENCE, async {
            self.0.write_all(bytes).await?;
            self.0.flush().await
        });
        sent.await.expect("in time").is_ok()
    }

    /// The next frame, or `None` once the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let read = timeout(PATIENCE, async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Ok::<_, std::io::Error>(Frame {
                kind: head[3],
                flags: head[4],
                stream,
                payload,
            })
        });
        read.await.expect("in time").ok()
    }

    /// What the proxy says next of consequence, beyond the small talk of a connection.
    pub(crate) async fn verdict(&mut self) -> Verdict {
        loop {
            let Some(frame) = self.next().await else {
                return Verdict::Closed;
            };
            return match (frame.kind, &frame.payload[..]) {
                (GOAWAY, [_, _, _, _, code @ ..]) => Verdict::Goaway(number(code)),
                (RST_STREAM, code) => Verdict::Reset(number(code)),
                (HEADERS, _) => Verdict::Answer,
                (PING, data) if frame.flags & ACK == ACK => Verdict::Pong(data.to_vec()),
                _ => continue,
            };
        }
    }
}

/// The four bytes at the front.
fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Goaway(u32),
    Reset(u32),
    Answer,
    Pong(Vec<u8>),
    Closed,
}
