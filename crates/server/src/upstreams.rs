//! The proxy's way into MicroVMs: this host's node.

use async_trait::async_trait;
use dormouse_core::EndpointId;
use dormouse_core::guest::ShellSpec;
use dormouse_ingress::{OpenError, Stream, Upstreams};
use dormouse_node::driver::chain;
use dormouse_node::node::{self, Node};
use std::sync::Arc;

/// The MicroVMs of this host as the proxy sees them.
#[derive(Debug)]
pub(crate) struct LocalUpstreams(pub(crate) Arc<Node>);

#[async_trait]
impl Upstreams for LocalUpstreams {
    async fn open(&self, endpoint: &EndpointId, port: u16) -> Result<Box<dyn Stream>, OpenError> {
        let opened = self.0.open(endpoint, port).await;
        let stream = opened.map_err(|error| unopened(endpoint, error))?;
        Ok(Box::new(stream))
    }

    async fn shell(
        &self,
        endpoint: &EndpointId,
        spec: &ShellSpec,
    ) -> Result<Box<dyn Stream>, OpenError> {
        let opened = self.0.shell(endpoint, spec).await;
        let stream = opened.map_err(|error| unopened(endpoint, error))?;
        Ok(Box::new(stream))
    }
}

fn unopened(endpoint: &EndpointId, error: node::OpenError) -> OpenError {
    match error {
        node::OpenError::Ended => OpenError::Ended,
        node::OpenError::Asleep => OpenError::Asleep,
        node::OpenError::WakeFailed => OpenError::WakeFailed,
        node::OpenError::NotListening => OpenError::NotListening,
        node::OpenError::Overloaded => OpenError::Overloaded,
        node::OpenError::AgentTooOld => OpenError::AgentTooOld,
        node::OpenError::NoShell(cause) => {
            tracing::info!(%endpoint, error = chain(&cause), "no shell starts");
            OpenError::NoShell
        }
        node::OpenError::Unreachable(cause) => {
            tracing::info!(%endpoint, error = chain(&cause), "microvm does not answer");
            OpenError::NotListening
        }
    }
}
