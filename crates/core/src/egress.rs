//! Where connections that a MicroVM opens may go: settled at its launch, for its whole life.

use crate::cidr::Cidr;
use serde::{Deserialize, Serialize};

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
