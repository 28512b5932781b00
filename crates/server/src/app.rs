//! What every operation works with.

use crate::admission::Admission;
use crate::builds::Builds;
use crate::config::Config;
use crate::deletions::Deletions;
use crate::domains::CustomDomains;
use crate::headroom::Headroom;
use crate::throttle::{Refusals, Throttle};
use dormouse_api::page::PageKey;
use dormouse_core::{AccountId, EndpointId, ImageArn};
use dormouse_ingress::{Metrics, TokenKeys};
use dormouse_node::node::Node;
use dormouse_store::Store;
use std::sync::Arc;

/// The daemon, as its operations see it.
#[derive(Debug)]
pub(crate) struct App {
    /// The configuration.
    pub(crate) config: Config,
    /// Port on which the ingress really listens.
    pub(crate) ingress_port: u16,
    /// Images, versions, builds, MicroVMs.
    pub(crate) store: Store,
    /// The MicroVMs of this host.
    pub(crate) node: Arc<Node>,
    /// Image builds.
    pub(crate) builds: Arc<Builds>,
    /// Deletions of images and versions.
    pub(crate) deletions: Arc<Deletions>,
    /// Who may launch.
    pub(crate) admission: Arc<Admission>,
    /// What crosses endpoints.
    pub(crate) traffic: Metrics,
    /// Whether the host has room.
    pub(crate) headroom: Headroom,
    /// Who may call.
    pub(crate) throttle: Throttle,
    /// Who was refused how often.
    pub(crate) refusals: Refusals,
    /// Custom domains of MicroVMs.
    pub(crate) domains: Arc<CustomDomains>,
    /// What endpoint tokens are made with.
    pub(crate) tokens: Arc<TokenKeys>,
    /// What page tokens are signed with.
    pub(crate) pages: PageKey,
}

impl App {
    /// What clients connect to.
    pub(crate) fn endpoint(&self, id: &EndpointId) -> String {
        self.config.endpoint(id, self.ingress_port)
    }

    /// The ARN of an account's image.
    pub(crate) fn image_arn(&self, account: &AccountId, name: &str) -> ImageArn {
        ImageArn {
            region: self.config.region.clone(),
            account: account.to_string(),
            name: name.to_owned(),
        }
    }

    /// The ARN of a managed network connector.
    pub(crate) fn connector_arn(&self, name: &str) -> String {
        let region = &self.config.region;
        format!("arn:aws:lambda:{region}:aws:network-connector:aws-network-connector:{name}")
    }
}
