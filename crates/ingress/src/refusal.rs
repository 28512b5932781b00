//! The answers that the proxy gives itself, to the byte as on AWS.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{Either, Full};

use crate::proxy::ResponseBody;

/// Why a request got no answer from the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No usable `Host`, or two that differ.
    BadHost,
    /// The request's body broke off or is not framed as it should be.
    BadBody,
    /// `X-aws-proxy-port`, or the subprotocol that stands for it, is not a port.
    BadPort,
    /// The WebSocket's subprotocols are no list, or name one of the platform's twice.
    BadSubprotocol,
    /// No token, or nothing that looks like one.
    AuthMissing,
    /// A token that does not open this endpoint, or no longer.
    AuthFailed,
    /// The token does not cover the port.
    PortDenied,
    /// `CONNECT`: the endpoint is an origin, not a forward proxy.
    Connect,
    /// An extended `CONNECT` to something else than a WebSocket.
    UnknownProtocol,
    /// The TLS handshake named another host than the request.
    Misdirected,
    /// More headers than allowed.
    HeadersTooMany,
    /// Too many requests wait for the MicroVM.
    Overloaded,
    /// As many requests to the MicroVM are in flight as may be.
    TooMany,
    /// More requests a second go to the MicroVM than may.
    TooFast,
    /// The app gave no answer.
    Unreachable,
    /// A shell's client does not open a WebSocket as it should.
    BadHandshake,
    /// The query that says what a shell is to be makes no sense.
    BadShell,
    /// No shell starts in the MicroVM.
    NoShell,
    /// The MicroVM's image was built before there were shells.
    AgentTooOld,
}

impl Refusal {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::BadHost
            | Self::BadBody
            | Self::BadPort
            | Self::BadSubprotocol
            | Self::BadHandshake
            | Self::BadShell => StatusCode::BAD_REQUEST,
            Self::AuthMissing | Self::AuthFailed | Self::PortDenied => StatusCode::FORBIDDEN,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnknownProtocol | Self::NoShell | Self::AgentTooOld => {
                StatusCode::NOT_IMPLEMENTED
            }
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::HeadersTooMany => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Overloaded | Self::TooMany | Self::TooFast => StatusCode::TOO_MANY_REQUESTS,
            Self::Unreachable => StatusCode::BAD_GATEWAY,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::BadHost => "Invalid host",
            Self::BadBody => "Invalid request body",
            Self::BadPort => "Invalid X-aws-proxy-port",
            Self::BadSubprotocol => "Invalid Sec-WebSocket-Protocol",
            Self::AuthMissing => "Request missing authentication",
            Self::AuthFailed => "Token authentication failed",
            Self::PortDenied => "Access to port denied",
            Self::Connect => "Method not allowed",
            Self::UnknownProtocol => "Protocol not implemented",
            Self::Misdirected => "Misdirected request",
            Self::HeadersTooMany => "Request header fields too large",
            Self::BadHandshake => "Invalid WebSocket handshake",
            Self::BadShell => "Invalid shell parameters",
            Self::NoShell => "No shell starts in this MicroVM",
            Self::AgentTooOld => {
                "The image of this MicroVM was built before there were shells: build it again"
            }
            Self::Overloaded | Self::TooMany | Self::TooFast | Self::Unreachable => "",
        }
    }

    /// What logs and metrics call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BadHost => "bad_host",
            Self::BadBody => "bad_body",
            Self::BadPort => "bad_port",
            Self::BadSubprotocol => "bad_subprotocol",
            Self::AuthMissing => "auth_missing",
            Self::AuthFailed => "auth_failed",
            Self::PortDenied => "port_denied",
            Self::Connect => "connect",
            Self::UnknownProtocol => "unknown_protocol",
            Self::Misdirected => "misdirected",
            Self::HeadersTooMany => "headers_too_many",
            Self::Overloaded => "overloaded",
            Self::TooMany => "too_many_in_flight",
            Self::TooFast => "too_many_a_second",
            Self::BadHandshake => "bad_handshake",
            Self::BadShell => "bad_shell",
            Self::NoShell => "no_shell",
            Self::AgentTooOld => "agent_too_old",
            Self::Unreachable => "unreachable",
        }
    }

    pub(crate) fn response(self) -> Response<ResponseBody> {
        let text = self.text();
        let body = Full::new(Bytes::from_static(text.as_bytes()));
        let mut response = Response::new(Either::Right(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
        if !text.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        if self == Self::BadBody {
            // Where the next request begins is anyone's guess.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status() == StatusCode::TOO_MANY_REQUESTS {
            // By then a rate of one or more a second has earned the next request.
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
