//! The proxy's way into MicroVMs: this host's node.

use crate::config::LimitConfig;
use async_trait::async_trait;
use dormouse_core::EndpointId;
use dormouse_ingress::{OpenError, Stream, Target, Upstreams};
use dormouse_node::driver::chain;
use dormouse_node::node::{self, Node};
use std::sync::Arc;

/// The MicroVMs of this host as the proxy sees them.
#[derive(Debug)]
pub(crate) struct LocalUpstreams {
    pub(crate) node: Arc<Node>,
    pub(crate) limits: LimitConfig,
}

#[async_trait]
impl Upstreams for LocalUpstreams {
    fn target(&self, endpoint: &EndpointId) -> Option<Target> {
        let vm = self.node.glance(endpoint)?;
        Some(Target {
            limits: self.limits.of(vm.memory_mib),
            microvm: vm.id,
            awake: vm.is_open,
        })
    }

    async fn open(&self, endpoint: &EndpointId, port: u16) -> Result<Box<dyn Stream>, OpenError> {
        match self.node.open(endpoint, port).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(match error {
                node::OpenError::Ended => OpenError::Ended,
                node::OpenError::Asleep => OpenError::Asleep,
                node::OpenError::WakeFailed => OpenError::WakeFailed,
                node::OpenError::NotListening => OpenError::NotListening,
                node::OpenError::Overloaded => OpenError::Overloaded,
                node::OpenError::Unreachable(cause) => {
                    tracing::info!(%endpoint, error = chain(&cause), "microvm does not answer");
                    OpenError::NotListening
                }
            }),
        }
    }
}
