//! WebSocket's opening handshake: the platform's subprotocols, and HTTP/2's form of it. Pure.
//!
//! A browser can set no header on a WebSocket, so it names token and port as subprotocols (RFC 6455, section
//! 1.9), next to a bare marker: `lambda-microvms, lambda-microvms.authentication.TOKEN,
//! lambda-microvms.port.9000`. None of the three reaches the app.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
};
use http::{HeaderMap, HeaderValue};
use uuid::Uuid;

/// Says that the client speaks to the platform, and is what the client gets where the app selects nothing.
pub(crate) const MARKER: &str = "lambda-microvms";
const TOKEN_PREFIX: &str = "lambda-microvms.authentication.";
const PORT_PREFIX: &str = "lambda-microvms.port.";

/// What the platform's own subprotocols say.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Offer<'a> {
    pub(crate) marker: bool,
    token: Option<&'a str>,
    pub(crate) port: Option<&'a str>,
}

/// The subprotocols are not a list of names, each there once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> Offer<'a> {
    pub(crate) fn read(headers: &'a HeaderMap) -> Result<Self, Malformed> {
        let mut offer = Self::default();
        for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
            let value = value.to_str().map_err(|_| Malformed)?;
            for name in names(value) {
                let repeated = if name == MARKER {
                    std::mem::replace(&mut offer.marker, true)
                } else if let Some(token) = name.strip_prefix(TOKEN_PREFIX) {
                    offer.token.replace(token).is_some()
                } else if let Some(port) = name.strip_prefix(PORT_PREFIX) {
                    offer.port.replace(port).is_some()
                } else {
                    false
                };
                if repeated {
                    return Err(Malformed);
                }
            }
        }
        Ok(offer)
    }

    /// The endpoint token. Without the marker it does not count.
    pub(crate) fn token(&self) -> Option<&'a str> {
        self.token.filter(|_| self.marker)
    }
}

impl fmt::Debug for Offer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer")
            .field("marker", &self.marker)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// Takes the platform's subprotocols off a request; the app's own stay, in their order.
pub(crate) fn strip_offer(headers: &mut HeaderMap) {
    let Some(offered) = list(headers) else {
        return;
    };
    let apps: Vec<&str> = names(&offered).filter(|name| !is_platforms(name)).collect();
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if !apps.is_empty()
        && let Ok(value) = HeaderValue::from_str(&apps.join(", "))
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// Selects the marker where the app has selected none: a client that offers subprotocols may insist on one.
pub(crate) fn select_marker(headers: &mut HeaderMap) {
    headers
        .entry(SEC_WEBSOCKET_PROTOCOL)
        .or_insert(HeaderValue::from_static(MARKER));
}

/// Adds what HTTP/1.1 has in a handshake and HTTP/2 has not (RFC 8441, section 5).
pub(crate) fn to_http1(headers: &mut HeaderMap) {
    let key = STANDARD.encode(Uuid::new_v4().as_bytes());
    let key = HeaderValue::try_from(key).expect("base64 is a header value");
    headers.insert(SEC_WEBSOCKET_KEY, key);
    headers
        .entry(SEC_WEBSOCKET_VERSION)
        .or_insert(HeaderValue::from_static("13"));
}

/// Takes off what HTTP/2 has not in an answer to a handshake.
pub(crate) fn to_http2(headers: &mut HeaderMap) {
    headers.remove(SEC_WEBSOCKET_ACCEPT);
}

/// Several header lines mean the same as one with commas between. What is no text is dropped.
fn list(headers: &HeaderMap) -> Option<String> {
    let lines: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .map(|value| value.to_str().unwrap_or_default())
        .collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

fn names(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(|name| name.trim_matches([' ', '\t']))
        .filter(|name| !name.is_empty())
}

fn is_platforms(name: &str) -> bool {
    name == MARKER || name.starts_with(TOKEN_PREFIX) || name.starts_with(PORT_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            let value = HeaderValue::from_str(line).expect("value");
            headers.append(SEC_WEBSOCKET_PROTOCOL, value);
        }
        headers
    }

    fn stripped(lines: &[&str]) -> Option<String> {
        let mut headers = headers(lines);
        strip_offer(&mut headers);
        assert!(headers.len() <= 1);
        let value = headers.get(SEC_WEBSOCKET_PROTOCOL)?;
        Some(value.to_str().expect("text").to_owned())
    }

    #[test]
    fn token_and_port_are_found_in_any_order_and_on_any_line() {
        let whole = "lambda-microvms, lambda-microvms.authentication.a.b..c, lambda-microvms.port.9000, app";
        for lines in [
            &[whole][..],
            &[
                "app,lambda-microvms.port.9000,lambda-microvms.authentication.a.b..c,lambda-microvms",
            ],
            &[
                "lambda-microvms.port.9000",
                "app\t,  lambda-microvms",
                "lambda-microvms.authentication.a.b..c",
            ],
            &[
                ", lambda-microvms,,app , lambda-microvms.authentication.a.b..c,lambda-microvms.port.9000,",
            ],
        ] {
            let headers = headers(lines);
            let offer = Offer::read(&headers).expect("offer");
            assert_eq!(offer.token(), Some("a.b..c"), "{lines:?}");
            assert_eq!(offer.port, Some("9000"), "{lines:?}");
            assert!(offer.marker, "{lines:?}");
            assert_eq!(stripped(lines).as_deref(), Some("app"), "{lines:?}");
        }
    }

    #[test]
    fn a_token_without_the_marker_does_not_count() {
        let headers = headers(&["lambda-microvms.authentication.a, lambda-microvms-not"]);
        let offer = Offer::read(&headers).expect("offer");
        assert_eq!(offer.token(), None);
        assert!(!offer.marker);
    }

    #[test]
    fn a_port_is_taken_as_it_is_written() {
        for (name, port) in [
            ("lambda-microvms.port.", Some("")),
            ("lambda-microvms.port.-1", Some("-1")),
            ("lambda-microvms.port.80.80", Some("80.80")),
            ("lambda-microvms.port", None),
            ("lambda-microvms.ports.1", None),
        ] {
            assert_eq!(Offer::read(&headers(&[name])).expect("offer").port, port);
        }
    }

    #[test]
    fn what_may_be_there_once_is_not_there_twice() {
        for lines in [
            &["lambda-microvms, lambda-microvms"][..],
            &["lambda-microvms", "lambda-microvms"],
            &["lambda-microvms.authentication.a, lambda-microvms.authentication.b"],
            &["lambda-microvms.port.1", "lambda-microvms.port.1"],
        ] {
            assert_eq!(Offer::read(&headers(lines)), Err(Malformed), "{lines:?}");
        }
        let mut binary = HeaderMap::new();
        let value = HeaderValue::from_bytes(b"lambda-microvms.port.1\xff").expect("value");
        binary.insert(SEC_WEBSOCKET_PROTOCOL, value);
        assert_eq!(Offer::read(&binary), Err(Malformed));
        strip_offer(&mut binary);
        assert!(binary.is_empty());
    }

    #[test]
    fn the_apps_subprotocols_pass_alone() {
        assert_eq!(stripped(&[]), None);
        assert_eq!(stripped(&["lambda-microvms"]), None);
        assert_eq!(stripped(&["lambda-microvms, b", "a"]).expect("two"), "b, a");
        let unknown = "lambda-microvms.other, lambda-microvmsx";
        assert_eq!(stripped(&[unknown]).expect("unknown"), unknown);
    }

    #[test]
    fn the_apps_selection_stands() {
        let mut selected = headers(&["app"]);
        select_marker(&mut selected);
        assert_eq!(selected, headers(&["app"]));
        let mut none = HeaderMap::new();
        select_marker(&mut none);
        assert_eq!(none, headers(&[MARKER]));
    }

    #[test]
    fn a_handshake_of_http2_gets_a_key_of_its_own_and_keeps_its_version() {
        let (mut one, mut two) = (HeaderMap::new(), HeaderMap::new());
        one.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        to_http1(&mut one);
        to_http1(&mut two);
        assert_eq!(one[SEC_WEBSOCKET_VERSION], "8");
        assert_eq!(two[SEC_WEBSOCKET_VERSION], "13");
        assert_ne!(one[SEC_WEBSOCKET_KEY], two[SEC_WEBSOCKET_KEY]);
        let key = STANDARD.decode(&one[SEC_WEBSOCKET_KEY]).expect("base64");
        assert_eq!(key.len(), 16);
    }

    #[test]
    fn a_token_is_in_no_debug() {
        let headers = headers(&["lambda-microvms, lambda-microvms.authentication.secret"]);
        let offer = Offer::read(&headers).expect("offer");
        assert!(!format!("{offer:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn no_token_survives(lines in prop::collection::vec(
            prop::collection::vec(
                prop_oneof![
                    Just("lambda-microvms".to_owned()),
                    "lambda-microvms\\.authentication\\.[a-z.]{0,8}",
                    "lambda-microvms\\.port\\.[0-9]{0,5}",
                    "[ \t]{0,2}[a-z.-]{0,6}[ \t]{0,2}",
                ],
                0..5,
            ),
            0..4,
        )) {
            let lines: Vec<String> = lines.iter().map(|names| names.join(", ")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            if let Some(rest) = stripped(&lines) {
                prop_assert!(!rest.is_empty());
                prop_assert!(!names(&rest).any(is_platforms), "{}", rest);
            }
        }
    }
}
