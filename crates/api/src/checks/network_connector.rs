//! What the connectors' service demands beyond its model, in its own error and, where one was recorded, in
//! its words.

use crate::error::{ApiError, ErrorCode};
use crate::types::{ElasticIpType, NetworkConnectorConfiguration, NetworkProtocol};

/// A connector's own name is no ARN, though the model lets one pass.
///
/// # Errors
/// For an ARN; the text is our own.
pub fn network_connector_name(name: &str) -> Result<(), ApiError> {
    if name.starts_with("arn:") {
        return refuse("Name must be a name, not an ARN");
    }
    Ok(())
}

/// A configuration and a role with which a connector can be made here.
///
/// # Errors
/// For the first thing that is missing, or that this host cannot do: speak IPv6, lend a public address.
pub fn network_connector(
    configuration: &NetworkConnectorConfiguration,
    operator_role: Option<&str>,
) -> Result<(), ApiError> {
    let NetworkConnectorConfiguration::VpcEgressConfiguration(vpc) = configuration;
    if operator_role.is_none_or(str::is_empty) {
        return refuse("NetworkConnectorOperatorRole is required for VPC_EGRESS connector type");
    }
    if vpc.subnet_ids.is_none() {
        return refuse("SubnetIds is required for VPC_EGRESS connector type");
    }
    if vpc.associated_compute_resource_types.is_none() {
        return refuse("AssociatedComputeResourceTypes is required for VPC_EGRESS connector type");
    }
    match vpc.network_protocol {
        None => return refuse("NetworkProtocol is required for VPC_EGRESS connector type"),
        Some(NetworkProtocol::DualStack) => {
            return refuse("NetworkProtocol DualStack is not supported: MicroVMs speak IPv4");
        }
        Some(NetworkProtocol::IPv4) => {}
    }
    match vpc.elastic_ip_configuration.map(|ip| ip.kind) {
        Some(ElasticIpType::ServiceManaged) => {
            refuse("ElasticIpConfiguration ServiceManaged is not supported by this host")
        }
        Some(ElasticIpType::None) | None => Ok(()),
    }
}

fn refuse(message: &str) -> Result<(), ApiError> {
    Err(ApiError::new(ErrorCode::InvalidParameterValue, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        ComputeResourceType, ElasticIpConfiguration, NetworkConnectorVpcEgressConfiguration,
    };

    const ROLE: Option<&str> = Some("arn:aws:iam::000000000000:role/operator");

    fn whole() -> NetworkConnectorVpcEgressConfiguration {
        NetworkConnectorVpcEgressConfiguration {
            subnet_ids: Some(vec!["subnet-a".into()]),
            security_group_ids: None,
            network_protocol: Some(NetworkProtocol::IPv4),
            associated_compute_resource_types: Some(vec![ComputeResourceType::MicroVm]),
            elastic_ip_configuration: None,
        }
    }

    fn text(vpc: NetworkConnectorVpcEgressConfiguration, role: Option<&str>) -> String {
        let configuration = NetworkConnectorConfiguration::VpcEgressConfiguration(vpc);
        let error = network_connector(&configuration, role).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidParameterValue);
        error.message().unwrap().to_owned()
    }

    #[test]
    fn what_the_model_calls_optional_the_service_demands() {
        let configuration = NetworkConnectorConfiguration::VpcEgressConfiguration(whole());
        assert_eq!(network_connector(&configuration, ROLE), Ok(()));
        let message = "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type";
        assert_eq!(text(whole(), None), message);
        assert_eq!(text(whole(), Some("")), message);
        let mut vpc = whole();
        vpc.subnet_ids = None;
        assert!(text(vpc, ROLE).starts_with("SubnetIds is required"));
        let mut vpc = whole();
        vpc.network_protocol = None;
        assert!(text(vpc, ROLE).starts_with("NetworkProtocol is required"));
        let mut vpc = whole();
        vpc.associated_compute_resource_types = None;
        assert!(text(vpc, ROLE).starts_with("AssociatedComputeResourceTypes is required"));
    }

    #[test]
    fn what_the_host_cannot_do_is_refused() {
        let mut vpc = whole();
        vpc.network_protocol = Some(NetworkProtocol::DualStack);
        assert!(text(vpc, ROLE).contains("IPv4"));
        let mut vpc = whole();
        vpc.elastic_ip_configuration = Some(ElasticIpConfiguration {
            kind: ElasticIpType::ServiceManaged,
        });
        assert!(text(vpc, ROLE).contains("ServiceManaged"));
    }

    #[test]
    fn a_name_is_no_arn() {
        assert_eq!(network_connector_name("my-connector"), Ok(()));
        assert!(network_connector_name("arn:aws:lambda:x").is_err());
    }
}
