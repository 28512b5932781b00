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
    /// The app gave no answer.
    Unreachable,
}

impl Refusal {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::BadHost | Self::BadBody | Self::BadPort | Self::BadSubprotocol => {
                StatusCode::BAD_REQUEST
            }
            Self::AuthMissing | Self::AuthFailed | Self::PortDenied => StatusCode::FORBIDDEN,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnknownProtocol => StatusCode::NOT_IMPLEMENTED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::HeadersTooMany => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
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
            Self::Overloaded | Self::Unreachable => "",
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
        if self == Self::Overloaded {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
