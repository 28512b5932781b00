//! The proxy's way into MicroVMs: this host's node.

use crate::config::LimitConfig;
use async_trait::async_trait;
use dormouse_core::EndpointId;
use dormouse_core::chain;
use dormouse_core::guest::ShellSpec;
use dormouse_ingress::{OpenError, Stream, Target, Upstreams, Visit};
use dormouse_node::gate::Lease;
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

    async fn enter(&self, endpoint: &EndpointId) -> Result<Arc<dyn Visit>, OpenError> {
        let lease = self
            .node
            .enter(endpoint)
            .await
            .map_err(|error| unopened(endpoint, error))?;
        Ok(Arc::new(LocalVisit {
            endpoint: *endpoint,
            lease,
        }))
    }
}

struct LocalVisit {
    endpoint: EndpointId,
    lease: Lease,
}

#[async_trait]
impl Visit for LocalVisit {
    fn run(&self) -> u64 {
        self.lease.run()
    }

    async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, OpenError> {
        let opened = self.lease.connect(port).await;
        let stream = opened.map_err(|error| unopened(&self.endpoint, error))?;
        Ok(Box::new(stream))
    }

    async fn shell(&self, spec: &ShellSpec) -> Result<Box<dyn Stream>, OpenError> {
        let opened = self.lease.shell(spec).await;
        let stream = opened.map_err(|error| unopened(&self.endpoint, error))?;
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
        node::OpenError::Gone => OpenError::Gone,
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
