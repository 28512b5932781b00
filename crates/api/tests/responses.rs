//! Responses against bodies recorded from AWS: exactly the same members, nulls included.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic as it may"
)]

use dormouse_api::Operation;
use dormouse_api::restjson::respond;
use dormouse_api::types::{
    Architecture, BuildState, Chipset, CodeArtifact, ComputeResourceType,
    CreateMicrovmAuthTokenResponse, CreateMicrovmImageResponse, DeleteMicrovmImageOutput,
    DeleteMicrovmImageVersionOutput, Empty, EpochSeconds, GetMicrovmImageBuildOutput,
    GetMicrovmImageOutput, GetMicrovmImageVersionOutput, ImageSettings,
    ListManagedMicrovmImagesOutput, ListMicrovmsResponse, ListNetworkConnectorsResponse,
    ListTagsResponse, ManagedMicrovmImageSummary, Microvm, MicrovmImageBuildSummary,
    MicrovmImageState, MicrovmImageSummary, MicrovmImageVersionState, MicrovmImageVersionStatus,
    MicrovmItem, MicrovmState, NetworkConnector, NetworkConnectorConfiguration,
    NetworkConnectorState, NetworkConnectorSummary, NetworkConnectorType,
    NetworkConnectorVpcEgressConfiguration, NetworkProtocol, Resources, SnapshotBuild, Tags,
    UnmodelledSettings, UpdateMicrovmImageResponse,
};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

const ARN: &str = "arn:aws:lambda:us-east-2:000000000000:microvm-image:n";
const BASE: &str = "arn:aws:lambda:us-east-2:aws:microvm-image:al2023-1";
const ROLE: &str = "arn:aws:iam::000000000000:role/build";
const INTERNET: &str =
    "arn:aws:lambda:us-east-2:aws:network-connector:aws-network-connector:INTERNET_EGRESS";
const HTTP: &str =
    "arn:aws:lambda:us-east-2:aws:network-connector:aws-network-connector:HTTP_INGRESS";
const CONNECTOR: &str = "arn:aws:lambda:us-east-2:000000000000:network-connector:nc-1";
const AT: EpochSeconds = EpochSeconds(1_790_000_000.5);

fn body<T: Serialize>(operation: Operation, status: u16, output: &T) -> Value {
    let response = respond(operation, output, Uuid::nil());
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(
        response.headers()["x-amzn-requestid"],
        "00000000-0000-0000-0000-000000000000"
    );
    assert!(!response.headers().contains_key("x-amzn-errortype"));
    serde_json::from_slice(response.body()).unwrap()
}

fn updated_image(
    version: &str,
    latest_active: Option<&str>,
    state: MicrovmImageState,
) -> UpdateMicrovmImageResponse {
    UpdateMicrovmImageResponse {
        settings: settings(),
        unmodelled: UnmodelledSettings::default(),
        created_at: AT,
        id: Uuid::nil().to_string(),
        image_arn: ARN.into(),
        image_version: version.into(),
        latest_active_image_version: latest_active.map(str::to_owned),
        latest_failed_image_version: None,
        name: "n".into(),
        state,
        updated_at: AT,
    }
}

fn settings() -> ImageSettings {
    ImageSettings {
        additional_os_capabilities: None,
        base_image_arn: BASE.into(),
        base_image_version: Some("1.0".into()),
        build_role_arn: ROLE.into(),
        code_artifact: CodeArtifact::Uri("s3://b/code.zip".into()),
        cpu_configurations: None,
        description: None,
        egress_network_connectors: Some(vec![INTERNET.into()]),
        environment_variables: None,
        hooks: None,
        logging: None,
        resources: Some(vec![Resources {
            minimum_memory_in_mib: 2048,
        }]),
    }
}

fn summary() -> MicrovmImageSummary {
    MicrovmImageSummary {
        created_at: AT,
        id: Uuid::nil().to_string(),
        image_arn: ARN.into(),
        latest_active_image_version: Some("1.0".into()),
        latest_failed_image_version: None,
        name: "n".into(),
        state: MicrovmImageState::Created,
        updated_at: AT,
    }
}

#[test]
fn a_microvm_has_the_recorded_body() {
    let microvm = Microvm {
        egress_network_connectors: vec![INTERNET.into()],
        endpoint: "UUID.lambda-microvm.us-east-2.on.aws".into(),
        execution_role_arn: None,
        idle_policy: None,
        image_arn: ARN.into(),
        image_version: "1.0".into(),
        ingress_network_connectors: vec![HTTP.into()],
        maximum_duration_in_seconds: 28_800,
        microvm_id: "microvm-UUID".into(),
        started_at: AT,
        state: MicrovmState::Pending,
        state_reason: None,
        terminated_at: None,
        termination_reason_code: None,
    };
    assert_eq!(
        body(Operation::RunMicrovm, 200, &microvm),
        json!({"egressNetworkConnectors":[INTERNET],
            "endpoint":"UUID.lambda-microvm.us-east-2.on.aws","executionRoleArn":null,
            "idlePolicy":null,"imageArn":ARN,"imageVersion":"1.0",
            "ingressNetworkConnectors":[HTTP],"maximumDurationInSeconds":28800,
            "microvmId":"microvm-UUID","startedAt":1790000000.5,"state":"PENDING",
            "stateReason":null,"terminatedAt":null,"terminationReasonCode":null})
    );
}

#[test]
fn a_new_image_has_the_recorded_body() {
    let image = CreateMicrovmImageResponse {
        image: updated_image("1.0", None, MicrovmImageState::Creating),
        tags: None,
    };
    assert_eq!(
        body(Operation::CreateMicrovmImage, 201, &image),
        json!({"additionalOsCapabilities":null,"baseImageArn":BASE,"baseImageVersion":"1.0",
            "buildPhaseOverrides":null,"buildRoleArn":ROLE,
            "codeArtifact":{"uri":"s3://b/code.zip"},"cpuConfigurations":null,
            "createdAt":1790000000.5,"description":null,"egressNetworkConnectors":[INTERNET],
            "environmentVariables":null,"hooks":null,"id":Uuid::nil().to_string(),"imageArn":ARN,
            "imageVersion":"1.0","latestActiveImageVersion":null,
            "latestFailedImageVersion":null,"logging":null,"name":"n",
            "resources":[{"minimumMemoryInMiB":2048}],"roleConfiguration":null,
            "state":"CREATING","tags":null,"updatedAt":1790000000.5})
    );
}

#[test]
fn an_image_has_the_recorded_body() {
    let image = GetMicrovmImageOutput {
        summary: summary(),
        tags: Tags::new(),
    };
    assert_eq!(
        body(Operation::GetMicrovmImage, 200, &image),
        json!({"createdAt":1790000000.5,"id":Uuid::nil().to_string(),"imageArn":ARN,
            "latestActiveImageVersion":"1.0","latestFailedImageVersion":null,"name":"n",
            "state":"CREATED","tags":{},"updatedAt":1790000000.5})
    );
}

#[test]
fn a_version_has_the_recorded_body() {
    let version = GetMicrovmImageVersionOutput {
        settings: settings(),
        unmodelled: UnmodelledSettings::default(),
        created_at: AT,
        image_arn: ARN.into(),
        image_version: "1.0".into(),
        state: MicrovmImageVersionState::Successful,
        state_reason: None,
        status: MicrovmImageVersionStatus::Active,
        tags: None,
        updated_at: AT,
        version_state_time_bucket: Some("SUCCESSFUL#26073006".into()),
    };
    assert_eq!(
        body(Operation::GetMicrovmImageVersion, 200, &version),
        json!({"additionalOsCapabilities":null,"baseImageArn":BASE,"baseImageVersion":"1.0",
            "buildPhaseOverrides":null,"buildRoleArn":ROLE,
            "codeArtifact":{"uri":"s3://b/code.zip"},"cpuConfigurations":null,
            "createdAt":1790000000.5,"description":null,"egressNetworkConnectors":[INTERNET],
            "environmentVariables":null,"hooks":null,"imageArn":ARN,"imageVersion":"1.0",
            "logging":null,"resources":[{"minimumMemoryInMiB":2048}],"roleConfiguration":null,
            "state":"SUCCESSFUL","stateReason":null,"status":"ACTIVE","tags":null,
            "updatedAt":1790000000.5,"versionStateTimeBucket":"SUCCESSFUL#26073006"})
    );
}

#[test]
fn a_build_has_the_recorded_body() {
    let build = GetMicrovmImageBuildOutput {
        summary: MicrovmImageBuildSummary {
            architecture: Architecture::Arm64,
            build_id: "b".into(),
            build_state: BuildState::Successful,
            chipset: Chipset::Graviton,
            chipset_generation: "4".into(),
            created_at: AT,
            image_arn: ARN.into(),
            image_version: "1.0".into(),
            state_reason: None,
            termination_reason_code: None,
        },
        snapshot_build: Some(SnapshotBuild {
            code_install_size_in_bytes: Some(186_400_768),
            disk_snapshot_size_in_bytes: Some(25_600_000),
            memory_snapshot_size_in_bytes: Some(609_087_488),
        }),
    };
    assert_eq!(
        body(Operation::GetMicrovmImageBuild, 200, &build),
        json!({"architecture":"ARM_64","buildId":"b","buildState":"SUCCESSFUL",
            "chipset":"GRAVITON","chipsetGeneration":"4","createdAt":1790000000.5,
            "imageArn":ARN,"imageVersion":"1.0","snapshotBuild":{
                "codeInstallSizeInBytes":186400768,"diskSnapshotSizeInBytes":25600000,
                "memorySnapshotSizeInBytes":609087488},
            "stateReason":null,"terminationReasonCode":null})
    );
}

#[test]
fn lists_say_null_after_their_last_page() {
    let page = ListMicrovmsResponse {
        items: vec![MicrovmItem {
            image_arn: ARN.into(),
            image_version: "1.0".into(),
            microvm_id: "microvm-UUID".into(),
            started_at: AT,
            state: MicrovmState::Terminated,
        }],
        next_token: None,
    };
    assert_eq!(
        body(Operation::ListMicrovms, 200, &page),
        json!({"items":[{"imageArn":ARN,"imageVersion":"1.0","microvmId":"microvm-UUID",
            "startedAt":1790000000.5,"state":"TERMINATED"}],"nextToken":null})
    );
    let managed = ListManagedMicrovmImagesOutput {
        items: vec![ManagedMicrovmImageSummary {
            created_at: AT,
            image_arn: BASE.into(),
            updated_at: AT,
        }],
        next_token: Some("t".into()),
    };
    assert_eq!(
        body(Operation::ListManagedMicrovmImages, 200, &managed),
        json!({"items":[{"createdAt":1790000000.5,"imageArn":BASE,"updatedAt":1790000000.5}],
            "nextToken":"t"})
    );
}

#[test]
fn a_token_is_a_map_of_one_header_and_never_in_a_log() {
    let token = CreateMicrovmAuthTokenResponse::new("jwe".into());
    assert_eq!(
        body(Operation::CreateMicrovmAuthToken, 200, &token),
        json!({"authToken":{"X-aws-proxy-auth":"jwe"}})
    );
    assert!(!format!("{token:?}").contains("jwe"));
}

#[test]
fn a_change_of_state_answers_an_empty_structure() {
    for operation in [
        Operation::SuspendMicrovm,
        Operation::ResumeMicrovm,
        Operation::TerminateMicrovm,
    ] {
        assert_eq!(body(operation, 200, &Empty {}), json!({}));
    }
}

#[test]
fn an_update_answers_the_image_without_its_tags() {
    let image = updated_image("2.0", Some("1.0"), MicrovmImageState::Updating);
    let body = body(Operation::UpdateMicrovmImage, 200, &image);
    assert_eq!(body["imageVersion"], "2.0");
    assert_eq!(body["latestActiveImageVersion"], "1.0");
    assert_eq!(body["state"], "UPDATING");
    assert_eq!(body.get("tags"), None);
    assert_eq!(body["roleConfiguration"], Value::Null);
}

#[test]
fn what_is_deleted_is_named_as_it_was_asked_for() {
    let image = DeleteMicrovmImageOutput {
        image_identifier: ARN.into(),
        state: MicrovmImageState::Deleting,
    };
    assert_eq!(
        body(Operation::DeleteMicrovmImage, 200, &image),
        json!({"imageIdentifier":ARN,"state":"DELETING"})
    );
    let version = DeleteMicrovmImageVersionOutput {
        image_identifier: ARN.into(),
        image_version: "1.0".into(),
        state: MicrovmImageVersionState::Deleting,
    };
    assert_eq!(
        body(Operation::DeleteMicrovmImageVersion, 200, &version),
        json!({"imageIdentifier":ARN,"imageVersion":"1.0","state":"DELETING"})
    );
}

#[test]
fn tags_have_the_recorded_body() {
    let tags = ListTagsResponse {
        tags: Tags::from([("k".into(), "v".into())]),
    };
    assert_eq!(
        body(Operation::ListTags, 200, &tags),
        json!({"Tags":{"k":"v"}})
    );
    for operation in [Operation::TagResource, Operation::UntagResource] {
        let response = respond(operation, &Empty {}, Uuid::nil());
        assert_eq!(response.status(), 204);
        assert!(response.body().is_empty());
        assert!(!response.headers().contains_key("content-type"));
        assert!(response.headers().contains_key("x-amzn-requestid"));
    }
}

#[test]
fn a_connector_leaves_out_what_it_does_not_have() {
    let configuration = NetworkConnectorVpcEgressConfiguration {
        subnet_ids: Some(vec!["subnet-a".into()]),
        network_protocol: Some(NetworkProtocol::IPv4),
        associated_compute_resource_types: Some(vec![ComputeResourceType::MicroVm]),
        ..NetworkConnectorVpcEgressConfiguration::default()
    };
    let connector = NetworkConnector {
        arn: CONNECTOR.into(),
        id: "nc-1".into(),
        name: "c".into(),
        version_arn: Some(format!("{CONNECTOR}:1")),
        version: 1,
        configuration: NetworkConnectorConfiguration::VpcEgressConfiguration(configuration),
        operator_role: Some(ROLE.into()),
        state: NetworkConnectorState::Pending,
    };
    assert_eq!(
        body(Operation::CreateNetworkConnector, 202, &connector),
        json!({"Arn":CONNECTOR,"Id":"nc-1","Name":"c","OperatorRole":ROLE,"State":"PENDING",
            "Version":1,"VersionArn":format!("{CONNECTOR}:1"),
            "Configuration":{"VpcEgressConfiguration":{"SubnetIds":["subnet-a"],
                "NetworkProtocol":"IPv4","AssociatedComputeResourceTypes":["MicroVm"]}}})
    );
    let page = ListNetworkConnectorsResponse {
        network_connectors: vec![NetworkConnectorSummary {
            arn: CONNECTOR.into(),
            id: "nc-1".into(),
            last_modified: "2026-07-30T06:12:44.120Z".into(),
            latest_version: 1,
            latest_version_arn: format!("{CONNECTOR}:1"),
            name: "c".into(),
            state: NetworkConnectorState::Active,
            kind: NetworkConnectorType::VpcEgress,
        }],
        next_marker: None,
    };
    assert_eq!(
        body(Operation::ListNetworkConnectors, 200, &page),
        json!({"NetworkConnectors":[{"Arn":CONNECTOR,"Id":"nc-1","Name":"c","State":"ACTIVE",
            "LastModified":"2026-07-30T06:12:44.120Z","LatestVersion":1,
            "LatestVersionArn":format!("{CONNECTOR}:1"),"Type":"VPC_EGRESS"}]})
    );
}
