//! What the fuzzers under `fuzz/` drive: each function takes whatever bytes come, and panics where a rule of the
//! proxy does not hold.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use dormouse_core::{EndpointId, Timestamp};
use dormouse_secrets::Sealer;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version, header};

use crate::frames::{self, Frames};
use crate::headers;
use crate::names::Names;
use crate::request::{Admitted, Gate};
use crate::token::{Claims, PortRange, TokenKind};
use crate::token_cache::TokenCache;
use crate::token_keys::TokenKeys;
use crate::websocket::{self, Offer};

const SUFFIX: &str = "lambda-microvm.us-east-1.localhost";
const ENDPOINT: &str = "30d00336-db07-f4f5-79c1-8571c22bef9e";
const NOW: Timestamp = Timestamp(1_900_000_000_000);
const KEY: [u8; 32] = [7; 32];
const KEY_ID: &str = "3c5bb6a1-0bd0-4b1c-9d6e-1f2a3b4c5d6e";
/// Stands for a token that is good, which no fuzzer would find.
const TOKEN: &str = "$TOKEN";
/// Stands for the endpoint's host name.
const HOST: &str = "$HOST";
const AUTHENTICATION: &str = "lambda-microvms.authentication.";

/// Opens `data` as a token, then as the claims in a token of our own key.
pub fn token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(keys().open(text, NOW).is_err(), "a forged token opens");
    }
    let token = sealed(data);
    if let Ok(claims) = keys().open(&token, NOW) {
        assert!(!claims.expired(NOW), "an expired token opens");
        let again = keys().open(&keys().mint(&claims), NOW);
        assert_eq!(again, Ok(claims), "claims survive a round trip");
    }
}

/// Admits `data` as a request and, where it is let in, looks at what the app and the client would get.
pub fn headers(data: &[u8]) {
    let Some(request) = request(data) else {
        return;
    };
    let answer = headers::for_client(request.headers.clone(), None);
    assert!(!answer.contains_key(header::CONNECTION));
    let cache = TokenCache::default();
    let names = Names::new(&[SUFFIX], Arc::default());
    for sni in [None, Some(SUFFIX)] {
        let gate = Gate {
            names: &names,
            sni,
            keys: keys(),
            cache: &cache,
            now: NOW,
        };
        let Ok(Admitted::App(route)) = gate.admit(&request) else {
            continue;
        };
        assert_eq!(
            route.endpoint.to_string(),
            ENDPOINT,
            "another's endpoint opens"
        );
        assert_eq!(sni, None, "a host that TLS did not name is served");
        let id = HeaderValue::from_static("id");
        let app = headers::for_app(request.headers.clone(), &route, id);
        assert_fit_for_app(&app);
    }
}

/// Reads `data` as the subprotocols of a WebSocket's handshake, a header a line.
pub fn websocket(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
    if let Ok(offer) = Offer::read(&headers) {
        assert!(offer.token().is_none() || offer.marker);
    }
    websocket::strip_offer(&mut headers);
    assert_no_offer(&headers);
    let stripped = headers.clone();
    websocket::strip_offer(&mut headers);
    assert_eq!(headers, stripped, "nothing is left to strip");
    websocket::select_marker(&mut headers);
    assert!(headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL));
}

/// Follows `data` as WebSocket frames, in one piece and byte by byte.
pub fn frames(data: &[u8]) {
    let (mut whole, mut pieces) = (Frames::default(), Frames::default());
    whole.pass(data);
    for byte in data {
        pieces.pass(&[*byte]);
    }
    assert_eq!(whole.between(), pieces.between());
    assert_eq!(whole.closing(), pieces.closing());
    if whole.between() {
        whole.pass(&frames::close(1001, "away"));
        assert!(whole.between() && whole.closing());
    }
}

fn keys() -> &'static TokenKeys {
    static KEYS: OnceLock<TokenKeys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("keys");
        let key = BASE64.encode(KEY);
        let set =
            format!(r#"{{"keys":[{{"kty":"oct","kid":"{KEY_ID}","alg":"A256GCM","k":"{key}"}}]}}"#);
        std::fs::write(&path, set).expect("key file");
        TokenKeys::load_or_create(&path, Arc::new(Sealer::random())).expect("keys")
    })
}

/// A token of our key around `claims`, whatever they are.
fn sealed(claims: &[u8]) -> String {
    let header = format!(r#"{{"kid":"{KEY_ID}","alg":"dir","enc":"A256GCM"}}"#);
    let protected = BASE64.encode(header);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).expect("key"));
    let nonce = [0; 12];
    let mut text = claims.to_vec();
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(protected.as_bytes()),
            &mut text,
        )
        .expect("sealed");
    let [nonce, text, tag] = [&nonce[..], &text, tag.as_ref()].map(|part| BASE64.encode(part));
    format!("{protected}..{nonce}.{text}.{tag}")
}

/// A request line and headers, a line each. What no HTTP server would take is none.
fn request(data: &[u8]) -> Option<Parts> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut words = std::str::from_utf8(lines.next()?).ok()?.split(' ');
    let (method, target) = (words.next()?, words.next()?.replace(HOST, &host()));
    let version = match words.next()? {
        "1.0" => Version::HTTP_10,
        "2" => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let mut builder = Request::builder()
        .method(method)
        .uri(target)
        .version(version);
    for line in lines.take(200) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        builder = builder.header(name, header_value(line[colon + 1..].trim_ascii())?);
    }
    Some(builder.body(()).ok()?.into_parts().0)
}

fn header_value(bytes: &[u8]) -> Option<HeaderValue> {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let text = text.replace(HOST, &host()).replace(TOKEN, good_token());
            HeaderValue::from_str(&text).ok()
        }
        Err(_) => HeaderValue::from_bytes(bytes).ok(),
    }
}

fn host() -> String {
    format!("{ENDPOINT}.{SUFFIX}")
}

fn good_token() -> &'static str {
    static TOKEN: OnceLock<String> = OnceLock::new();
    TOKEN.get_or_init(|| {
        keys().mint(&Claims {
            endpoint: EndpointId::parse(ENDPOINT).expect("endpoint"),
            ports: vec![PortRange::single(8080), PortRange::from((9000, 9010))],
            expires_s: NOW.0 / 1000 + 60,
            kind: TokenKind::Http,
        })
    })
}

fn assert_fit_for_app(headers: &HeaderMap) {
    // A client may put its token where it is none, as into a cookie, or a subprotocol of its own: that is its affair.
    for name in headers.keys() {
        assert!(!name.as_str().starts_with("x-aws-proxy-"), "{name}");
    }
    for once in [header::HOST, headers::REQUEST_ID] {
        assert_eq!(headers.get_all(&once).iter().count(), 1, "{once}");
    }
    assert_eq!(headers[headers::REQUEST_ID], "id");
    for name in [
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "proxy-authorization",
        "expect",
    ] {
        assert!(!headers.contains_key(name), "{name}");
    }
    let connection = headers.get(header::CONNECTION);
    assert!(connection.is_none_or(|value| value == "te" || value == "upgrade"));
    assert!(headers.get_all(header::COOKIE).iter().count() <= 1);
    assert_no_offer(headers);
}

fn assert_no_offer(headers: &HeaderMap) {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    for name in lines
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    {
        let name = name.trim_ascii();
        assert_ne!(name, b"lambda-microvms", "the marker reaches the app");
        assert!(
            !name.starts_with(AUTHENTICATION.as_bytes()),
            "a token reaches the app"
        );
    }
}
