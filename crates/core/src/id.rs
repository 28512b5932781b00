//! Identifiers and ARNs, parsed once at the edge so that the inside never sees a malformed one.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Why a string is not an image ARN. The two texts are AWS's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// Not an ARN at all.
    #[error("Invalid ARN format: {0}")]
    Malformed(String),
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

string_id!(
    /// A MicroVM: `microvm-` and a lower-case UUID.
    MicrovmId
);
string_id!(
    /// One build of one image version: a UUID.
    BuildId
);
string_id!(
    /// A network connector of an account: `nc-` and a lower-case UUID.
    ConnectorId
);
string_id!(
    /// An AWS-style account: twelve digits.
    AccountId
);

impl MicrovmId {
    const PREFIX: &str = "microvm-";

    /// Names a MicroVM from a random UUID.
    #[must_use]
    pub fn new(random: Uuid) -> Self {
        Self(format!("{}{random}", Self::PREFIX))
    }

    /// Accepts exactly what [`MicrovmId::new`] makes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let uuid = text.strip_prefix(Self::PREFIX)?;
        is_canonical_uuid(uuid).then(|| Self(text.to_owned()))
    }
}

/// The first label of a MicroVM's endpoint: a UUID that is not the MicroVM's own, as on AWS.
///
/// Each request names one, so it is kept as a number, which is copied and compared at no cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointId(Uuid);

impl EndpointId {
    /// Names an endpoint from a random UUID.
    #[must_use]
    pub fn new(random: Uuid) -> Self {
        Self(random)
    }

    /// Accepts exactly what [`EndpointId`] is displayed as.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if !is_canonical_uuid(text) {
            return None;
        }
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl TryFrom<String> for EndpointId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("an endpoint id is a UUID in lower case")
    }
}

impl From<EndpointId> for String {
    fn from(id: EndpointId) -> Self {
        id.to_string()
    }
}

impl BuildId {
    /// Names a build from a random UUID.
    #[must_use]
    pub fn new(random: Uuid) -> Self {
        Self(random.to_string())
    }

    /// Accepts exactly what [`BuildId::new`] makes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_canonical_uuid(text).then(|| Self(text.to_owned()))
    }
}

impl ConnectorId {
    const PREFIX: &str = "nc-";

    /// Names a connector from a random UUID.
    #[must_use]
    pub fn new(random: Uuid) -> Self {
        Self(format!("{}{random}", Self::PREFIX))
    }

    /// Accepts exactly what [`ConnectorId::new`] makes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let uuid = text.strip_prefix(Self::PREFIX)?;
        is_canonical_uuid(uuid).then(|| Self(text.to_owned()))
    }
}

impl AccountId {
    /// Accepts twelve ASCII digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
        valid.then(|| Self(text.to_owned()))
    }
}

fn is_canonical_uuid(text: &str) -> bool {
    // Only one spelling may name a thing: no braces, no upper case, no missing dashes.
    let fits = |(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

/// `arn:aws:lambda:REGION:ACCOUNT:microvm-image:NAME`; the account of a managed image is `aws`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageArn {
    /// Region, as in `us-east-1`.
    pub region: String,
    /// Twelve digits, or `aws` for a managed image.
    pub account: String,
    /// The image's name within its account.
    pub name: String,
}

impl ImageArn {
    /// The account part of every managed image.
    pub const MANAGED_ACCOUNT: &str = "aws";

    /// Parses the colon form; AWS refuses every other one.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let malformed = || ArnError::Malformed(text.to_owned());
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [
                "arn",
                "aws",
                "lambda",
                region,
                account,
                "microvm-image",
                name,
            ] if !region.is_empty() && !account.is_empty() && is_image_name(name) => Ok(Self {
                region: (*region).to_owned(),
                account: (*account).to_owned(),
                name: (*name).to_owned(),
            }),
            _ => Err(malformed()),
        }
    }

    /// Whether this names an image that Dormouse provides rather than an account's own.
    #[must_use]
    pub fn is_managed(&self) -> bool {
        self.account == Self::MANAGED_ACCOUNT
    }
}

fn is_image_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl fmt::Display for ImageArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "arn:aws:lambda:{}:{}:microvm-image:{}",
            self.region, self.account, self.name
        )
    }
}

impl TryFrom<String> for ImageArn {
    type Error = ArnError;

    fn try_from(text: String) -> Result<Self, ArnError> {
        Self::parse(&text)
    }
}

impl From<ImageArn> for String {
    fn from(arn: ImageArn) -> Self {
        arn.to_string()
    }
}

/// `arn:aws:lambda:REGION:ACCOUNT:network-connector:ID`, and `:VERSION` where it is about one of its
/// versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorArn {
    /// Region, as in `us-east-1`.
    pub region: String,
    /// The account that it belongs to.
    pub account: AccountId,
    /// The connector.
    pub id: ConnectorId,
    /// The one version that is meant, from 1; none for the connector as such.
    pub version: Option<u32>,
}

impl ConnectorArn {
    /// Parses the ARN of an account's connector; a managed one has another form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (parts, version) = match parts.as_slice() {
            [parts @ .., version] if parts.len() == 7 => (parts, Some(parse_version(version)?)),
            parts => (parts, None),
        };
        match parts {
            [
                "arn",
                "aws",
                "lambda",
                region,
                account,
                "network-connector",
                id,
            ] if !region.is_empty() => Some(Self {
                region: (*region).to_owned(),
                account: AccountId::parse(account)?,
                id: ConnectorId::parse(id)?,
                version,
            }),
            _ => None,
        }
    }

    /// The ARN of one of its versions.
    #[must_use]
    pub fn at(&self, version: u32) -> Self {
        Self {
            version: Some(version),
            ..self.clone()
        }
    }
}

fn parse_version(text: &str) -> Option<u32> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    canonical.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for ConnectorArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            region,
            account,
            id,
            version,
        } = self;
        write!(
            f,
            "arn:aws:lambda:{region}:{account}:network-connector:{id}"
        )?;
        match version {
            Some(version) => write!(f, ":{version}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_arn_round_trips() {
        let text = "arn:aws:lambda:us-east-1:000000000000:microvm-image:my_image-1";
        assert_eq!(
            ImageArn::parse(text).map(|arn| arn.to_string()),
            Ok(text.to_owned())
        );
    }

    #[test]
    fn only_the_colon_form_is_an_image_arn() {
        for bad in [
            "",
            "my-image",
            "arn:aws:lambda:us-east-1:000000000000:microvm-image/my-image",
            "arn:aws:lambda:us-east-1:000000000000:microvm-image:",
            "arn:aws:lambda:us-east-1:000000000000:microvm-image:a b",
            "arn:aws:lambda:us-east-1:000000000000:microvm-image:a:b",
            "arn:aws:lambda::000000000000:microvm-image:a",
        ] {
            assert!(ImageArn::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_connector_arn_round_trips() {
        let plain = "arn:aws:lambda:us-east-1:000000000000:network-connector:\
                     nc-a991cd0b-3321-3e2c-a982-d5c4db52b17a";
        let parsed = ConnectorArn::parse(plain).expect("arn");
        assert_eq!(parsed.to_string(), plain);
        assert_eq!(parsed.at(12).to_string(), format!("{plain}:12"));
        assert_eq!(
            ConnectorArn::parse(&format!("{plain}:12")),
            Some(parsed.at(12))
        );
        for bad in [
            "",
            "nc-a991cd0b-3321-3e2c-a982-d5c4db52b17a",
            "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS",
            "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1",
            &format!("{plain}:"),
            &format!("{plain}:0"),
            &format!("{plain}:01"),
            &format!("{plain}:+1"),
            &format!("{plain}:1:1"),
            &format!("{plain}:99999999999"),
            &plain.replace("us-east-1", ""),
        ] {
            assert_eq!(ConnectorArn::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_identifier_has_one_spelling() {
        let uuid = "a991cd0b-3321-3e2c-a982-d5c4db52b17a";
        assert!(MicrovmId::parse(&format!("microvm-{uuid}")).is_some());
        assert!(EndpointId::parse(uuid).is_some());
        for bad in [
            uuid.to_uppercase(),
            uuid.replace('-', ""),
            format!("{{{uuid}}}"),
            format!("microvm-{}", uuid.to_uppercase()),
            format!("../{uuid}"),
        ] {
            assert!(MicrovmId::parse(&bad).is_none(), "{bad:?}");
            assert!(EndpointId::parse(&bad).is_none(), "{bad:?}");
        }
    }
}
