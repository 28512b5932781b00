//! Where connections that a MicroVM opens may go: settled at its launch, for its whole life.

use crate::cidr::Cidr;
use serde::{Deserialize, Serialize};

/// What is not the internet, on any host. The documentation ranges (TEST-NET) are not in it: test networks use
/// them as if they were public.
pub const NOT_PUBLIC: [Cidr; 12] = [
    Cidr::literal([0, 0, 0, 0], 8),        // this network
    Cidr::literal([10, 0, 0, 0], 8),       // private
    Cidr::literal([100, 64, 0, 0], 10),    // carrier-grade NAT
    Cidr::literal([127, 0, 0, 0], 8),      // loopback
    Cidr::literal([168, 63, 129, 16], 32), // Azure's own service for its machines
    Cidr::literal([169, 254, 0, 0], 16),   // link-local, with the metadata services of clouds
    Cidr::literal([172, 16, 0, 0], 12),    // private
    Cidr::literal([192, 0, 0, 0], 24), // protocol assignments, with a metadata service of Oracle's
    Cidr::literal([192, 168, 0, 0], 16), // private
    Cidr::literal([198, 18, 0, 0], 15), // benchmarks: the links of slots
    Cidr::literal([224, 0, 0, 0], 4),  // multicast
    Cidr::literal([240, 0, 0, 0], 4),  // reserved and broadcast
];

/// Where a MicroVM may open connections to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// Whether to all that the host's configuration does not block.
    pub internet: bool,
    /// Ranges beside that, blocked or not.
    pub ranges: Vec<Cidr>,
}

impl Egress {
    /// To nothing at all; not even names can be looked up.
    pub const NONE: Self = Self {
        internet: false,
        ranges: Vec::new(),
    };

    /// To all that the host's configuration does not block.
    #[must_use]
    pub const fn internet() -> Self {
        Self {
            internet: true,
            ranges: Vec::new(),
        }
    }

    /// Whether it lets nothing through.
    #[must_use]
    pub fn is_none(&self) -> bool {
        !self.internet && self.ranges.is_empty()
    }
}

/// What a MicroVM has unless its connectors say otherwise.
impl Default for Egress {
    fn default() -> Self {
        Self::internet()
    }
}
