//! The Authorization header of a SigV4 request, taken apart.

use super::{ALGORITHM, SigV4Error, TERMINATOR};

/// What the header says; nothing in it is proven yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization<'a> {
    /// Which secret signed.
    pub access_key_id: &'a str,
    /// The day that the signing key is for, `yyyymmdd`.
    pub date: &'a str,
    /// The region that it is for.
    pub region: &'a str,
    /// The service that it is for.
    pub service: &'a str,
    /// The signed headers: lower-case, sorted, none twice.
    pub signed_headers: Vec<&'a str>,
    /// The signature.
    pub signature: [u8; 32],
}

impl<'a> Authorization<'a> {
    /// Parses `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`, with or without the
    /// spaces after the commas.
    ///
    /// # Errors
    /// [`SigV4Error::Incomplete`] when it is anything else.
    pub fn parse(header: &'a str) -> Result<Self, SigV4Error> {
        let fields = header
            .trim()
            .strip_prefix(ALGORITHM)
            .filter(|rest| rest.starts_with([' ', '\t']))
            .ok_or(SigV4Error::Incomplete(
                "Authorization header requires the algorithm 'AWS4-HMAC-SHA256'.",
            ))?;
        let mut credential = None;
        let mut signed_headers = None;
        let mut signature = None;
        for field in fields.split(',') {
            let (name, value) = field.trim().split_once('=').ok_or(SigV4Error::Incomplete(
                "Authorization header parameters must be of the form name=value.",
            ))?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(SigV4Error::Incomplete(
                    "Authorization header parameters must not be repeated.",
                ));
            }
        }
        let credential = credential.ok_or(SigV4Error::Incomplete(
            "Authorization header requires 'Credential' parameter.",
        ))?;
        let signed_headers = signed_headers.ok_or(SigV4Error::Incomplete(
            "Authorization header requires 'SignedHeaders' parameter.",
        ))?;
        let signature = signature.ok_or(SigV4Error::Incomplete(
            "Authorization header requires 'Signature' parameter.",
        ))?;
        let [access_key_id, date, region, service] = parse_credential(credential)?;
        Ok(Self {
            access_key_id,
            date,
            region,
            service,
            signed_headers: parse_signed_headers(signed_headers)?,
            signature: parse_signature(signature)?,
        })
    }
}

fn parse_credential(credential: &str) -> Result<[&str; 4], SigV4Error> {
    let parts: Vec<&str> = credential.split('/').collect();
    match parts.as_slice() {
        [key, date, region, service, TERMINATOR] if !key.is_empty() => {
            Ok([key, date, region, service])
        }
        _ => Err(SigV4Error::Incomplete(
            "Credential must have exactly 5 slash-delimited elements, e.g. \
             keyid/date/region/service/aws4_request.",
        )),
    }
}

/// Sorted without repetition also bounds what canonicalising costs by the size of the request.
fn parse_signed_headers(list: &str) -> Result<Vec<&str>, SigV4Error> {
    let names: Vec<&str> = list.split(';').collect();
    let lower_case = names
        .iter()
        .all(|name| !name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase()));
    if !lower_case || !names.is_sorted_by(|a, b| a < b) {
        return Err(SigV4Error::Incomplete(
            "'SignedHeaders' must be lower-case, sorted, and without repetition.",
        ));
    }
    for required in ["host", "x-amz-date"] {
        if !names.contains(&required) {
            return Err(SigV4Error::Incomplete(
                "'host' and 'x-amz-date' must be among the signed headers.",
            ));
        }
    }
    Ok(names)
}

fn parse_signature(signature: &str) -> Result<[u8; 32], SigV4Error> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(signature, &mut bytes)
        .map_err(|_| SigV4Error::Incomplete("'Signature' must be 64 hexadecimal digits."))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(separator: &str) -> String {
        let signature = "ab".repeat(32);
        [
            "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/lambda/aws4_request",
            "SignedHeaders=host;x-amz-date",
            &format!("Signature={signature}"),
        ]
        .join(separator)
    }

    #[test]
    fn both_separators_are_understood() {
        for separator in [", ", ",", ",   "] {
            let header = header(separator);
            let parsed = Authorization::parse(&header).unwrap();
            assert_eq!(parsed.access_key_id, "AK");
            assert_eq!(parsed.date, "20260101");
            assert_eq!(parsed.region, "us-east-1");
            assert_eq!(parsed.service, "lambda");
            assert_eq!(parsed.signed_headers, ["host", "x-amz-date"]);
            assert_eq!(parsed.signature, [0xab; 32]);
        }
    }

    #[test]
    fn what_is_not_a_whole_signature_is_incomplete() {
        let good = header(", ");
        for (from, to) in [
            ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
            ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256"),
            ("Credential=", "Credentials="),
            ("AK/", "/"),
            ("AK/", "A/K/"),
            ("aws4_request", "aws5_request"),
            ("Credential=", "Signature=00, Credential="),
            ("SignedHeaders=", "Signed="),
            ("host;", ""),
            (";x-amz-date", ""),
            ("host;x-amz-date", "x-amz-date;host"),
            ("host;", "host;host;"),
            ("host;", ";host;"),
            ("host;", "Host;host;"),
            ("Signature=ab", "Signature=a"),
            ("Signature=ab", "Signature=xy"),
            ("Signature=", "Signature"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(good, bad);
            assert!(
                matches!(Authorization::parse(&bad), Err(SigV4Error::Incomplete(_))),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in any::<String>(), tail in "[ -~]{0,80}") {
            let _ = Authorization::parse(&text);
            let _ = Authorization::parse(&format!("AWS4-HMAC-SHA256 {tail}"));
            let _ = Authorization::parse(&format!("{},{tail}", header(",")));
        }
    }
}
