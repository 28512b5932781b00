//! Admission: where a request wants to go, and whether its token lets it. Pure.
//!
//! The checks come in AWS's order: host, token, port syntax, port grant. Nothing of a refused
//! request reaches a MicroVM.

use std::sync::Arc;

use dormouse_core::{EndpointId, Timestamp, limits};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};

use crate::headers::{PROXY_AUTH, PROXY_FORCE_H2, PROXY_PORT};
use crate::names::{Names, is_same, normal};
use crate::refusal::Refusal;
use crate::shell;
use crate::switch::Ask;
use crate::token::{Claims, TokenError, TokenKind};
use crate::token_cache::TokenCache;
use crate::token_keys::TokenKeys;
use crate::upstream::Protocol;
use crate::websocket::{Malformed, Offer};

/// The port of a request that names none.
const PORT_DEFAULT: u16 = 8080;

/// An admitted request's destination.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) endpoint: EndpointId,
    pub(crate) port: u16,
    /// The client's host, as it sent it.
    pub(crate) host: HeaderValue,
    pub(crate) protocol: Protocol,
    /// The other protocol that the client wants to go on with.
    pub(crate) ask: Option<Ask>,
    /// Whether the client offers the platform's marker as a subprotocol.
    pub(crate) marker: bool,
}

/// Where an admitted request goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    App(Route),
    Shell(shell::ShellRoute),
}

/// What admission knows besides the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate<'a> {
    pub(crate) names: &'a Names,
    /// The name in the TLS handshake. A client that connects by address sends none.
    pub(crate) sni: Option<&'a str>,
    pub(crate) keys: &'a TokenKeys,
    /// What the client's connection brought before.
    pub(crate) cache: &'a TokenCache,
    pub(crate) now: Timestamp,
}

impl Gate<'_> {
    pub(crate) fn admit(&self, request: &Parts) -> Result<Admitted, Refusal> {
        if request.headers.len() > limits::HTTP_HEADERS_MAX {
            return Err(Refusal::HeadersTooMany);
        }
        let ask = Ask::of(request)?;
        if !plainly_framed(&request.headers) {
            return Err(Refusal::BadBody);
        }
        let authority = authority(request)?;
        let host = normal(authority.host());
        if self.sni.is_some_and(|sni| !is_same(sni, &host)) {
            return Err(Refusal::Misdirected);
        }
        let offer = match &ask {
            Some(ask) if ask.is_websocket() => {
                Offer::read(&request.headers).map_err(|Malformed| Refusal::BadSubprotocol)?
            }
            _ => Offer::default(),
        };
        let claims = self.claims(&request.headers, &offer)?;
        let endpoint = self.names.endpoint(&host).ok_or(Refusal::AuthFailed)?;
        if claims.endpoint != endpoint {
            return Err(Refusal::AuthFailed);
        }
        if claims.kind == TokenKind::Shell {
            // It opens no port of the app, and AWS answers a plain request with it like this.
            let ask = ask.filter(Ask::is_websocket).ok_or(Refusal::Unreachable)?;
            return Ok(Admitted::Shell(shell::ShellRoute {
                endpoint,
                ask,
                marker: offer.marker,
            }));
        }
        let port = port(&request.headers, &offer)?;
        if !claims.allow(port) {
            return Err(Refusal::PortDenied);
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::BadHost)?;
        Ok(Admitted::App(Route {
            endpoint,
            port,
            host,
            protocol: protocol(request, ask.as_ref()),
            marker: offer.marker,
            ask,
        }))
    }

    /// What the token grants: the header's, or a browser's, which can send none.
    fn claims(&self, headers: &HeaderMap, offer: &Offer<'_>) -> Result<Arc<Claims>, Refusal> {
        let token = match single(headers, &PROXY_AUTH).map_err(|Repeated| Refusal::AuthMissing)? {
            Some(value) => value.to_str().ok(),
            None => offer.token(),
        };
        let token = token.ok_or(Refusal::AuthMissing)?;
        self.cache
            .open(self.keys, token, self.now)
            .map_err(|error| match error {
                TokenError::Malformed => Refusal::AuthMissing,
                TokenError::UnknownKey | TokenError::Forged | TokenError::Expired => {
                    Refusal::AuthFailed
                }
            })
    }
}

/// The one host that a request names, in its target, in its `Host` or in both.
fn authority(request: &Parts) -> Result<Authority, Refusal> {
    let field = single(&request.headers, &header::HOST)
        .map_err(|Repeated| Refusal::BadHost)?
        .map(|value| Authority::try_from(value.as_bytes()))
        .transpose()
        .map_err(|_| Refusal::BadHost)?;
    let authority = match (request.uri.authority(), field) {
        (Some(target), Some(field)) if *target != field => return Err(Refusal::BadHost),
        (Some(target), _) => target.clone(),
        (None, Some(field)) => field,
        (None, None) => return Err(Refusal::BadHost),
    };
    // `user@host` is no host, whatever the parser makes of it.
    if authority.as_str().contains('@') {
        return Err(Refusal::BadHost);
    }
    Ok(authority)
}

fn port(headers: &HeaderMap, offer: &Offer<'_>) -> Result<u16, Refusal> {
    let header = single(headers, &PROXY_PORT).map_err(|Repeated| Refusal::BadPort)?;
    let header = header.map(HeaderValue::to_str).transpose();
    let Some(text) = header.map_err(|_| Refusal::BadPort)?.or(offer.port) else {
        return Ok(PORT_DEFAULT);
    };
    // `parse` takes a plus sign, too.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::BadPort);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(Refusal::BadPort),
        Ok(port) => Ok(port),
    }
}

/// Whether the body's framing is one that the app will see the same way: `chunked` alone is taken
/// off on this side, other transfer codings would get lost.
fn plainly_framed(headers: &HeaderMap) -> bool {
    match single(headers, &header::TRANSFER_ENCODING) {
        Ok(coding) => {
            coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        }
        Err(Repeated) => false,
    }
}

/// What the app speaks: HTTP/1.1, unless the client says otherwise. gRPC is HTTP/2 on both sides, and only
/// HTTP/1.1 switches to another protocol.
fn protocol(request: &Parts, ask: Option<&Ask>) -> Protocol {
    let is = |name, test: fn(&[u8]) -> bool| {
        let value = request.headers.get(name).map(HeaderValue::as_bytes);
        value.is_some_and(test)
    };
    let grpc = request.version == Version::HTTP_2 && is(header::CONTENT_TYPE, is_grpc);
    let forced = is(PROXY_FORCE_H2, |value| value.eq_ignore_ascii_case(b"true"));
    if ask.is_none() && (grpc || forced) {
        Protocol::H2c
    } else {
        Protocol::Http1
    }
}

/// Whether a content type is gRPC's. gRPC-Web's begins alike, but is made to pass over HTTP/1.1, and servers of it
/// need not speak anything else.
fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// A header that may be there once is there twice.
struct Repeated;

/// The value of a header that may be there once: a second one could mean another thing to the app.
fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Repeated> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(Repeated);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PortRange;
    use dormouse_secrets::Sealer;
    use http::Request;

    const NOW_S: u64 = 1_900_000_000;
    const SUFFIX: &str = "lambda-microvm.us-east-1.localhost";
    const PROXY_AUTH: &str = "x-aws-proxy-auth";
    const PROXY_PORT: &str = "x-aws-proxy-port";
    const PROXY_FORCE_H2: &str = "x-aws-proxy-force-h2";
    const OURS: &str = "30d00336-db07-f4f5-79c1-8571c22bef9e";
    const OTHERS: &str = "11111111-2222-4333-8444-555555555555";

    struct Bench {
        keys: TokenKeys,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let keys =
                TokenKeys::load_or_create(&folder.path().join("keys"), Arc::new(Sealer::random()));
            let keys = keys.expect("keys");
            Self {
                keys,
                _folder: folder,
            }
        }

        fn token(&self, endpoint: &str, expires_s: u64) -> String {
            self.keys.mint(&Claims {
                endpoint: EndpointId::parse(endpoint).expect("endpoint"),
                ports: vec![PortRange::single(8080), PortRange::from((9000, 9010))],
                expires_s,
                kind: TokenKind::Http,
            })
        }

        fn good(&self) -> String {
            self.token(OURS, NOW_S + 60)
        }

        fn admit(&self, headers: &[(&str, &str)]) -> Result<Route, Refusal> {
            self.admit_from(None, "/", headers)
        }

        fn admit_from(
            &self,
            sni: Option<&str>,
            target: &str,
            headers: &[(&str, &str)],
        ) -> Result<Route, Refusal> {
            let mut request = Request::builder().uri(target);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let gate = Gate {
                names: &Names::new(&[SUFFIX], Default::default()),
                sni,
                keys: &self.keys,
                cache: &TokenCache::default(),
                now: Timestamp(NOW_S * 1000),
            };
            match gate.admit(&request.body(()).expect("request").into_parts().0)? {
                Admitted::App(route) => Ok(route),
                Admitted::Shell(visit) => panic!("{visit:?}"),
            }
        }
    }

    fn host(endpoint: &str) -> String {
        format!("{endpoint}.{SUFFIX}")
    }

    #[test]
    fn a_request_goes_where_its_host_and_its_port_header_say() {
        let bench = Bench::new();
        let (ours, token) = (host(OURS), bench.good());
        let route = bench
            .admit(&[("host", &ours), (PROXY_AUTH, &token)])
            .expect("admitted");
        assert_eq!(
            (route.endpoint.to_string(), route.port),
            (OURS.to_owned(), 8080)
        );
        let with_port = format!("{}:9443", ours.to_uppercase());
        let route = bench
            .admit(&[
                ("host", &with_port),
                (PROXY_AUTH, &token),
                (PROXY_PORT, "9003"),
            ])
            .expect("admitted");
        assert_eq!(
            (route.endpoint.to_string(), route.port),
            (OURS.to_owned(), 9003)
        );
        assert_eq!(route.host, with_port);
    }

    #[test]
    fn refusals_come_in_the_order_of_the_checks() {
        let bench = Bench::new();
        let (ours, good) = (host(OURS), bench.good());
        let (foreign, expired) = (bench.token(OTHERS, NOW_S + 60), bench.token(OURS, NOW_S));
        let bad_port = (PROXY_PORT, "x");
        let cases: [(&[(&str, &str)], Refusal); 9] = [
            (&[("host", &ours), bad_port], Refusal::AuthMissing),
            (
                &[("host", &ours), (PROXY_AUTH, "not-a-token"), bad_port],
                Refusal::AuthMissing,
            ),
            (
                &[("host", &ours), (PROXY_AUTH, &good), (PROXY_AUTH, &good)],
                Refusal::AuthMissing,
            ),
            (
                &[("host", &ours), (PROXY_AUTH, &foreign), bad_port],
                Refusal::AuthFailed,
            ),
            (
                &[("host", &ours), (PROXY_AUTH, &expired)],
                Refusal::AuthFailed,
            ),
            (
                &[("host", &host(OTHERS)), (PROXY_AUTH, &good)],
                Refusal::AuthFailed,
            ),
            (
                &[("host", &host("www")), (PROXY_AUTH, &good)],
                Refusal::AuthFailed,
            ),
            (
                &[("host", &ours), (PROXY_AUTH, &good), bad_port],
                Refusal::BadPort,
            ),
            (
                &[("host", &ours), (PROXY_AUTH, &good), (PROXY_PORT, "22")],
                Refusal::PortDenied,
            ),
        ];
        for (headers, refusal) in cases {
            assert_eq!(bench.admit(headers), Err(refusal), "{headers:?}");
        }
    }

    #[test]
    fn a_shells_token_opens_no_port() {
        let bench = Bench::new();
        let token = bench.keys.mint(&Claims {
            endpoint: EndpointId::parse(OURS).expect("endpoint"),
            ports: Vec::new(),
            expires_s: NOW_S + 60,
            kind: TokenKind::Shell,
        });
        let (ours, others) = (host(OURS), host(OTHERS));
        let refused = bench.admit(&[("host", &ours), (PROXY_AUTH, &token)]);
        assert_eq!(refused, Err(Refusal::Unreachable));
        assert_eq!(Refusal::Unreachable.status(), 502);
        let refused = bench.admit(&[("host", &others), (PROXY_AUTH, &token)]);
        assert_eq!(refused, Err(Refusal::AuthFailed));
    }

    #[test]
    fn a_port_is_a_number_of_tcp_and_there_is_one() {
        let bench = Bench::new();
        let (ours, token) = (host(OURS), bench.good());
        for bad in [
            "",
            "0",
            "65536",
            "-1",
            "+8080",
            "8080.0",
            "80 80",
            "0x1f90",
            "9999999999",
        ] {
            let refused = bench.admit(&[("host", &ours), (PROXY_AUTH, &token), (PROXY_PORT, bad)]);
            assert_eq!(refused, Err(Refusal::BadPort), "{bad:?}");
        }
        let refused = bench.admit(&[
            ("host", &ours),
            (PROXY_AUTH, &token),
            (PROXY_PORT, "8080"),
            (PROXY_PORT, "9000"),
        ]);
        assert_eq!(refused, Err(Refusal::BadPort));
    }

    #[test]
    fn a_request_has_exactly_one_host() {
        let bench = Bench::new();
        let (ours, token) = (host(OURS), bench.good());
        let auth = (PROXY_AUTH, token.as_str());
        let target = format!("https://{ours}/path");
        for headers in [
            &[auth][..],
            &[auth, ("host", &ours), ("host", &ours)],
            &[auth, ("host", "")],
            &[auth, ("host", "a b")],
            &[auth, ("host", &format!("user@{ours}"))],
        ] {
            assert_eq!(bench.admit(headers), Err(Refusal::BadHost), "{headers:?}");
        }
        let both = [auth, ("host", &host(OTHERS))];
        let refused = bench.admit_from(None, &target, &both);
        assert_eq!(refused, Err(Refusal::BadHost));
        assert!(bench.admit_from(None, &target, &[auth]).is_ok());
        assert!(
            bench
                .admit_from(None, &target, &[auth, ("host", &ours)])
                .is_ok()
        );
    }

    #[test]
    fn the_handshake_and_the_request_name_the_same_host() {
        let bench = Bench::new();
        let (ours, token) = (host(OURS), bench.good());
        let headers = [("host", ours.as_str()), (PROXY_AUTH, &token)];
        let admit = |sni: &str| bench.admit_from(Some(sni), "/", &headers).map(|_| ());
        assert_eq!(admit(&ours), Ok(()));
        assert_eq!(admit(&ours.to_uppercase()), Ok(()));
        assert_eq!(admit(&host(OTHERS)), Err(Refusal::Misdirected));
        assert_eq!(admit(SUFFIX), Err(Refusal::Misdirected));
    }

    #[test]
    fn grpc_over_http2_and_whoever_asks_get_http2_to_the_app() {
        let bench = Bench::new();
        let (ours, token) = (host(OURS), bench.good());
        let base = [("host", ours.as_str()), (PROXY_AUTH, token.as_str())];
        let protocol = |more: (&str, &str)| {
            let headers = [&base[..], &[more]].concat();
            bench.admit(&headers).expect("admitted").protocol
        };
        assert_eq!(protocol((PROXY_FORCE_H2, "true")), Protocol::H2c);
        assert_eq!(protocol((PROXY_FORCE_H2, "false")), Protocol::Http1);
        // Over HTTP/1.1 there is no gRPC.
        assert_eq!(
            protocol(("content-type", "application/grpc")),
            Protocol::Http1
        );
    }

    #[test]
    fn grpc_is_known_by_its_content_type_and_grpc_web_is_another() {
        for grpc in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
        ] {
            assert!(is_grpc(grpc.as_bytes()), "{grpc}");
        }
        for other in [
            "",
            "application/grp",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc-web-text;charset=utf-8",
            "application/json",
        ] {
            assert!(!is_grpc(other.as_bytes()), "{other}");
        }
    }
}
