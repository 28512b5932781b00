//! The tables of network connectors, which follow another service's model.

use super::{STRING, TAGS};
use crate::shape::{Bounds, Member, Pattern, Shape, Text};

static NAME_PATTERN: Pattern = Pattern::new(concat!(
    r"(arn:aws[a-zA-Z-]*:lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}",
    r":network-connector:[a-zA-Z0-9-_]+(:[1-9][0-9]*)?)|[a-zA-Z0-9_-]{1,64}",
));
static ROLE_PATTERN: Pattern =
    Pattern::new(r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+");
static SUBNET_PATTERN: Pattern = Pattern::new("subnet-[0-9a-z]*");
static SECURITY_GROUP_PATTERN: Pattern = Pattern::new("sg-[0-9a-zA-Z]*");

static NAME: Shape = Shape::Text(Text::new(1, 140).matching(&NAME_PATTERN));
static IDENTIFIER: Shape = Shape::Text(Text::new(1, 140));
static ROLE_ARN: Shape = Shape::Text(Text::new(0, 10_000).matching(&ROLE_PATTERN));
static CLIENT_TOKEN: Shape = Shape::Text(Text::new(1, 64));
static STATE: Shape = Shape::Text(Text::one_of(&[
    "PENDING",
    "ACTIVE",
    "INACTIVE",
    "FAILED",
    "DELETING",
    "DELETE_FAILED",
]));
static MAX_ITEMS: Shape = Shape::Integer(Bounds::new(1, 100));

static CONFIGURATION: Shape = Shape::Union(&[Member::body("VpcEgressConfiguration", &VPC_EGRESS)]);
static VPC_EGRESS: Shape = Shape::Structure(&[
    Member::body("SubnetIds", &SUBNETS),
    Member::body("SecurityGroupIds", &SECURITY_GROUPS),
    Member::body("NetworkProtocol", &PROTOCOL),
    Member::body("AssociatedComputeResourceTypes", &COMPUTE_RESOURCES),
    Member::body("ElasticIpConfiguration", &ELASTIC_IP),
]);
static SUBNETS: Shape = Shape::List(&SUBNET, Bounds::new(1, 16));
static SUBNET: Shape = Shape::Text(Text::new(0, 1024).matching(&SUBNET_PATTERN));
static SECURITY_GROUPS: Shape = Shape::List(&SECURITY_GROUP, Bounds::new(0, 16));
static SECURITY_GROUP: Shape = Shape::Text(Text::new(0, 1024).matching(&SECURITY_GROUP_PATTERN));
static PROTOCOL: Shape = Shape::Text(Text::one_of(&["IPv4", "DualStack"]));
static COMPUTE_RESOURCES: Shape = Shape::List(&COMPUTE_RESOURCE, Bounds::new(1, 1));
static COMPUTE_RESOURCE: Shape = Shape::Text(Text::one_of(&["MicroVm", "WebFunction"]));
static ELASTIC_IP: Shape = Shape::Structure(&[Member::body("Type", &ELASTIC_IP_TYPE).required()]);
static ELASTIC_IP_TYPE: Shape = Shape::Text(Text::one_of(&["None", "ServiceManaged"]));

pub(super) static CREATE_NETWORK_CONNECTOR: &[Member] = &[
    Member::body("Name", &NAME).required(),
    Member::body("Configuration", &CONFIGURATION).required(),
    Member::body("OperatorRole", &ROLE_ARN),
    Member::body("ClientToken", &CLIENT_TOKEN),
    Member::body("Tags", &TAGS),
];

pub(super) static ONE_NETWORK_CONNECTOR: &[Member] = &[Member::path("Identifier", &IDENTIFIER)];

pub(super) static UPDATE_NETWORK_CONNECTOR: &[Member] = &[
    Member::path("Identifier", &IDENTIFIER),
    Member::body("Configuration", &CONFIGURATION),
    Member::body("OperatorRole", &ROLE_ARN),
    Member::body("ClientToken", &CLIENT_TOKEN),
];

pub(super) static LIST_NETWORK_CONNECTORS: &[Member] = &[
    Member::query("State", &STATE),
    Member::query("Marker", &STRING),
    Member::query("MaxItems", &MAX_ITEMS),
];

pub(super) static LIST_NETWORK_CONNECTOR_VERSIONS: &[Member] = &[
    Member::path("Identifier", &IDENTIFIER),
    Member::query("State", &STATE),
    Member::query("Marker", &STRING),
    Member::query("MaxItems", &MAX_ITEMS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_accepts_its_kind_and_no_other() {
        let arn = "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:2";
        for (pattern, good, bad) in [
            (&NAME_PATTERN, arn, "a:b"),
            (&NAME_PATTERN, "my-connector_1", "my connector"),
            (
                &ROLE_PATTERN,
                "arn:aws:iam::000000000000:role/operator",
                "arn:aws:iam::0:role/operator",
            ),
            (&SUBNET_PATTERN, "subnet-0a1b", "subnet_1"),
            (&SECURITY_GROUP_PATTERN, "sg-0A1b", "group"),
        ] {
            assert!(pattern.matches(good), "{} on {good}", pattern.text);
            assert!(!pattern.matches(bad), "{} on {bad}", pattern.text);
        }
    }
}
