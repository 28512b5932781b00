//! IPv4 ranges in `address/prefix` form.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range of IPv4 addresses whose bits after the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    addr: Ipv4Addr,
    prefix: u8,
}

/// The text or numbers do not name a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 range such as 10.0.0.0/8")]
pub struct CidrError(String);

impl Cidr {
    /// A range known to be right when it is written down.
    ///
    /// # Panics
    /// When the prefix is longer than 32 or bits after it are set: in a constant, at compile time.
    #[must_use]
    pub const fn literal(octets: [u8; 4], prefix: u8) -> Self {
        assert!(prefix <= 32, "prefix too long");
        let bits = u32::from_be_bytes(octets);
        assert!(bits & !mask(prefix) == 0, "bits set after the prefix");
        let [a, b, c, d] = octets;
        Self {
            addr: Ipv4Addr::new(a, b, c, d),
            prefix,
        }
    }

    /// How many addresses the range has.
    #[must_use]
    pub fn addresses(self) -> u64 {
        1 << (32 - self.prefix)
    }

    /// Whether the two ranges share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        self.addr.to_bits() & shorter == other.addr.to_bits() & shorter
    }

    /// Whether `other` lies wholly within this range.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.overlaps(other)
    }

    /// The address at an index; none beyond the end.
    #[must_use]
    pub fn nth(self, index: u32) -> Option<Ipv4Addr> {
        (u64::from(index) < self.addresses())
            .then(|| Ipv4Addr::from_bits(self.addr.to_bits() + index))
    }
}

const fn mask(prefix: u8) -> u32 {
    match prefix {
        0 => 0,
        _ => u32::MAX << (32 - prefix),
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// Reads `address/prefix`, or a lone address as a range of one.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (addr, prefix) = text.split_once('/').unwrap_or((text, "32"));
            let addr: Ipv4Addr = addr.parse().ok()?;
            let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            (addr.to_bits() & !mask(prefix) == 0).then_some(Self { addr, prefix })
        };
        parse().ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(range: Cidr) -> Self {
        range.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn reads_ranges_and_refuses_what_is_none() {
        assert_eq!(cidr("10.0.0.0/8").to_string(), "10.0.0.0/8");
        assert_eq!(cidr("203.0.113.7").to_string(), "203.0.113.7/32");
        assert_eq!(cidr("0.0.0.0/0").addresses(), 1 << 32);
        for bad in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10/8",
            "::/0",
            "1.2.3.4/-1",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn knows_what_overlaps() {
        assert!(cidr("0.0.0.0/0").contains(cidr("198.18.0.0/15")));
        assert!(!cidr("198.18.0.0/16").contains(cidr("198.18.0.0/15")));
        assert!(cidr("198.18.0.0/16").overlaps(cidr("198.18.0.0/15")));
        assert!(!cidr("198.18.0.0/16").overlaps(cidr("198.19.0.0/16")));
    }

    #[test]
    fn counts_addresses_to_the_end_and_no_further() {
        assert_eq!(
            cidr("198.18.0.0/15").nth(131_071),
            Some(Ipv4Addr::new(198, 19, 255, 255))
        );
        assert_eq!(cidr("198.18.0.0/15").nth(131_072), None);
    }
}
