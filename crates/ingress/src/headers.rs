//! What crosses the proxy and what does not: the platform's own headers and the hop-by-hop ones stay
//! on their side (RFC 9110, section 7.6.1).

use http::header::{
    CONNECTION, COOKIE, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

/// Carries the endpoint token.
pub(crate) const PROXY_AUTH: &str = "x-aws-proxy-auth";
/// Names the port inside the MicroVM.
pub(crate) const PROXY_PORT: &str = "x-aws-proxy-port";
/// Makes the proxy speak HTTP/2 to the app.
pub(crate) const PROXY_FORCE_H2: &str = "x-aws-proxy-force-h2";
/// Every header of the platform begins so, and none reaches the app.
const PROXY_PREFIX: &str = "x-aws-proxy-";
/// Names a request on both sides.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

const HOP_BY_HOP: [HeaderName; 8] = [
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
    let asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let h2c = tokens(headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case("h2c"));
    headers.get(UPGRADE).filter(|_| asked && !h2c).cloned()
}

/// A request's headers as the app gets them.
pub(crate) fn for_app(
    mut headers: HeaderMap,
    host: HeaderValue,
    request_id: HeaderValue,
    upgrade: Option<HeaderValue>,
) -> HeaderMap {
    let trailers = tokens(&headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(&mut headers);
    let platform: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(PROXY_PREFIX))
        .cloned()
        .collect();
    for name in platform {
        headers.remove(name);
    }
    // The server side answers `100 Continue` itself, once the app's connection stands.
    headers.remove(EXPECT);
    join_cookies(&mut headers);
    headers.insert(HOST, host);
    headers.insert(REQUEST_ID, request_id);
    match upgrade {
        Some(protocol) => switch(&mut headers, protocol),
        // Most HTTP/1.1 servers send trailers only to who asks for them.
        None if trailers => {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        None => {}
    }
    headers
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

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
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
        let upgrade = upgrade(&headers);
        let id = HeaderValue::from_static("id");
        for_app(headers, HeaderValue::from_static("host"), id, upgrade)
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
