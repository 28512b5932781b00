//! Requests as clients send them: what parses to what, and what is refused in which words.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic as it may"
)]

use dormouse_api::restjson::{Request, parse};
use dormouse_api::route::PathParams;
use dormouse_api::types::{
    Architecture, CodeArtifact, CreateMicrovmAuthTokenRequest, CreateMicrovmImageRequest,
    CreateNetworkConnectorRequest, Empty, GetMicrovmImageBuildInput, GetMicrovmImageInput,
    GetMicrovmImageVersionInput, HookState, IdlePolicy, ListManagedMicrovmImagesInput,
    ListMicrovmImageBuildsInput, ListMicrovmImagesRequest, ListMicrovmsRequest,
    ListNetworkConnectorsRequest, Logging, MicrovmImageVersionStatus, MicrovmRequest,
    NetworkConnectorConfiguration, NetworkConnectorState, NetworkProtocol, PortRange,
    PortSpecification, RunMicrovmRequest, TagResourceRequest, UntagResourceRequest,
    UpdateMicrovmImageRequest, UpdateMicrovmImageVersionRequest, UpdateNetworkConnectorRequest,
};
use dormouse_api::{ApiError, ErrorCode};
use proptest::prelude::*;
use serde_json::{Value, json};

const ROLE: &str = "arn:aws:iam::000000000000:role/build";
const BASE: &str = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1";

fn parse_body<T: Request>(body: &Value) -> Result<T, ApiError> {
    parse(&PathParams::default(), "", body.to_string().as_bytes())
}

fn params(labels: &[(&'static str, &str)]) -> PathParams {
    labels
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect()
}

/// The text of a `ValidationException`.
fn refused<T: Request + std::fmt::Debug>(body: &Value) -> String {
    let error = parse_body::<T>(body).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Validation, "{error}");
    error.message().unwrap().to_owned()
}

/// The text of a `SerializationException`.
fn mistyped<T: Request + std::fmt::Debug>(body: &Value) -> String {
    let error = parse_body::<T>(body).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Serialization, "{error}");
    error.message().unwrap().to_owned()
}

/// A valid image request with `changes` on top; a null takes a member away.
fn image(changes: &Value) -> Value {
    let mut body = json!({
        "baseImageArn": BASE,
        "buildRoleArn": ROLE,
        "codeArtifact": {"uri": "s3://bucket/code.zip"},
        "name": "img",
    });
    for (name, value) in changes.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn token(ports: &Value) -> Result<CreateMicrovmAuthTokenRequest, ApiError> {
    let body = json!({"expirationInMinutes": 5, "allowedPorts": ports}).to_string();
    let path = params(&[("microvmIdentifier", "microvm-1")]);
    parse(&path, "", body.as_bytes())
}

#[test]
fn a_whole_image_request_parses() {
    let body = image(&json!({
        "baseImageVersion": "1",
        "description": "",
        "logging": {"cloudWatch": {"logGroup": "/aws/x", "unknown": 1}},
        "egressNetworkConnectors": ["arn:x"],
        "cpuConfigurations": [{"architecture": "X86_64"}],
        "resources": [{"minimumMemoryInMiB": 512}],
        "additionalOsCapabilities": ["ALL"],
        "hooks": {
            "port": 9000,
            "microvmHooks": {"run": "ENABLED", "runTimeoutInSeconds": 60},
            "microvmImageHooks": {"ready": "ENABLED", "validate": "DISABLED"},
        },
        "environmentVariables": {"A": "secret"},
        "tags": {"k": "v"},
        "clientToken": "t",
        "notAMember": {"a": []},
    }));
    let request: CreateMicrovmImageRequest = parse_body(&body).unwrap();
    assert_eq!(request.name, "img");
    assert_eq!(request.tags.unwrap()["k"], "v");
    assert_eq!(request.client_token.as_deref(), Some("t"));
    let settings = request.settings;
    assert_eq!(settings.base_image_arn, BASE);
    assert_eq!(settings.base_image_version.as_deref(), Some("1"));
    assert_eq!(settings.description.as_deref(), Some(""));
    let CodeArtifact::Uri(uri) = &settings.code_artifact;
    assert_eq!(uri, "s3://bucket/code.zip");
    let Some(Logging::CloudWatch(logging)) = &settings.logging else {
        panic!("{:?}", settings.logging);
    };
    assert_eq!(logging.log_group.as_deref(), Some("/aws/x"));
    assert_eq!(
        settings.cpu_configurations.unwrap()[0].architecture,
        Architecture::X86_64
    );
    assert_eq!(settings.resources.unwrap()[0].minimum_memory_in_mib, 512);
    let hooks = settings.hooks.unwrap();
    assert_eq!(hooks.port, Some(9000));
    assert_eq!(hooks.microvm_hooks.unwrap().run, Some(HookState::Enabled));
    let variables = settings.environment_variables.unwrap();
    assert_eq!(variables["A"].expose(), "secret");
    assert!(!format!("{variables:?}").contains("secret"));
}

#[test]
fn the_least_image_request_parses_and_nulls_are_absent() {
    let body = image(
        &json!({"hooks": null, "tags": null, "logging": {"disabled": {}, "cloudWatch": null}}),
    );
    let request: CreateMicrovmImageRequest = parse_body(&body).unwrap();
    assert_eq!(request.settings.hooks, None);
    assert_eq!(request.settings.logging, Some(Logging::Disabled(Empty {})));
    assert_eq!(request.tags, None);
}

#[test]
fn recorded_messages_are_word_for_word() {
    assert_eq!(
        refused::<CreateMicrovmImageRequest>(&image(&json!({"name": "bad name!"}))),
        "1 validation error detected: Value 'bad name!' at 'name' failed to satisfy constraint: \
         Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+"
    );
    assert_eq!(
        refused::<CreateMicrovmImageRequest>(&json!({"name": "img"})),
        "3 validation errors detected: Value null at 'baseImageArn' failed to satisfy \
         constraint: Member must not be null; Value null at 'codeArtifact' failed to satisfy \
         constraint: Member must not be null; Value null at 'buildRoleArn' failed to satisfy \
         constraint: Member must not be null"
    );
    let payload = "x".repeat(4097);
    assert_eq!(
        refused::<RunMicrovmRequest>(&json!({"imageIdentifier": "i", "runHookPayload": payload})),
        "1 validation error detected: Value at 'runHookPayload' failed to satisfy constraint: \
         Member must have length less than or equal to 4096"
    );
}

#[test]
fn every_kind_of_constraint_has_its_words() {
    let run = |changes: Value| {
        let mut body = json!({"imageIdentifier": "arn:x"});
        body.as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        let text = refused::<RunMicrovmRequest>(&body);
        text.split_once(" detected: ").unwrap().1.to_owned()
    };
    assert_eq!(
        run(json!({"maximumDurationInSeconds": 28801})),
        "Value '28801' at 'maximumDurationInSeconds' failed to satisfy constraint: \
         Member must have value less than or equal to 28800"
    );
    assert_eq!(
        run(json!({"idlePolicy": {"maxIdleDurationSeconds": 59, "autoResumeEnabled": true}})),
        "Value '59' at 'idlePolicy.maxIdleDurationSeconds' failed to satisfy constraint: \
         Member must have value greater than or equal to 60; \
         Value null at 'idlePolicy.suspendedDurationSeconds' failed to satisfy constraint: \
         Member must not be null"
    );
    assert_eq!(
        run(json!({"imageIdentifier": ""})),
        "Value '' at 'imageIdentifier' failed to satisfy constraint: \
         Member must have length greater than or equal to 1"
    );
    assert_eq!(
        run(json!({"ingressNetworkConnectors": ["a", ""]})),
        "Value '[a, ]' at 'ingressNetworkConnectors' failed to satisfy constraint: \
         Member must satisfy constraint: [Member must have length less than or equal to 2048, \
         Member must have length greater than or equal to 1]"
    );
    let eleven = vec!["c"; 11];
    assert_eq!(
        run(json!({"egressNetworkConnectors": eleven})),
        "Value '[c, c, c, c, c, c, c, c, c, c, c]' at 'egressNetworkConnectors' failed to \
         satisfy constraint: Member must have length less than or equal to 10"
    );
    assert_eq!(
        run(json!({"logging": {}})),
        "Value at 'logging' failed to satisfy constraint: \
         Member must have exactly one member set"
    );
    assert_eq!(
        run(json!({"logging": {"cloudWatch": {"logGroup": "a:b"}}})),
        "Value 'a:b' at 'logging.cloudWatch.logGroup' failed to satisfy constraint: \
         Member must satisfy regular expression pattern: [a-zA-Z0-9_\\-/.#]+"
    );
}

#[test]
fn image_constraints_reach_into_lists_and_maps() {
    let create = |changes: Value| {
        let text = refused::<CreateMicrovmImageRequest>(&image(&changes));
        text.split_once(" detected: ").unwrap().1.to_owned()
    };
    assert_eq!(
        create(json!({"cpuConfigurations": [{"architecture": "ARM_64"}, {"architecture": "Z80"}]})),
        "Value 'Z80' at 'cpuConfigurations.2.member.architecture' failed to satisfy constraint: \
         Member must satisfy enum value set: [ARM_64, X86_64]"
    );
    assert_eq!(
        create(json!({"resources": [{"minimumMemoryInMiB": 512}, {"minimumMemoryInMiB": 512}]})),
        "Value '[{minimumMemoryInMiB=512}, {minimumMemoryInMiB=512}]' at 'resources' failed to \
         satisfy constraint: Member must have length less than or equal to 1"
    );
    assert_eq!(
        create(json!({"tags": {"a*": "b"}})),
        "Value '{a*=b}' at 'tags' failed to satisfy constraint: Map keys must satisfy \
         constraint: [Member must have length less than or equal to 128, Member must have \
         length greater than or equal to 1, Member must satisfy regular expression pattern: \
         ([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)]"
    );
    let secret = "s".repeat(4097);
    assert_eq!(
        create(json!({"environmentVariables": {"A": secret}})),
        "Value at 'environmentVariables' failed to satisfy constraint: Map value must satisfy \
         constraint: [Member must have length less than or equal to 4096, Member must have \
         length greater than or equal to 0]"
    );
    assert_eq!(
        create(json!({"hooks": {"port": 0, "microvmHooks": {"run": "on"}}})),
        "Value '0' at 'hooks.port' failed to satisfy constraint: Member must have value greater \
         than or equal to 1; Value 'on' at 'hooks.microvmHooks.run' failed to satisfy \
         constraint: Member must satisfy enum value set: [DISABLED, ENABLED]"
    );
    assert_eq!(
        create(json!({"additionalOsCapabilities": ["SOME"]})),
        "Value '[SOME]' at 'additionalOsCapabilities' failed to satisfy constraint: Member must \
         satisfy constraint: [Member must satisfy enum value set: [ALL]]"
    );
}

#[test]
fn length_counts_characters() {
    let name = |text: String| parse_body::<RunMicrovmRequest>(&json!({"imageIdentifier": text}));
    assert!(name("ü".repeat(256)).is_ok());
    assert!(name("ü".repeat(257)).is_err());
}

#[test]
fn an_error_stays_small_however_wrong_the_request() {
    let text = refused::<RunMicrovmRequest>(&json!({"imageIdentifier": "ü".repeat(100_000)}));
    assert!(text.chars().count() < 5000);
    let many = vec![json!({"port": 0}); 10_000];
    let error = token(&json!(many)).unwrap_err();
    let text = error.message().unwrap();
    assert!(text.starts_with("100 validation errors detected: "));
    assert!(text.len() < 20_000);
}

#[test]
fn the_wrong_json_type_is_told_before_any_constraint() {
    assert_eq!(
        mistyped::<CreateMicrovmImageRequest>(&json!({"name": "!", "hooks": {"port": "80"}})),
        "Expected integer at 'hooks.port'"
    );
    for (body, expected) in [
        (
            json!({"imageIdentifier": 1}),
            "Expected string at 'imageIdentifier'",
        ),
        (json!({"logging": []}), "Expected structure at 'logging'"),
        (
            json!({"maximumDurationInSeconds": 1.5}),
            "Expected integer at 'maximumDurationInSeconds'",
        ),
        (
            json!({"maximumDurationInSeconds": 3_000_000_000_u64}),
            "Expected integer at 'maximumDurationInSeconds'",
        ),
        (
            json!({"ingressNetworkConnectors": "x"}),
            "Expected list at 'ingressNetworkConnectors'",
        ),
        (
            json!({"ingressNetworkConnectors": [null]}),
            "Expected string at 'ingressNetworkConnectors'",
        ),
        (
            json!({"idlePolicy": {"autoResumeEnabled": "true"}}),
            "Expected boolean at 'idlePolicy.autoResumeEnabled'",
        ),
        (json!(["x"]), "Expected structure"),
    ] {
        assert_eq!(mistyped::<RunMicrovmRequest>(&body), expected);
    }
    assert_eq!(
        mistyped::<CreateMicrovmImageRequest>(&json!({"tags": {"a": 1}})),
        "Expected string at 'tags'"
    );
    assert_eq!(
        mistyped::<CreateMicrovmImageRequest>(&json!({"tags": "a"})),
        "Expected map at 'tags'"
    );
}

#[test]
fn a_body_that_is_not_json_is_told_so() {
    for body in [b"{".as_slice(), b"\xff", b"{} x", b"{\"a\":\"\xff\"}"] {
        let error = parse::<RunMicrovmRequest>(&PathParams::default(), "", body).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Serialization);
        let text = error.message().unwrap();
        assert!(text.starts_with("Could not parse request body into json: "));
    }
    let deep = "[".repeat(100_000);
    let error = parse::<RunMicrovmRequest>(&PathParams::default(), "", deep.as_bytes());
    assert_eq!(error.unwrap_err().code(), ErrorCode::Serialization);
}

#[test]
fn an_empty_body_is_an_empty_structure() {
    for body in [b"".as_slice(), b"{}", b"null"] {
        let error = parse::<RunMicrovmRequest>(&PathParams::default(), "", body).unwrap_err();
        assert_eq!(
            error.message(),
            Some(
                "1 validation error detected: Value null at 'imageIdentifier' failed to satisfy \
                 constraint: Member must not be null"
            )
        );
    }
}

#[test]
fn a_request_without_body_members_does_not_look_at_its_body() {
    let path = params(&[("microvmIdentifier", "microvm-1")]);
    for body in [
        b"".as_slice(),
        b"{}",
        b"garbage",
        b"{\"microvmIdentifier\":\"other\"}",
    ] {
        let request: MicrovmRequest = parse(&path, "", body).unwrap();
        assert_eq!(request.microvm_identifier, "microvm-1");
    }
}

#[test]
fn a_body_cannot_replace_the_path() {
    let path = params(&[("microvmIdentifier", "microvm-1")]);
    let body =
        br#"{"microvmIdentifier":"other","expirationInMinutes":1,"allowedPorts":[{"port":1}]}"#;
    let request: CreateMicrovmAuthTokenRequest = parse(&path, "", body).unwrap();
    assert_eq!(request.microvm_identifier, "microvm-1");
}

#[test]
fn ports_come_in_three_kinds() {
    let request = token(&json!([
        {"port": 8080},
        {"range": {"startPort": 1, "endPort": 65535}},
        {"allPorts": {}},
    ]))
    .unwrap();
    assert_eq!(
        request.allowed_ports,
        [
            PortSpecification::Port(8080),
            PortSpecification::Range(PortRange {
                start_port: 1,
                end_port: 65535
            }),
            PortSpecification::AllPorts(Empty {}),
        ]
    );
}

#[test]
fn ports_that_are_none_are_refused() {
    let text = |ports: Value| token(&ports).unwrap_err().message().unwrap().to_owned();
    assert_eq!(text(json!([{"allPorts": true}])), "Expected null");
    let response = token(&json!([{"allPorts": true}]))
        .unwrap_err()
        .into_response(uuid::Uuid::nil());
    assert_eq!(response.status(), 400);
    assert_eq!(response.body().as_ref(), br#"{"Message":"Expected null"}"#);
    assert!(text(json!([])).contains(
        "Value '[]' at 'allowedPorts' failed to satisfy constraint: \
         Member must have length greater than or equal to 1"
    ));
    assert!(text(json!([{"port": 70_000}])).contains("'70000' at 'allowedPorts.1.member.port'"));
    for not_one in [json!([{}]), json!([{"port": 1, "allPorts": {}}])] {
        assert!(text(not_one).contains("'allowedPorts.1.member'"));
    }
    assert!(
        text(json!([{"range": {"startPort": 1}}]))
            .contains("'allowedPorts.1.member.range.endPort'")
    );
}

#[test]
fn idle_policies_parse() {
    let body = json!({"imageIdentifier": "arn:x", "idlePolicy": {
        "maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 0, "autoResumeEnabled": false}});
    let request: RunMicrovmRequest = parse_body(&body).unwrap();
    assert_eq!(
        request.idle_policy,
        Some(IdlePolicy {
            auto_resume_enabled: false,
            max_idle_duration_seconds: 60,
            suspended_duration_seconds: 0
        })
    );
}

#[test]
fn queries_are_decoded_and_checked() {
    let list = |query: &str| parse::<ListMicrovmsRequest>(&PathParams::default(), query, b"");
    assert_eq!(list("").unwrap(), ListMicrovmsRequest::default());
    let request =
        list("maxResults=50&imageIdentifier=arn%3Ax&nextToken=a%2Bb%3D+&unknown=1&").unwrap();
    assert_eq!(request.max_results, Some(50));
    assert_eq!(request.image_identifier.as_deref(), Some("arn:x"));
    assert_eq!(request.next_token.as_deref(), Some("a+b=+"));

    let text = |query: &str| list(query).unwrap_err().message().map(str::to_owned);
    for (query, value, bound) in [
        ("maxResults=51", 51, "less"),
        ("maxResults=0", 0, "greater"),
    ] {
        let text = text(query).unwrap();
        assert!(
            text.contains(&format!("Value '{value}' at 'maxResults'")),
            "{text}"
        );
        assert!(text.contains(bound), "{text}");
    }
    assert_eq!(
        text("maxResults=x").unwrap(),
        "Expected integer at 'maxResults'"
    );
    // AWS says no more than this.
    assert_eq!(text("nextToken=abc=="), None);
    assert_eq!(text("nextToken=%ff"), None);
}

#[test]
fn an_update_takes_its_image_from_the_path() {
    let mut body = image(&json!({"clientToken": "t"}));
    body.as_object_mut().unwrap().remove("name");
    let path = params(&[("imageIdentifier", "arn:x")]);
    let request: UpdateMicrovmImageRequest = parse(&path, "", body.to_string().as_bytes()).unwrap();
    assert_eq!(request.image_identifier, "arn:x");
    assert_eq!(request.client_token.as_deref(), Some("t"));
    assert_eq!(request.settings.base_image_arn, BASE);
    let error = parse::<UpdateMicrovmImageRequest>(&path, "", b"{}").unwrap_err();
    assert!(
        error
            .message()
            .unwrap()
            .starts_with("3 validation errors detected: Value null at 'baseImageArn'")
    );
}

#[test]
fn a_versions_status_is_one_of_two() {
    let path = params(&[("imageIdentifier", "arn:x"), ("imageVersion", "1.0")]);
    let update = |body: &str| parse::<UpdateMicrovmImageVersionRequest>(&path, "", body.as_bytes());
    let request = update(r#"{"status":"INACTIVE"}"#).unwrap();
    assert_eq!(request.status, MicrovmImageVersionStatus::Inactive);
    let error = update(r#"{"status":"OFF"}"#).unwrap_err();
    assert_eq!(
        error.message(),
        Some(
            "1 validation error detected: Value 'OFF' at 'status' failed to satisfy constraint: \
             Member must satisfy enum value set: [ACTIVE, INACTIVE]"
        )
    );
}

#[test]
fn tag_keys_are_all_that_the_query_names() {
    let arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:img";
    let path = params(&[("Resource", arn)]);
    let untag = |query: &str| parse::<UntagResourceRequest>(&path, query, b"");
    let request = untag("tagKeys=a&tagKeys=b%2Fc").unwrap();
    assert_eq!(request.tag_keys, ["a", "b/c"]);
    assert_eq!(request.resource, arn);
    let missing = untag("").unwrap_err();
    assert!(
        missing
            .message()
            .unwrap()
            .contains("Value null at 'tagKeys'")
    );
    let tags = r#"{"Tags":{"a":"b"}}"#;
    let request: TagResourceRequest = parse(&path, "", tags.as_bytes()).unwrap();
    assert_eq!(request.tags["a"], "b");
    // A MicroVM is not taggable.
    let path = params(&[(
        "Resource",
        "arn:aws:lambda:us-east-1:000000000000:microvm:m",
    )]);
    let error = parse::<TagResourceRequest>(&path, "", tags.as_bytes()).unwrap_err();
    assert!(error.message().unwrap().contains("' at 'resource' failed"));
}

#[test]
fn a_connectors_members_are_in_pascal_case() {
    let body = json!({
        "Name": "c", "OperatorRole": ROLE, "ClientToken": "t", "Tags": {"a": "b"},
        "Configuration": {"VpcEgressConfiguration": {
            "SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"], "NetworkProtocol": "DualStack",
            "AssociatedComputeResourceTypes": ["MicroVm"],
            "ElasticIpConfiguration": {"Type": "None"}}},
    });
    let request: CreateNetworkConnectorRequest = parse_body(&body).unwrap();
    let NetworkConnectorConfiguration::VpcEgressConfiguration(vpc) = request.configuration;
    assert_eq!(vpc.subnet_ids.unwrap(), ["subnet-1"]);
    assert_eq!(vpc.network_protocol, Some(NetworkProtocol::DualStack));

    let ids: Vec<String> = (1..=17).map(|n| format!("subnet-{n}")).collect();
    let mut many = body;
    many["Configuration"]["VpcEgressConfiguration"]["SubnetIds"] = json!(ids);
    assert_eq!(
        refused::<CreateNetworkConnectorRequest>(&many),
        format!(
            "1 validation error detected: Value '[{}]' at \
             'configuration.vpcEgressConfiguration.subnetIds' failed to satisfy constraint: \
             Member must have length less than or equal to 16",
            ids.join(", ")
        )
    );
    let query = "State=ACTIVE&MaxItems=100&Marker=m";
    let list: ListNetworkConnectorsRequest = parse(&PathParams::default(), query, b"").unwrap();
    assert_eq!(list.state, Some(NetworkConnectorState::Active));
    assert_eq!(list.max_items, Some(100));
}

#[test]
fn labels_of_the_path_parse() {
    let path = params(&[
        ("imageIdentifier", "arn:x"),
        ("imageVersion", "1.0"),
        ("buildId", "b"),
    ]);
    let image: GetMicrovmImageInput = parse(&path, "", b"").unwrap();
    assert_eq!(image.image_identifier, "arn:x");
    let version: GetMicrovmImageVersionInput = parse(&path, "", b"").unwrap();
    assert_eq!(version.image_version, "1.0");
    let build: GetMicrovmImageBuildInput = parse(&path, "", b"").unwrap();
    assert_eq!(build.build_id, "b");
    let spaced = params(&[("imageIdentifier", "arn:x"), ("imageVersion", "1 0")]);
    let error = parse::<GetMicrovmImageVersionInput>(&spaced, "", b"").unwrap_err();
    assert!(
        error
            .message()
            .unwrap()
            .contains("Value '1 0' at 'imageVersion'")
    );
}

/// Any JSON, built around the names of members so that it gets past the first check.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "(ENABLED|ALL|ARM_64|s3://b/k)".prop_map(Value::from),
    ];
    let name = "(name|hooks|port|microvmHooks|run|tags|resources|minimumMemoryInMiB|logging|\
                 cloudWatch|disabled|codeArtifact|uri|allowedPorts|range|allPorts|startPort|\
                 idlePolicy|imageIdentifier|environmentVariables|cpuConfigurations|Name|Configuration|\
                 VpcEgressConfiguration|SubnetIds|NetworkProtocol|Tags|x)";
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn parse_as_all(path: &PathParams, query: &str, body: &[u8]) {
    let _ = parse::<CreateMicrovmImageRequest>(path, query, body);
    let _ = parse::<RunMicrovmRequest>(path, query, body);
    let _ = parse::<CreateMicrovmAuthTokenRequest>(path, query, body);
    let _ = parse::<ListMicrovmsRequest>(path, query, body);
    let _ = parse::<ListMicrovmImagesRequest>(path, query, body);
    let _ = parse::<ListManagedMicrovmImagesInput>(path, query, body);
    let _ = parse::<GetMicrovmImageBuildInput>(path, query, body);
    let _ = parse::<ListMicrovmImageBuildsInput>(path, query, body);
    let _ = parse::<UpdateMicrovmImageRequest>(path, query, body);
    let _ = parse::<TagResourceRequest>(path, query, body);
    let _ = parse::<UntagResourceRequest>(path, query, body);
    let _ = parse::<CreateNetworkConnectorRequest>(path, query, body);
    let _ = parse::<UpdateNetworkConnectorRequest>(path, query, body);
}

proptest! {
    #[test]
    fn parsing_never_panics(label in any::<String>(), query in any::<String>(), body in any::<Vec<u8>>()) {
        let path = params(&[("microvmIdentifier", &label), ("imageIdentifier", &label)]);
        parse_as_all(&path, &query, &body);
    }

    #[test]
    fn json_parses_or_is_refused_with_a_message(body in any_json()) {
        let text = body.to_string();
        parse_as_all(&params(&[("microvmIdentifier", "x")]), "", text.as_bytes());
        // What passes its table always fits its type: an error always says why.
        if let Err(error) = parse_body::<RunMicrovmRequest>(&body) {
            prop_assert!(error.message().is_some());
        }
        if let Err(error) = parse_body::<CreateMicrovmImageRequest>(&body) {
            prop_assert!(error.message().is_some());
        }
        if let Err(error) = parse_body::<CreateNetworkConnectorRequest>(&body) {
            prop_assert!(error.message().is_some());
        }
        if let Err(error) = token(&body) {
            prop_assert!(error.message().is_some());
        }
    }
}
