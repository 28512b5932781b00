//! What crosses the proxy and what does not: the platform's own headers and the hop-by-hop ones stay
//! on their side (RFC 9110, section 7.6.1).

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

use crate::request::Route;
use crate::switch::Ask;
use crate::upstream::Protocol;
use crate::websocket;

/// Carries the endpoint token.
pub(crate) const PROXY_AUTH: HeaderName = HeaderName::from_static("x-aws-proxy-auth");
/// Names the port inside the MicroVM.
pub(crate) const PROXY_PORT: HeaderName = HeaderName::from_static("x-aws-proxy-port");
/// Makes the proxy speak HTTP/2 to the app.
pub(crate) const PROXY_FORCE_H2: HeaderName = HeaderName::from_static("x-aws-proxy-force-h2");
/// Every header of the platform begins so, and none reaches the app.
const PROXY_PREFIX: &str = "x-aws-proxy-";
/// Names a request on both sides.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

static HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The protocol that an HTTP/1.1 message asks to switch to, or has switched to.
///
/// `h2c` is none: it would put HTTP/2 frames, and so headers that nobody filtered, behind the proxy.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let h2c = tokens(headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case("h2c"));
    (asked && !h2c).then(|| protocol.clone())
}

/// A request's headers as the app gets them.
pub(crate) fn for_app(mut headers: HeaderMap, route: &Route, request_id: HeaderValue) -> HeaderMap {
    let trailers = tokens(&headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(&mut headers);
    strip_platform(&mut headers);
    websocket::strip_offer(&mut headers);
    // The server side answers `100 Continue` itself, once the app's connection stands.
    headers.remove(EXPECT);
    join_cookies(&mut headers);
    headers.insert(HOST, route.host.clone());
    headers.insert(REQUEST_ID, request_id);
    match &route.ask {
        Some(ask) => {
            if *ask == Ask::Stream {
                websocket::to_http1(&mut headers);
            }
            switch(&mut headers, ask.protocol());
        }
        // Most servers send trailers only to who asks for them.
        None if trailers => {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            if route.protocol == Protocol::Http1 {
                headers.insert(CONNECTION, HeaderValue::from_static("te"));
            }
        }
        None => {}
    }
    headers
}

/// A request's trailers as the app gets them: an app that merges them into the headers must not be misled.
pub(crate) fn trailers_for_app(mut trailers: HeaderMap) -> HeaderMap {
    strip_hop_by_hop(&mut trailers);
    strip_platform(&mut trailers);
    for name in [HOST, CONTENT_LENGTH, REQUEST_ID] {
        trailers.remove(name);
    }
    trailers
}

/// A response's headers as the client gets them.
pub(crate) fn for_client(mut headers: HeaderMap, upgrade: Option<HeaderValue>) -> HeaderMap {
    strip_hop_by_hop(&mut headers);
    if let Some(protocol) = upgrade {
        switch(&mut headers, protocol);
    }
    headers
}

fn switch(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// HTTP/2 clients may send a cookie a line; HTTP/1.1 has but one line (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(b"; ".as_slice()))
    {
        headers.insert(COOKIE, joined);
    }
}

fn strip_platform(headers: &mut HeaderMap) {
    strip(headers, |name| name.as_str().starts_with(PROXY_PREFIX));
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .collect();
    strip(headers, |name| {
        HOP_BY_HOP.contains(name) || listed.contains(name)
    });
}

/// Most messages hold few headers and nothing unwanted: to look at what is there costs less than to remove
/// whatever might be.
fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| unwanted(name)).cloned() {
        headers.remove(name);
    }
}

/// The comma-separated tokens of every header of this name.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_core::EndpointId;
    use expect_test::{Expect, expect};

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn check(headers: &HeaderMap, expected: &Expect) {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("text")))
            .collect();
        lines.sort();
        expected.assert_eq(&lines.concat());
    }

    fn to_app(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let headers = map(headers);
        let ask = upgrade(&headers).map(Ask::Upgrade);
        for_app(headers, &route(Protocol::Http1, ask), id())
    }

    fn id() -> HeaderValue {
        HeaderValue::from_static("id")
    }

    fn route(protocol: Protocol, ask: Option<Ask>) -> Route {
        Route {
            endpoint: EndpointId::parse("30d00336-db07-f4f5-79c1-8571c22bef9e").expect("endpoint"),
            port: 8080,
            host: HeaderValue::from_static("host"),
            protocol,
            ask,
            marker: false,
        }
    }

    #[test]
    fn the_app_sees_the_clients_headers_and_none_of_the_platforms() {
        let headers = to_app(&[
            ("host", "other"),
            ("x-aws-proxy-auth", "secret"),
            ("x-aws-proxy-port", "3000"),
            ("x-aws-proxy-anything", "1"),
            ("x-amzn-requestid", "forged"),
            ("traceparent", "00-1"),
            ("accept", "a"),
            ("accept", "b"),
        ]);
        check(
            &headers,
            &expect![[r#"
                accept: a
                accept: b
                host: host
                traceparent: 00-1
                x-amzn-requestid: id
            "#]],
        );
    }

    #[test]
    fn hop_by_hop_headers_stay_on_their_side() {
        let headers = [
            ("connection", "keep-alive, X-Private"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "basic"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-private", "1"),
            ("x-public", "1"),
        ];
        check(
            &for_client(map(&headers), None),
            &expect![[r#"
                x-public: 1
            "#]],
        );
        check(
            &to_app(&headers),
            &expect![[r#"
                host: host
                x-amzn-requestid: id
                x-public: 1
            "#]],
        );
    }

    #[test]
    fn an_upgrade_passes_but_not_to_h2c() {
        let asked = |protocol| {
            to_app(&[
                ("connection", "Upgrade, HTTP2-Settings"),
                ("upgrade", protocol),
            ])
        };
        check(
            &asked("websocket"),
            &expect![[r#"
                connection: upgrade
                host: host
                upgrade: websocket
                x-amzn-requestid: id
            "#]],
        );
        check(
            &asked("h2c"),
            &expect![[r#"
                host: host
                x-amzn-requestid: id
            "#]],
        );
    }

    #[test]
    fn who_takes_trailers_is_said_to_take_them() {
        check(
            &to_app(&[("te", "gzip, trailers")]),
            &expect![[r#"
                connection: te
                host: host
                te: trailers
                x-amzn-requestid: id
            "#]],
        );
    }

    #[test]
    fn over_http2_te_is_no_hop_by_hop_header() {
        let headers = map(&[("te", "trailers")]);
        check(
            &for_app(headers, &route(Protocol::H2c, None), id()),
            &expect![[r#"
                host: host
                te: trailers
                x-amzn-requestid: id
            "#]],
        );
    }

    #[test]
    fn a_websocket_of_http2_reaches_the_app_as_one_of_http1() {
        let headers = map(&[
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "lambda-microvms, chat"),
        ]);
        let mut headers = for_app(headers, &route(Protocol::Http1, Some(Ask::Stream)), id());
        assert!(headers.remove("sec-websocket-key").is_some());
        check(
            &headers,
            &expect![[r#"
                connection: upgrade
                host: host
                sec-websocket-protocol: chat
                sec-websocket-version: 13
                upgrade: websocket
                x-amzn-requestid: id
            "#]],
        );
    }

    #[test]
    fn trailers_carry_nothing_that_has_its_place_in_a_head() {
        let trailers = trailers_for_app(map(&[
            ("x-sum", "7"),
            ("x-aws-proxy-auth", "secret"),
            ("host", "other"),
            ("content-length", "7"),
            ("transfer-encoding", "chunked"),
            ("x-amzn-requestid", "forged"),
        ]));
        check(
            &trailers,
            &expect![[r#"
                x-sum: 7
            "#]],
        );
    }

    #[test]
    fn cookies_in_pieces_are_put_together() {
        check(
            &to_app(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]),
            &expect![[r#"
                cookie: a=1; b=2; c=3
                host: host
                x-amzn-requestid: id
            "#]],
        );
    }
}
