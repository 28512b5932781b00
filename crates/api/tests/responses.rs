//! Responses against bodies recorded from AWS: exactly the same members, nulls included.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic as it may"
)]

use dormouse_api::Operation;
use dormouse_api::restjson::respond;
use dormouse_api::types::{
    Architecture, BuildState, Chipset, CodeArtifact, CreateMicrovmAuthTokenResponse,
    CreateMicrovmImageResponse, Empty, EpochSeconds, GetMicrovmImageBuildResponse,
    GetMicrovmImageResponse, GetMicrovmImageVersionResponse, ImageSettings,
    ListManagedMicrovmImagesResponse, ListMicrovmsResponse, ManagedMicrovmImageSummary, Microvm,
    MicrovmImageState, MicrovmImageSummary, MicrovmImageVersionState, MicrovmImageVersionStatus,
    MicrovmItem, MicrovmState, Resources, SnapshotBuild, Tags, UnmodelledSettings,
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
        settings: settings(),
        unmodelled: UnmodelledSettings::default(),
        created_at: AT,
        id: Uuid::nil().to_string(),
        image_arn: ARN.into(),
        image_version: "1.0".into(),
        latest_active_image_version: None,
        latest_failed_image_version: None,
        name: "n".into(),
        state: MicrovmImageState::Creating,
        tags: None,
        updated_at: AT,
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
    let image = GetMicrovmImageResponse {
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
    let version = GetMicrovmImageVersionResponse {
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
    let build = GetMicrovmImageBuildResponse {
        architecture: Architecture::Arm64,
        build_id: "b".into(),
        build_state: BuildState::Successful,
        chipset: Chipset::Graviton,
        chipset_generation: "4".into(),
        created_at: AT,
        image_arn: ARN.into(),
        image_version: "1.0".into(),
        snapshot_build: Some(SnapshotBuild {
            code_install_size_in_bytes: Some(186_400_768),
            disk_snapshot_size_in_bytes: Some(25_600_000),
            memory_snapshot_size_in_bytes: Some(609_087_488),
        }),
        state_reason: None,
        termination_reason_code: None,
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
    let managed = ListManagedMicrovmImagesResponse {
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
