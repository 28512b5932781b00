//! Every request's members and their constraints, as tables. The order of members is the order in
//! which an error lists them.

mod network_connector;

use crate::restjson::Request;
use crate::shape::{Bounds, Member, Pattern, Shape, Text};
use crate::types::{
    CreateMicrovmAuthTokenRequest, CreateMicrovmImageRequest, CreateMicrovmShellAuthTokenRequest,
    CreateNetworkConnectorRequest, GetMicrovmImageBuildInput, GetMicrovmImageInput,
    GetMicrovmImageVersionInput, ListManagedMicrovmImageVersionsInput,
    ListManagedMicrovmImagesInput, ListMicrovmImageBuildsInput, ListMicrovmImageVersionsInput,
    ListMicrovmImagesRequest, ListMicrovmsRequest, ListNetworkConnectorVersionsRequest,
    ListNetworkConnectorsRequest, ListTagsRequest, MicrovmRequest, NetworkConnectorRequest,
    RunMicrovmRequest, TagResourceRequest, UntagResourceRequest, UpdateMicrovmImageRequest,
    UpdateMicrovmImageVersionRequest, UpdateNetworkConnectorRequest,
};

static NO_SPACE: Pattern = Pattern::new(r"[^\s]+");
static IMAGE_NAME_PATTERN: Pattern = Pattern::new("[a-zA-Z0-9-_]+");
static ROLE_PATTERN: Pattern =
    Pattern::new(r"arn:aws[a-z\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+");
static LOG_GROUP_PATTERN: Pattern = Pattern::new(r"[a-zA-Z0-9_\-/.#]+");
static LOG_STREAM_PATTERN: Pattern = Pattern::new("[^:*]*");
static TAG_PATTERN: Pattern = Pattern::new(r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)");

static STRING: Shape = Shape::Text(Text::ANY);
static NON_BLANK: Shape = Shape::Text(Text::new(1, 2048).matching(&NO_SPACE));
static ROLE_ARN: Shape = Shape::Text(Text::new(20, 2048).matching(&ROLE_PATTERN));
static IDENTIFIER: Shape = Shape::Text(Text::new(1, 256));
static CLIENT_TOKEN: Shape = Shape::Text(Text::new(1, 128));
static IMAGE_NAME: Shape = Shape::Text(Text::new(1, 64).matching(&IMAGE_NAME_PATTERN));
static PORT: Shape = Shape::Integer(Bounds::new(1, 65_535));
static MAX_RESULTS: Shape = Shape::Integer(Bounds::new(1, 50));

/// Everything of Lambda's that can have tags; of ours, images and network connectors.
static TAGGABLE_PATTERN: Pattern = Pattern::new(concat!(
    r"arn:(aws[a-zA-Z-]*):lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:",
    r"(function:[a-zA-Z0-9-_]+(:(\$LATEST|[a-zA-Z0-9-_]+))?|layer:([a-zA-Z0-9-_]+)",
    r"|code-signing-config:csc-[a-z0-9]{17}",
    r"|event-source-mapping:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    r"|(capacity-provider|network-connector|microvm-image):[a-zA-Z0-9-_]+)",
));
static TAGGABLE: Shape = Shape::Text(Text::new(1, 10_000).matching(&TAGGABLE_PATTERN));
static TAG_KEY: Shape = Shape::Text(Text::new(1, 128).matching(&TAG_PATTERN));
static TAG_KEYS: Shape = Shape::List(&TAG_KEY, Bounds::NONE);
static TAGS: Shape = Shape::Map {
    key: &Text::new(1, 128).matching(&TAG_PATTERN),
    value: &Text::new(0, 256).matching(&TAG_PATTERN),
    length: Bounds::NONE,
};
static ENVIRONMENT: Shape = Shape::Map {
    key: &Text::new(1, 256).matching(&NO_SPACE),
    value: &Text::new(0, 4096).sensitive(),
    length: Bounds::new(0, 100),
};

static CONNECTOR: Shape = Shape::Text(Text::new(1, 2048));
static RUN_CONNECTORS: Shape = Shape::List(&CONNECTOR, Bounds::new(0, 10));
static IMAGE_CONNECTORS: Shape = Shape::List(&CONNECTOR, Bounds::new(0, 1));

static LOGGING: Shape = Shape::Union(&[
    Member::body("disabled", &Shape::Unit),
    Member::body("cloudWatch", &CLOUD_WATCH),
]);
static CLOUD_WATCH: Shape = Shape::Structure(&[
    Member::body("logGroup", &LOG_GROUP),
    Member::body("logStream", &LOG_STREAM),
]);
static LOG_GROUP: Shape = Shape::Text(Text::new(1, 512).matching(&LOG_GROUP_PATTERN));
static LOG_STREAM: Shape = Shape::Text(Text::new(1, 512).matching(&LOG_STREAM_PATTERN));

static CODE_ARTIFACT: Shape = Shape::Union(&[Member::body("uri", &NON_BLANK)]);
static CPU_CONFIGURATIONS: Shape = Shape::List(&CPU_CONFIGURATION, Bounds::NONE);
static CPU_CONFIGURATION: Shape =
    Shape::Structure(&[Member::body("architecture", &ARCHITECTURE).required()]);
static ARCHITECTURE: Shape = Shape::Text(Text::one_of(&["ARM_64", "X86_64"]));
static CAPABILITIES: Shape = Shape::List(&CAPABILITY, Bounds::NONE);
static CAPABILITY: Shape = Shape::Text(Text::one_of(&["ALL"]));
static RESOURCES: Shape = Shape::List(&RESOURCE, Bounds::new(0, 1));
static RESOURCE: Shape =
    Shape::Structure(&[
        Member::body("minimumMemoryInMiB", &Shape::Integer(Bounds::NONE)).required(),
    ]);

static HOOKS: Shape = Shape::Structure(&[
    Member::body("port", &PORT),
    Member::body("microvmHooks", &MICROVM_HOOKS),
    Member::body("microvmImageHooks", &MICROVM_IMAGE_HOOKS),
]);
static MICROVM_HOOKS: Shape = Shape::Structure(&[
    Member::body("run", &HOOK_STATE),
    Member::body("runTimeoutInSeconds", &HOOK_SECONDS),
    Member::body("resume", &HOOK_STATE),
    Member::body("resumeTimeoutInSeconds", &HOOK_SECONDS),
    Member::body("suspend", &HOOK_STATE),
    Member::body("suspendTimeoutInSeconds", &HOOK_SECONDS),
    Member::body("terminate", &HOOK_STATE),
    Member::body("terminateTimeoutInSeconds", &HOOK_SECONDS),
]);
static MICROVM_IMAGE_HOOKS: Shape = Shape::Structure(&[
    Member::body("ready", &HOOK_STATE),
    Member::body("readyTimeoutInSeconds", &IMAGE_HOOK_SECONDS),
    Member::body("validate", &HOOK_STATE),
    Member::body("validateTimeoutInSeconds", &IMAGE_HOOK_SECONDS),
]);
static HOOK_STATE: Shape = Shape::Text(Text::one_of(&["DISABLED", "ENABLED"]));
static HOOK_SECONDS: Shape = Shape::Integer(Bounds::new(1, 60));
static IMAGE_HOOK_SECONDS: Shape = Shape::Integer(Bounds::new(1, 3600));

// AWS was recorded to name codeArtifact before buildRoleArn, whatever the model's order.
static CREATE_MICROVM_IMAGE: &[Member] = &[
    Member::body("baseImageArn", &NON_BLANK).required(),
    Member::body("baseImageVersion", &NON_BLANK),
    Member::body("codeArtifact", &CODE_ARTIFACT).required(),
    Member::body("buildRoleArn", &ROLE_ARN).required(),
    Member::body("description", &STRING),
    Member::body("logging", &LOGGING),
    Member::body("egressNetworkConnectors", &IMAGE_CONNECTORS),
    Member::body("cpuConfigurations", &CPU_CONFIGURATIONS),
    Member::body("resources", &RESOURCES),
    Member::body("additionalOsCapabilities", &CAPABILITIES),
    Member::body("hooks", &HOOKS),
    Member::body("environmentVariables", &ENVIRONMENT),
    Member::body("name", &IMAGE_NAME).required(),
    Member::body("tags", &TAGS),
    Member::body("clientToken", &CLIENT_TOKEN),
];

// In the same order as for a new image.
static UPDATE_MICROVM_IMAGE: &[Member] = &[
    Member::body("baseImageArn", &NON_BLANK).required(),
    Member::body("baseImageVersion", &NON_BLANK),
    Member::body("codeArtifact", &CODE_ARTIFACT).required(),
    Member::body("buildRoleArn", &ROLE_ARN).required(),
    Member::body("description", &STRING),
    Member::body("logging", &LOGGING),
    Member::body("egressNetworkConnectors", &IMAGE_CONNECTORS),
    Member::body("cpuConfigurations", &CPU_CONFIGURATIONS),
    Member::body("resources", &RESOURCES),
    Member::body("additionalOsCapabilities", &CAPABILITIES),
    Member::body("hooks", &HOOKS),
    Member::body("environmentVariables", &ENVIRONMENT),
    Member::path("imageIdentifier", &IDENTIFIER),
    Member::body("clientToken", &CLIENT_TOKEN),
];

static GET_MICROVM_IMAGE: &[Member] = &[Member::path("imageIdentifier", &IDENTIFIER)];

static GET_MICROVM_IMAGE_VERSION: &[Member] = &[
    Member::path("imageIdentifier", &IDENTIFIER),
    Member::path("imageVersion", &NON_BLANK),
];

static LIST_MICROVM_IMAGE_VERSIONS: &[Member] = &[
    Member::query("maxResults", &MAX_RESULTS),
    Member::query("nextToken", &STRING),
    Member::path("imageIdentifier", &IDENTIFIER),
];

static UPDATE_MICROVM_IMAGE_VERSION: &[Member] = &[
    Member::path("imageIdentifier", &IDENTIFIER),
    Member::path("imageVersion", &NON_BLANK),
    Member::body("status", &VERSION_STATUS).required(),
];
static VERSION_STATUS: Shape = Shape::Text(Text::one_of(&["ACTIVE", "INACTIVE"]));

static LIST_MICROVM_IMAGE_BUILDS: &[Member] = &[
    Member::query("maxResults", &MAX_RESULTS),
    Member::query("nextToken", &STRING),
    Member::path("imageIdentifier", &IDENTIFIER),
    Member::path("imageVersion", &NON_BLANK),
    Member::query("architecture", &ARCHITECTURE),
    Member::query("chipset", &CHIPSET),
    Member::query("chipsetGeneration", &NON_BLANK),
];
static CHIPSET: Shape = Shape::Text(Text::one_of(&["GRAVITON", "INTEL"]));

static GET_MICROVM_IMAGE_BUILD: &[Member] = &[
    Member::path("imageIdentifier", &IDENTIFIER),
    Member::path("imageVersion", &NON_BLANK),
    Member::path("buildId", &NON_BLANK),
];

static LIST_MICROVM_IMAGES: &[Member] = &[
    Member::query("maxResults", &MAX_RESULTS),
    Member::query("nextToken", &STRING),
    Member::query("nameFilter", &NON_BLANK),
];

static LIST_MANAGED_MICROVM_IMAGES: &[Member] = &[
    Member::query("maxResults", &MAX_RESULTS),
    Member::query("nextToken", &STRING),
];

static RUN_MICROVM: &[Member] = &[
    Member::body("ingressNetworkConnectors", &RUN_CONNECTORS),
    Member::body("egressNetworkConnectors", &RUN_CONNECTORS),
    Member::body("imageIdentifier", &IDENTIFIER).required(),
    Member::body("imageVersion", &NON_BLANK),
    Member::body("executionRoleArn", &ROLE_ARN),
    Member::body("idlePolicy", &IDLE_POLICY),
    Member::body("logging", &LOGGING),
    Member::body("runHookPayload", &RUN_HOOK_PAYLOAD),
    Member::body("maximumDurationInSeconds", &LIFETIME_SECONDS),
    Member::body("clientToken", &CLIENT_TOKEN),
];
static RUN_HOOK_PAYLOAD: Shape = Shape::Text(Text::new(0, 4096).sensitive());
static LIFETIME_SECONDS: Shape = Shape::Integer(Bounds::new(1, 28_800));
static IDLE_POLICY: Shape = Shape::Structure(&[
    Member::body("maxIdleDurationSeconds", &IDLE_SECONDS).required(),
    Member::body("suspendedDurationSeconds", &SUSPENDED_SECONDS).required(),
    Member::body("autoResumeEnabled", &Shape::Boolean).required(),
]);
static IDLE_SECONDS: Shape = Shape::Integer(Bounds::at_least(60));
static SUSPENDED_SECONDS: Shape = Shape::Integer(Bounds::at_least(0));

static ONE_MICROVM: &[Member] = &[Member::path("microvmIdentifier", &IDENTIFIER)];

static LIST_MICROVMS: &[Member] = &[
    Member::query("maxResults", &MAX_RESULTS),
    Member::query("nextToken", &STRING),
    Member::query("imageIdentifier", &IDENTIFIER),
    Member::query("imageVersion", &STRING),
];

static CREATE_MICROVM_AUTH_TOKEN: &[Member] = &[
    Member::path("microvmIdentifier", &IDENTIFIER),
    Member::body("expirationInMinutes", &MINUTES).required(),
    Member::body("allowedPorts", &PORT_SPECIFICATIONS).required(),
];
static MINUTES: Shape = Shape::Integer(Bounds::at_least(1));
static PORT_SPECIFICATIONS: Shape = Shape::List(&PORT_SPECIFICATION, Bounds::at_least(1));
static PORT_SPECIFICATION: Shape = Shape::Union(&[
    Member::body("port", &PORT),
    Member::body("range", &PORT_RANGE),
    Member::body("allPorts", &Shape::Unit),
]);
static PORT_RANGE: Shape = Shape::Structure(&[
    Member::body("startPort", &PORT).required(),
    Member::body("endPort", &PORT).required(),
]);

static CREATE_MICROVM_SHELL_AUTH_TOKEN: &[Member] = &[
    Member::path("microvmIdentifier", &IDENTIFIER),
    Member::body("expirationInMinutes", &MINUTES).required(),
];

static LIST_TAGS: &[Member] = &[Member::path("Resource", &TAGGABLE)];

static TAG_RESOURCE: &[Member] = &[
    Member::path("Resource", &TAGGABLE),
    Member::body("Tags", &TAGS).required(),
];

static UNTAG_RESOURCE: &[Member] = &[
    Member::path("Resource", &TAGGABLE),
    Member::query("tagKeys", &TAG_KEYS).required(),
];

macro_rules! requests {
    ($($request:ident: $members:expr,)*) => {$(
        impl Request for $request {
            fn members() -> &'static [Member] {
                $members
            }
        }
    )*};
}

requests! {
    CreateMicrovmAuthTokenRequest: CREATE_MICROVM_AUTH_TOKEN,
    CreateMicrovmImageRequest: CREATE_MICROVM_IMAGE,
    CreateMicrovmShellAuthTokenRequest: CREATE_MICROVM_SHELL_AUTH_TOKEN,
    CreateNetworkConnectorRequest: network_connector::CREATE_NETWORK_CONNECTOR,
    GetMicrovmImageBuildInput: GET_MICROVM_IMAGE_BUILD,
    GetMicrovmImageInput: GET_MICROVM_IMAGE,
    GetMicrovmImageVersionInput: GET_MICROVM_IMAGE_VERSION,
    ListManagedMicrovmImageVersionsInput: LIST_MICROVM_IMAGE_VERSIONS,
    ListManagedMicrovmImagesInput: LIST_MANAGED_MICROVM_IMAGES,
    ListMicrovmImageBuildsInput: LIST_MICROVM_IMAGE_BUILDS,
    ListMicrovmImageVersionsInput: LIST_MICROVM_IMAGE_VERSIONS,
    ListMicrovmImagesRequest: LIST_MICROVM_IMAGES,
    ListMicrovmsRequest: LIST_MICROVMS,
    ListNetworkConnectorVersionsRequest: network_connector::LIST_NETWORK_CONNECTOR_VERSIONS,
    ListNetworkConnectorsRequest: network_connector::LIST_NETWORK_CONNECTORS,
    ListTagsRequest: LIST_TAGS,
    MicrovmRequest: ONE_MICROVM,
    NetworkConnectorRequest: network_connector::ONE_NETWORK_CONNECTOR,
    RunMicrovmRequest: RUN_MICROVM,
    TagResourceRequest: TAG_RESOURCE,
    UntagResourceRequest: UNTAG_RESOURCE,
    UpdateMicrovmImageRequest: UPDATE_MICROVM_IMAGE,
    UpdateMicrovmImageVersionRequest: UPDATE_MICROVM_IMAGE_VERSION,
    UpdateNetworkConnectorRequest: network_connector::UPDATE_NETWORK_CONNECTOR,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_accepts_its_kind_and_no_other() {
        for (pattern, good, bad) in [
            (&NO_SPACE, "a:b/c", "a b"),
            (&IMAGE_NAME_PATTERN, "my-image_1", "bad name!"),
            (
                &ROLE_PATTERN,
                "arn:aws:iam::000000000000:role/build",
                "arn:aws:iam::0:role/build",
            ),
            (&LOG_GROUP_PATTERN, "/aws/lambda-microvms/a.b#c", "a:b"),
            (&LOG_STREAM_PATTERN, "a/b c", "a:b"),
            (&TAG_PATTERN, "café 1_.:/=+-@", "a*b"),
            (
                &TAGGABLE_PATTERN,
                "arn:aws:lambda:us-east-1:000000000000:microvm-image:img",
                "arn:aws:lambda:us-east-1:000000000000:microvm:microvm-1",
            ),
        ] {
            assert!(pattern.matches(good), "{} on {good}", pattern.text);
            assert!(!pattern.matches(bad), "{} on {bad}", pattern.text);
        }
    }
}
