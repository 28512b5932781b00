//! Shells: what a client with a shell token asks for, and the handshake that answers it.
//!
//! On AWS the path means nothing, and a client says all that it has to say once the WebSocket stands. What
//! Dormouse knows besides is asked for by the query, whose parameters AWS does not have:
//!
//! | parameter | meaning |
//! |---|---|
//! | `dormouse-command=TEXT` | what the shell runs, as after `sh -c` |
//! | `dormouse-size=COLSxROWS` | the terminal's size at the beginning |
//! | `dormouse-terminal=false` | no terminal: bytes pass unchanged, `{"type":"eof"}` ends the input, and a text `{"type":"stderr"}` comes before each message of standard error |
//! | `dormouse-exit-code=true` | the close reason ends with the exit code: `shell exited: 3` |

mod session;

use std::sync::Arc;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dormouse_core::EndpointId;
use dormouse_core::guest::{ShellSpec, TerminalSize};
use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use session::Manners;

use crate::exchange::{Exchange, MeasuredStream};
use crate::headers;
use crate::proxy::{Client, ResponseBody};
use crate::refusal::Refusal;
use crate::switch::Ask;
use crate::websocket;
use crate::{OpenError, Stream};

/// What a server appends to a client's key (RFC 6455, section 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Where an admitted client of a shell wants to go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ShellRoute {
    pub(crate) endpoint: EndpointId,
    pub(crate) ask: Ask,
    /// Whether the client offers the platform's marker as a subprotocol.
    pub(crate) marker: bool,
}

impl Client {
    /// Opens a shell and goes on with it over a WebSocket. The client waits while the MicroVM wakes.
    pub(crate) async fn shell(
        &self,
        route: &ShellRoute,
        mut parts: Parts,
        id: &HeaderValue,
        exchange: &Arc<Exchange>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let wishes = Wishes::read(parts.uri.query().unwrap_or_default())?;
        let response = route.handshake(&parts.headers)?;
        let client = parts.extensions.remove::<OnUpgrade>();
        let client = client.ok_or(Refusal::BadHandshake)?;
        let passage = self.turn(&route.endpoint, None, exchange).await?;
        let opened = self
            .upstream
            .shell(&route.endpoint, passage, &wishes.spec)
            .await;
        let shell = opened.map_err(|error| {
            tracing::info!(request_id = ?id, endpoint = %route.endpoint, reason = %error, "no shell");
            unopened(error)
        })?;
        let exchange = Arc::clone(exchange);
        self.tasks
            .spawn(serve(client, shell, wishes.manners(), exchange));
        Ok(response)
    }
}

async fn serve(
    client: OnUpgrade,
    shell: Box<dyn Stream>,
    manners: Manners,
    exchange: Arc<Exchange>,
) {
    match client.await {
        Ok(client) => {
            let client = MeasuredStream::new(TokioIo::new(client), exchange);
            session::run(client, shell, manners).await;
        }
        Err(error) => tracing::debug!(%error, "the protocol was not switched"),
    }
}

impl ShellRoute {
    /// The answer with which the connection becomes a WebSocket.
    fn handshake(&self, request: &HeaderMap) -> Result<Response<ResponseBody>, Refusal> {
        let known = HeaderValue::from_static("13");
        if request.get(SEC_WEBSOCKET_VERSION) != Some(&known) {
            return Err(Refusal::BadHandshake);
        }
        let mut response = Response::new(Either::Right(Full::<Bytes>::default()));
        let mut answer = HeaderMap::new();
        if self.marker {
            websocket::select_marker(&mut answer);
        }
        let mut protocol = None;
        if let Ask::Upgrade(_) = self.ask {
            let key = request.get(SEC_WEBSOCKET_KEY);
            let key = key.ok_or(Refusal::BadHandshake)?;
            answer.insert(SEC_WEBSOCKET_ACCEPT, accept(key));
            protocol = Some(HeaderValue::from_static("websocket"));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        *response.headers_mut() = headers::for_client(answer, protocol);
        Ok(response)
    }
}

/// The proof that a key was read.
fn accept(key: &HeaderValue) -> HeaderValue {
    let text = [key.as_bytes(), KEY_SUFFIX.as_bytes()].concat();
    let proof = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text));
    HeaderValue::try_from(proof).expect("base64 is a header value")
}

/// What a client asks of its shell.
#[derive(Debug, PartialEq, Eq)]
struct Wishes {
    spec: ShellSpec,
    exit_code: bool,
}

impl Wishes {
    fn read(query: &str) -> Result<Self, Refusal> {
        let mut wishes = Self {
            spec: ShellSpec {
                terminal: Some(TerminalSize::default()),
                command: None,
            },
            exit_code: false,
        };
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8();
            let value = value.map_err(|_| Refusal::BadShell)?;
            match name {
                "dormouse-command" => wishes.spec.command = Some(value.into_owned()),
                "dormouse-size" => {
                    wishes.spec.terminal = Some(size(&value).ok_or(Refusal::BadShell)?);
                }
                "dormouse-terminal" if value == "false" => wishes.spec.terminal = None,
                "dormouse-exit-code" => wishes.exit_code = value == "true",
                _ => {}
            }
        }
        Ok(wishes)
    }

    fn manners(&self) -> Manners {
        Manners {
            terminal: self.spec.terminal.is_some(),
            exit_code: self.exit_code,
        }
    }
}

/// A size as in `120x40`.
fn size(text: &str) -> Option<TerminalSize> {
    let (cols, rows) = text.split_once('x')?;
    Some(TerminalSize {
        cols: cols.parse().ok()?,
        rows: rows.parse().ok()?,
    })
}

fn unopened(error: OpenError) -> Refusal {
    match error {
        OpenError::Overloaded => Refusal::Overloaded,
        OpenError::NoShell => Refusal::NoShell,
        OpenError::AgentTooOld => Refusal::AgentTooOld,
        OpenError::Ended
        | OpenError::Asleep
        | OpenError::WakeFailed
        | OpenError::NotListening
        | OpenError::Gone => Refusal::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_proven_as_in_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn wishes_are_read_and_anything_else_is_let_be() {
        let none = Wishes::read("").expect("no wishes");
        assert_eq!(none.spec.command, None);
        assert!(!none.exit_code);
        assert_eq!(Wishes::read("session=1&x"), Ok(none));
        let query =
            "dormouse-command=echo%20%CE%BB%3D1&dormouse-exit-code=true&dormouse-size=120x40";
        let all = Wishes::read(query).expect("wishes");
        assert_eq!(all.spec.command.as_deref(), Some("echo λ=1"));
        let size = TerminalSize {
            cols: 120,
            rows: 40,
        };
        assert_eq!(all.spec.terminal, Some(size));
        assert!(all.exit_code);
        let piped = Wishes::read("dormouse-terminal=false").expect("wishes");
        assert_eq!(piped.spec.terminal, None);
        for bad in [
            "dormouse-size=120",
            "dormouse-size=99999x1",
            "dormouse-size=-1x1",
            "dormouse-command=%ff",
        ] {
            assert_eq!(Wishes::read(bad), Err(Refusal::BadShell), "{bad}");
        }
    }
}
