//! The wire as one JSON value: routes, tables, types and errors, for a comparison with AWS's own model.
//! Nothing that the daemon runs uses it.

use crate::error::ErrorCode;
use crate::restjson::Request;
use crate::route::{Operation, routes};
use crate::shape::{Bounds, Location, Member, Shape, Text};
#[allow(
    clippy::wildcard_imports,
    reason = "each operation's request and response"
)]
use crate::types::*;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// Every operation and every error.
#[must_use]
pub fn describe() -> Value {
    let operations: Map<String, Value> = routes()
        .map(|(method, template, operation)| {
            let mut entry = types_of(operation);
            entry["method"] = method.as_str().into();
            entry["path"] = template.into();
            entry["success"] = operation.success().as_u16().into();
            entry["connectors"] = operation.is_of_connectors().into();
            (operation.name().to_owned(), entry)
        })
        .collect();
    let errors: Vec<Value> = ErrorCode::ALL.iter().map(|code| error(*code)).collect();
    json!({"operations": operations, "errors": errors})
}

fn types_of(operation: Operation) -> Value {
    use Operation as Op;
    match operation {
        Op::CreateMicrovmAuthToken => {
            entry::<CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse>()
        }
        Op::CreateMicrovmImage => entry::<CreateMicrovmImageRequest, CreateMicrovmImageResponse>(),
        Op::CreateMicrovmShellAuthToken => {
            entry::<CreateMicrovmShellAuthTokenRequest, CreateMicrovmShellAuthTokenResponse>()
        }
        Op::CreateNetworkConnector => {
            entry::<CreateNetworkConnectorRequest, CreateNetworkConnectorResponse>()
        }
        Op::DeleteMicrovmImage => entry::<DeleteMicrovmImageInput, DeleteMicrovmImageOutput>(),
        Op::DeleteMicrovmImageVersion => {
            entry::<DeleteMicrovmImageVersionInput, DeleteMicrovmImageVersionOutput>()
        }
        Op::DeleteNetworkConnector => {
            entry::<DeleteNetworkConnectorRequest, DeleteNetworkConnectorResponse>()
        }
        Op::GetMicrovm => entry::<GetMicrovmRequest, GetMicrovmResponse>(),
        Op::GetMicrovmImage => entry::<GetMicrovmImageInput, GetMicrovmImageOutput>(),
        Op::GetMicrovmImageBuild => {
            entry::<GetMicrovmImageBuildInput, GetMicrovmImageBuildOutput>()
        }
        Op::GetMicrovmImageVersion => {
            entry::<GetMicrovmImageVersionInput, GetMicrovmImageVersionOutput>()
        }
        Op::GetNetworkConnector => {
            entry::<GetNetworkConnectorRequest, GetNetworkConnectorResponse>()
        }
        Op::ListManagedMicrovmImageVersions => {
            entry::<ListManagedMicrovmImageVersionsInput, ListManagedMicrovmImageVersionsOutput>()
        }
        Op::ListManagedMicrovmImages => {
            entry::<ListManagedMicrovmImagesInput, ListManagedMicrovmImagesOutput>()
        }
        Op::ListMicrovmImageBuilds => {
            entry::<ListMicrovmImageBuildsInput, ListMicrovmImageBuildsOutput>()
        }
        Op::ListMicrovmImageVersions => {
            entry::<ListMicrovmImageVersionsInput, ListMicrovmImageVersionsOutput>()
        }
        Op::ListMicrovmImages => entry::<ListMicrovmImagesRequest, ListMicrovmImagesResponse>(),
        Op::ListMicrovms => entry::<ListMicrovmsRequest, ListMicrovmsResponse>(),
        Op::ListNetworkConnectorVersions => {
            entry::<ListNetworkConnectorVersionsRequest, ListNetworkConnectorVersionsResponse>()
        }
        Op::ListNetworkConnectors => {
            entry::<ListNetworkConnectorsRequest, ListNetworkConnectorsResponse>()
        }
        Op::ListTags => entry::<ListTagsRequest, ListTagsResponse>(),
        Op::ResumeMicrovm => entry::<ResumeMicrovmRequest, Empty>(),
        Op::RunMicrovm => entry::<RunMicrovmRequest, RunMicrovmResponse>(),
        Op::SuspendMicrovm => entry::<SuspendMicrovmRequest, Empty>(),
        Op::TagResource => entry::<TagResourceRequest, Empty>(),
        Op::TerminateMicrovm => entry::<TerminateMicrovmRequest, Empty>(),
        Op::UntagResource => entry::<UntagResourceRequest, Empty>(),
        Op::UpdateMicrovmImage => entry::<UpdateMicrovmImageRequest, UpdateMicrovmImageResponse>(),
        Op::UpdateMicrovmImageVersion => {
            entry::<UpdateMicrovmImageVersionRequest, UpdateMicrovmImageVersionResponse>()
        }
        Op::UpdateNetworkConnector => {
            entry::<UpdateNetworkConnectorRequest, UpdateNetworkConnectorResponse>()
        }
    }
}

/// The table that requests are checked against, the type that they are read into, and the type of the
/// answer; types as JSON Schema.
fn entry<I: Request + JsonSchema, O: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let read = settings.clone().for_deserialize();
    let written = settings.for_serialize();
    json!({
        "members": members(I::members()),
        "input": read.into_generator().into_root_schema_for::<I>(),
        "output": written.into_generator().into_root_schema_for::<O>(),
    })
}

fn error(code: ErrorCode) -> Value {
    json!({
        "name": code.name(),
        "status": code.status().as_u16(),
        "members": code.members(),
    })
}

fn members(members: &[Member]) -> Value {
    let one = |member: &Member| {
        let mut described = shape(member.shape);
        described["name"] = member.name.into();
        described["required"] = member.required.into();
        described["location"] = match member.location {
            Location::Body => "body",
            Location::Path => "uri",
            Location::Query => "querystring",
        }
        .into();
        described
    };
    members.iter().map(one).collect()
}

fn shape(of: &Shape) -> Value {
    match of {
        Shape::Text(rules) => text(rules),
        Shape::Integer(bounds) => bounded("integer", *bounds),
        Shape::Boolean => json!({"type": "boolean"}),
        Shape::List(member, length) => {
            let mut list = bounded("list", *length);
            list["member"] = shape(member);
            list
        }
        Shape::Map { key, value, length } => {
            let mut map = bounded("map", *length);
            map["key"] = text(key);
            map["value"] = text(value);
            map
        }
        Shape::Structure(inner) => {
            json!({"type": "structure", "union": false, "members": members(inner)})
        }
        Shape::Union(inner) => {
            json!({"type": "structure", "union": true, "members": members(inner)})
        }
        Shape::Unit => json!({"type": "structure", "union": false, "members": []}),
    }
}

fn text(rules: &Text) -> Value {
    let mut text = bounded("string", rules.length);
    text["pattern"] = rules.pattern.map(|pattern| pattern.text).into();
    text["enum"] = rules.one_of.into();
    text["sensitive"] = rules.sensitive.into();
    text
}

fn bounded(kind: &str, bounds: Bounds) -> Value {
    json!({"type": kind, "min": bounds.min, "max": bounds.max})
}
