//! The canonical form of a request: the one text that client and server both hash.

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderName;
use http::header::HOST;
use http::request::Parts;
use percent_encoding::{
    AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode,
};

/// Says how the body enters the signature.
pub(super) const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
/// The payload hash of a client that does not sign the body.
pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// The canonical request; `signed_headers` sorted and lower-case.
pub(super) fn canonical_request(
    parts: &Parts,
    signed_headers: &[&str],
    payload_hash: &str,
) -> Vec<u8> {
    let mut canonical = Vec::with_capacity(1024);
    let mut line = |bytes: &[u8]| {
        canonical.extend_from_slice(bytes);
        canonical.push(b'\n');
    };
    line(parts.method.as_str().as_bytes());
    line(canonical_path(parts.uri.path()).as_bytes());
    line(canonical_query(parts.uri.query().unwrap_or_default()).as_bytes());
    for name in signed_headers {
        let value = canonical_header(parts, name);
        line(&[name.as_bytes(), b":", &value].concat());
    }
    line(b"");
    line(signed_headers.join(";").as_bytes());
    canonical.extend_from_slice(payload_hash.as_bytes());
    canonical
}

/// The path as sent, without empty and dot segments, encoded once more: the rule of every service
/// but S3.
fn canonical_path(raw: &str) -> String {
    let mut kept = Vec::new();
    for segment in raw.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    let mut path = format!("/{}", kept.join("/"));
    if raw.ends_with('/') && !kept.is_empty() {
        path.push('/');
    }
    utf8_percent_encode(&path, RESERVED_IN_PATH).to_string()
}

/// Names and values decoded, encoded in the one way, and sorted.
fn canonical_query(raw: &str) -> String {
    let encode = |text: &str| {
        let decoded: Vec<u8> = percent_decode_str(text).collect();
        percent_encode(&decoded, RESERVED).to_string()
    };
    let mut pairs: Vec<(String, String)> = raw
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (encode(key), encode(value)))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join("&")
}

/// All values of a header, each without needless white space, joined by commas. An absent header
/// is empty, so that a signature over it does not match.
fn canonical_header(parts: &Parts, name: &str) -> Vec<u8> {
    let mut values = parts.headers.get_all(name).iter().peekable();
    if name == HOST.as_str() && values.peek().is_none() {
        // HTTP/2 carries it as the authority.
        let authority = parts.uri.authority().map_or("", |host| host.as_str());
        return authority.as_bytes().to_vec();
    }
    let values: Vec<Vec<u8>> = values
        .map(|value| {
            let words: Vec<&[u8]> = value
                .as_bytes()
                .split(u8::is_ascii_whitespace)
                .filter(|word| !word.is_empty())
                .collect();
            words.join(&b' ')
        })
        .collect();
    values.join(&b',')
}

/// SHA-256 as lower-case hexadecimal digits.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_normalised_and_encoded_once_more() {
        for (raw, canonical) in [
            ("", "/"),
            ("/", "/"),
            ("//a//b/", "/a/b/"),
            ("/a/./b/../c", "/a/c"),
            ("/..", "/"),
            ("/x/arn%3Aaws", "/x/arn%253Aaws"),
            ("/x/arn:aws", "/x/arn%3Aaws"),
            ("/~-_.", "/~-_."),
        ] {
            assert_eq!(canonical_path(raw), canonical, "{raw}");
        }
    }

    #[test]
    fn a_query_is_sorted_and_encoded_in_one_way() {
        for (raw, canonical) in [
            ("", ""),
            ("b=2&a=1", "a=1&b=2"),
            ("a=2&a=1", "a=1&a=2"),
            ("flag", "flag="),
            ("a=%3a%7E:&b=x%20y+z", "a=%3A~%3A&b=x%20y%2Bz"),
            ("t=a==", "t=a%3D%3D"),
        ] {
            assert_eq!(canonical_query(raw), canonical, "{raw}");
        }
    }
}
