//! The proxy's way into MicroVMs: this host's node.

use async_trait::async_trait;
use dormouse_core::EndpointId;
use dormouse_ingress::{OpenError, Stream, Upstreams, Visit};
use dormouse_node::driver::chain;
use dormouse_node::gate::Lease;
use dormouse_node::node::{self, Node};
use std::sync::Arc;

/// The MicroVMs of this host as the proxy sees them.
#[derive(Debug)]
pub(crate) struct LocalUpstreams(pub(crate) Arc<Node>);

#[async_trait]
impl Upstreams for LocalUpstreams {
    async fn enter(&self, endpoint: &EndpointId) -> Result<Box<dyn Visit>, OpenError> {
        let lease = self.0.enter(endpoint).await.map_err(told)?;
        Ok(Box::new(LocalVisit {
            endpoint: endpoint.clone(),
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
        match self.lease.connect(port).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                if let node::OpenError::Unreachable(cause) = &error {
                    let endpoint = &self.endpoint;
                    tracing::info!(%endpoint, error = chain(cause), "microvm does not answer");
                }
                Err(told(error))
            }
        }
    }
}

fn told(error: node::OpenError) -> OpenError {
    match error {
        node::OpenError::Ended => OpenError::Ended,
        node::OpenError::Asleep => OpenError::Asleep,
        node::OpenError::WakeFailed => OpenError::WakeFailed,
        node::OpenError::NotListening | node::OpenError::Unreachable(_) => OpenError::NotListening,
        node::OpenError::Gone => OpenError::Gone,
        node::OpenError::Overloaded => OpenError::Overloaded,
    }
}
