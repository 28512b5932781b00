//! SigV4 against AWS's published examples, and against requests that botocore signed.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic as it may"
)]

use dormouse_api::ApiError;
use dormouse_api::sigv4::{Scope, SigV4Error, sign, verify};
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use secrecy::SecretString;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

const KEY_ID: &str = "AKIDEXAMPLE";
const SKEW: Duration = Duration::from_secs(15 * 60);
const LAMBDA: Scope<'_> = Scope {
    region: "us-east-1",
    service: "lambda",
};

fn secret() -> SecretString {
    "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()
}

fn lookup(key: &str) -> Option<SecretString> {
    (key == KEY_ID).then(secret)
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn parts(method: &Method, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn authorization(parts: &Parts) -> &str {
    parts.headers[AUTHORIZATION].to_str().unwrap()
}

/// A signed request of our own, its body, and the time of signing.
fn signed() -> (Parts, &'static [u8], Timestamp) {
    let now = time("2026-11-23T21:44:05Z");
    let body = br#"{"expirationInMinutes":5}"#;
    let mut parts = parts(
        &Method::POST,
        "http://localhost:9400/2025-09-09/microvms/a%3Ab/auth-token?b=2&a=%20",
        &[("content-type", "application/json"), ("x-other", "1")],
    );
    sign(&mut parts, body, KEY_ID, &secret(), LAMBDA, now).unwrap();
    (parts, body, now)
}

fn check(parts: &Parts, body: &[u8], now: Timestamp) -> Result<String, SigV4Error> {
    verify(parts, body, LAMBDA, now, SKEW, lookup).map(|key| key.to_string())
}

#[test]
fn published_examples_have_their_published_signatures() {
    let now = time("2015-08-30T12:36:00Z");
    let examples = [
        (
            parts(&Method::GET, "/", &[("host", "example.amazonaws.com")]),
            "service",
            "SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            parts(
                &Method::GET,
                "/?Action=ListUsers&Version=2010-05-08",
                &[
                    ("host", "iam.amazonaws.com"),
                    (
                        "content-type",
                        "application/x-www-form-urlencoded; charset=utf-8",
                    ),
                ],
            ),
            "iam",
            "SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
        ),
    ];
    for (mut parts, service, expected) in examples {
        let scope = Scope {
            region: "us-east-1",
            service,
        };
        sign(&mut parts, b"", KEY_ID, &secret(), scope, now).unwrap();
        let header = authorization(&parts);
        assert!(header.ends_with(expected), "{header}");
        verify(&parts, b"", scope, now, SKEW, lookup).unwrap();
    }
}

#[derive(Deserialize)]
struct Golden {
    name: String,
    method: String,
    uri: String,
    headers: BTreeMap<String, String>,
    body: String,
}

fn golden() -> Vec<(String, Parts, Vec<u8>)> {
    let all: Vec<Golden> =
        serde_json::from_str(include_str!("fixtures/signed_requests.json")).unwrap();
    all.into_iter()
        .map(|golden| {
            let method = golden.method.parse().unwrap();
            let headers: Vec<(&str, &str)> = golden
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let parts = parts(&method, &golden.uri, &headers);
            (golden.name, parts, golden.body.into_bytes())
        })
        .collect()
}

#[test]
fn botocores_signatures_are_right_and_cover_the_request() {
    let now = time("2026-11-23T21:50:00Z");
    for (name, parts, body) in golden() {
        assert_eq!(check(&parts, &body, now), Ok(KEY_ID.to_owned()), "{name}");

        let other_body = [body.as_slice(), b" "].concat();
        assert_eq!(
            check(&parts, &other_body, now),
            Err(SigV4Error::Mismatch),
            "{name}"
        );
        let mut other_path = parts.clone();
        let uri = parts.uri.to_string().replacen("2025", "2026", 1);
        other_path.uri = uri.replacen("2017", "2018", 1).parse().unwrap();
        assert_eq!(
            check(&other_path, &body, now),
            Err(SigV4Error::Mismatch),
            "{name}"
        );
        let mut other_host = parts.clone();
        let host = HeaderValue::from_static("127.0.0.1:9401");
        other_host.headers.insert(HOST, host);
        assert_eq!(
            check(&other_host, &body, now),
            Err(SigV4Error::Mismatch),
            "{name}"
        );
    }
}

#[test]
fn a_header_without_spaces_after_its_commas_is_the_same_header() {
    let now = time("2026-11-23T21:44:05Z");
    for (name, mut parts, body) in golden() {
        let header = authorization(&parts).replace(", ", ",");
        let header = HeaderValue::from_str(&header).unwrap();
        parts.headers.insert(AUTHORIZATION, header);
        assert_eq!(check(&parts, &body, now), Ok(KEY_ID.to_owned()), "{name}");
    }
}

#[test]
fn what_we_sign_we_accept() {
    let (parts, body, now) = signed();
    assert_eq!(check(&parts, body, now), Ok(KEY_ID.to_owned()));
}

#[test]
fn the_host_of_http2_is_its_authority() {
    let (mut parts, body, now) = signed();
    parts.headers.remove(HOST);
    assert_eq!(check(&parts, body, now), Ok(KEY_ID.to_owned()));
}

#[test]
fn any_change_to_what_is_signed_is_noticed() {
    let (parts, body, now) = signed();
    let refused = |change: fn(&mut Parts)| {
        let mut changed = parts.clone();
        change(&mut changed);
        assert_eq!(check(&changed, body, now), Err(SigV4Error::Mismatch));
    };
    refused(|p| p.method = Method::PUT);
    refused(|p| p.uri = p.uri.to_string().replace("a%3Ab", "a%3Ac").parse().unwrap());
    refused(|p| p.uri = p.uri.to_string().replace("b=2", "b=3").parse().unwrap());
    refused(|p| p.uri = p.uri.to_string().replace("&a=", "&a=&a=").parse().unwrap());
    refused(|p| {
        let text = HeaderValue::from_static("text/plain");
        p.headers.insert("content-type", text);
    });
    refused(|p| {
        p.headers.remove("content-type");
    });
    refused(|p| {
        let date = HeaderValue::from_static("20261123T214406Z");
        p.headers.insert("x-amz-date", date);
    });
}

#[test]
fn what_is_not_signed_may_change() {
    let (mut parts, body, now) = signed();
    for name in ["x-other", "x-amz-security-token", "user-agent"] {
        let name = HeaderName::from_static(name);
        parts.headers.insert(name, HeaderValue::from_static("new"));
    }
    assert_eq!(check(&parts, body, now), Ok(KEY_ID.to_owned()));
}

#[test]
fn a_payload_hash_is_the_bodys_or_none() {
    let now = time("2026-11-23T21:44:05Z");
    let with_hash = |hash: &str| {
        let mut parts = parts(
            &Method::POST,
            "/2025-09-09/microvms",
            &[("host", "localhost"), ("x-amz-content-sha256", hash)],
        );
        sign(&mut parts, b"abc", KEY_ID, &secret(), LAMBDA, now).unwrap();
        parts
    };
    let abc = with_hash("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert!(check(&abc, b"abc", now).is_ok());
    assert_eq!(check(&abc, b"abd", now), Err(SigV4Error::Mismatch));
    let unsigned = with_hash("UNSIGNED-PAYLOAD");
    assert!(check(&unsigned, b"anything", now).is_ok());
    let streaming = with_hash("STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
    assert_eq!(check(&streaming, b"abc", now), Err(SigV4Error::Mismatch));
}

#[test]
fn a_signature_lasts_as_long_as_the_clocks_may_differ() {
    let (parts, body, now) = signed();
    let skew = SignedDuration::try_from(SKEW).unwrap();
    let second = SignedDuration::from_secs(1);
    assert!(check(&parts, body, now + skew).is_ok());
    assert!(check(&parts, body, now - skew).is_ok());
    let expired = check(&parts, body, now + skew + second).unwrap_err();
    assert_eq!(
        expired.to_string(),
        "Signature expired: 20261123T214405Z is now earlier than 20261123T214406Z \
         (20261123T215906Z - 15 min.)"
    );
    let early = check(&parts, body, now - skew - second).unwrap_err();
    assert_eq!(
        early.to_string(),
        "Signature not yet current: 20261123T214405Z is still later than 20261123T214404Z \
         (20261123T212904Z + 15 min.)"
    );
    // The ends of time are no reason to fail otherwise.
    assert!(check(&parts, body, Timestamp::MIN).is_err());
    assert!(check(&parts, body, Timestamp::MAX).is_err());
}

#[test]
fn a_signature_is_for_one_region_service_and_day() {
    let (parts, body, now) = signed();
    let elsewhere = Scope {
        region: "eu-west-1",
        ..LAMBDA
    };
    let s3 = Scope {
        service: "s3",
        ..LAMBDA
    };
    let check_for = |scope| verify(&parts, body, scope, now, SKEW, lookup).unwrap_err();
    assert_eq!(check_for(elsewhere), SigV4Error::WrongRegion);
    assert!(matches!(check_for(s3), SigV4Error::WrongService { .. }));
    let mut other_day = parts.clone();
    let header = authorization(&parts).replace("/20261123/", "/20261122/");
    let header = HeaderValue::from_str(&header).unwrap();
    other_day.headers.insert(AUTHORIZATION, header);
    assert!(matches!(
        check(&other_day, body, now),
        Err(SigV4Error::WrongDate { .. })
    ));
}

#[test]
fn each_refusal_has_awss_shape() {
    let (good, body, now) = signed();
    let mut unsigned = good.clone();
    unsigned.headers.remove(AUTHORIZATION);
    let mut basic = good.clone();
    let header = HeaderValue::from_static("Basic eDp5");
    basic.headers.insert(AUTHORIZATION, header);
    let mut undated = good.clone();
    undated.headers.remove("x-amz-date");

    let of = |parts: &Parts, body: &[u8]| check(parts, body, now).unwrap_err();
    let unknown = verify(&good, body, LAMBDA, now, SKEW, |_| None).unwrap_err();
    let wrong_secret = verify(&good, body, LAMBDA, now, SKEW, |_| Some("x".into())).unwrap_err();
    for (error, name) in [
        (of(&unsigned, body), "MissingAuthenticationTokenException"),
        (of(&basic, body), "IncompleteSignatureException"),
        (of(&undated, body), "IncompleteSignatureException"),
        (unknown, "UnrecognizedClientException"),
        (wrong_secret, "InvalidSignatureException"),
        (of(&good, b"other"), "InvalidSignatureException"),
    ] {
        let message = error.to_string();
        let response = ApiError::from(error).into_response(uuid::Uuid::nil());
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["x-amzn-errortype"], name);
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body, serde_json::json!({ "message": message }));
    }
}

#[test]
fn a_date_has_one_spelling() {
    let (good, body, now) = signed();
    for bad in [
        "2026-11-23T21:44:05Z",
        "20261123T214405",
        "20261123T214460Z",
        "20261323T214405Z",
        "20261123 214405Z",
        "+2026123T214405Z",
        "Mon, 23 Nov 2026 21:44:05 GMT",
        "",
    ] {
        let mut parts = good.clone();
        let date = HeaderValue::from_str(bad).unwrap();
        parts.headers.insert("x-amz-date", date);
        assert!(
            matches!(check(&parts, body, now), Err(SigV4Error::Incomplete(_))),
            "{bad}"
        );
    }
}

proptest! {
    #[test]
    fn signing_and_verifying_agree(
        path in "(/[!$-.0-;=@-Z_a-z~%]{0,8}){1,4}",
        query in "[!$-;=?-Z_a-z~%&]{0,30}",
        value in "[\\t -~]{0,20}",
        body in any::<Vec<u8>>(),
    ) {
        let now = time("2026-11-23T21:44:05Z");
        let uri = format!("http://localhost{path}?{query}");
        let mut parts = parts(&Method::POST, &uri, &[("x-amz-meta", &value)]);
        sign(&mut parts, &body, KEY_ID, &secret(), LAMBDA, now).unwrap();
        prop_assert!(check(&parts, &body, now).is_ok());
    }

    #[test]
    fn verification_never_panics(header in any::<Vec<u8>>(), date in any::<Vec<u8>>(), body in any::<Vec<u8>>()) {
        let (mut parts, _, now) = signed();
        if let Ok(date) = HeaderValue::from_bytes(&date) {
            parts.headers.insert("x-amz-date", date);
        }
        prop_assert!(check(&parts, &body, now).is_err());
        if let Ok(header) = HeaderValue::from_bytes(&header) {
            parts.headers.insert(AUTHORIZATION, header);
        }
        prop_assert!(check(&parts, &body, now).is_err());
    }
}
