//! The route table: which operation a method and a raw path name.
//!
//! Matching is on the raw path, before any decoding: an ARN is one segment whether its colons are
//! percent-encoded or not, and a slash that the client did not encode separates segments.

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use std::fmt;

/// An operation of the API, by AWS's own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the operation of that name")]
pub enum Operation {
    CreateMicrovmAuthToken,
    CreateMicrovmImage,
    CreateMicrovmShellAuthToken,
    CreateNetworkConnector,
    DeleteMicrovmImage,
    DeleteMicrovmImageVersion,
    DeleteNetworkConnector,
    GetMicrovm,
    GetMicrovmImage,
    GetMicrovmImageBuild,
    GetMicrovmImageVersion,
    GetNetworkConnector,
    ListManagedMicrovmImageVersions,
    ListManagedMicrovmImages,
    ListMicrovmImageBuilds,
    ListMicrovmImageVersions,
    ListMicrovmImages,
    ListMicrovms,
    ListNetworkConnectorVersions,
    ListNetworkConnectors,
    ListTags,
    ResumeMicrovm,
    RunMicrovm,
    SuspendMicrovm,
    TagResource,
    TerminateMicrovm,
    UntagResource,
    UpdateMicrovmImage,
    UpdateMicrovmImageVersion,
    UpdateNetworkConnector,
}

struct Route {
    method: Method,
    template: &'static str,
    operation: Operation,
    success: StatusCode,
}

impl Route {
    const fn new(
        method: Method,
        template: &'static str,
        operation: Operation,
        success: StatusCode,
    ) -> Self {
        Self {
            method,
            template,
            operation,
            success,
        }
    }
}

#[rustfmt::skip]
static ROUTES: [Route; 30] = {
    use Operation as Op;
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    const PATCH: Method = Method::PATCH;
    const DELETE: Method = Method::DELETE;
    const OK: StatusCode = StatusCode::OK;
    const CREATED: StatusCode = StatusCode::CREATED;
    const ACCEPTED: StatusCode = StatusCode::ACCEPTED;
    const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;
    [
        Route::new(POST, "/2025-09-09/microvms", Op::RunMicrovm, OK),
        Route::new(GET, "/2025-09-09/microvms", Op::ListMicrovms, OK),
        Route::new(GET, "/2025-09-09/microvms/{microvmIdentifier}", Op::GetMicrovm, OK),
        Route::new(DELETE, "/2025-09-09/microvms/{microvmIdentifier}", Op::TerminateMicrovm, OK),
        Route::new(POST, "/2025-09-09/microvms/{microvmIdentifier}/suspend", Op::SuspendMicrovm, OK),
        Route::new(POST, "/2025-09-09/microvms/{microvmIdentifier}/resume", Op::ResumeMicrovm, OK),
        Route::new(POST, "/2025-09-09/microvms/{microvmIdentifier}/auth-token", Op::CreateMicrovmAuthToken, OK),
        Route::new(POST, "/2025-09-09/microvms/{microvmIdentifier}/shell-auth-token", Op::CreateMicrovmShellAuthToken, OK),
        Route::new(POST, "/2025-09-09/microvm-images", Op::CreateMicrovmImage, CREATED),
        Route::new(GET, "/2025-09-09/microvm-images", Op::ListMicrovmImages, OK),
        Route::new(GET, "/2025-09-09/microvm-images/{imageIdentifier}", Op::GetMicrovmImage, OK),
        Route::new(PUT, "/2025-09-09/microvm-images/{imageIdentifier}", Op::UpdateMicrovmImage, OK),
        Route::new(DELETE, "/2025-09-09/microvm-images/{imageIdentifier}", Op::DeleteMicrovmImage, OK),
        Route::new(GET, "/2025-09-09/microvm-images/{imageIdentifier}/versions", Op::ListMicrovmImageVersions, OK),
        Route::new(GET, "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}", Op::GetMicrovmImageVersion, OK),
        Route::new(PATCH, "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}", Op::UpdateMicrovmImageVersion, OK),
        Route::new(DELETE, "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}", Op::DeleteMicrovmImageVersion, OK),
        Route::new(GET, "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}/builds", Op::ListMicrovmImageBuilds, OK),
        Route::new(GET, "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}/builds/{buildId}", Op::GetMicrovmImageBuild, OK),
        Route::new(GET, "/2025-09-09/managed-microvm-images", Op::ListManagedMicrovmImages, OK),
        Route::new(GET, "/2025-09-09/managed-microvm-images/{imageIdentifier}/versions", Op::ListManagedMicrovmImageVersions, OK),
        Route::new(GET, "/2017-03-31/tags/{Resource}", Op::ListTags, OK),
        Route::new(POST, "/2017-03-31/tags/{Resource}", Op::TagResource, NO_CONTENT),
        Route::new(DELETE, "/2017-03-31/tags/{Resource}", Op::UntagResource, NO_CONTENT),
        Route::new(POST, "/2026-04-04/network-connectors", Op::CreateNetworkConnector, ACCEPTED),
        Route::new(GET, "/2026-04-04/network-connectors", Op::ListNetworkConnectors, OK),
        Route::new(GET, "/2026-04-04/network-connectors/{Identifier}", Op::GetNetworkConnector, OK),
        Route::new(PUT, "/2026-04-04/network-connectors/{Identifier}", Op::UpdateNetworkConnector, ACCEPTED),
        Route::new(DELETE, "/2026-04-04/network-connectors/{Identifier}", Op::DeleteNetworkConnector, ACCEPTED),
        Route::new(GET, "/2026-04-04/network-connectors/{Identifier}/versions", Op::ListNetworkConnectorVersions, OK),
    ]
};

/// A request's operation and the decoded labels of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// What the client asked for.
    pub operation: Operation,
    /// The labels, decoded.
    pub path_params: PathParams,
}

/// Path labels by the name that the route gives them, percent-decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathParams(Vec<(&'static str, String)>);

impl PathParams {
    /// The label called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find_map(|(label, value)| (*label == name).then_some(value.as_str()))
    }
}

impl FromIterator<(&'static str, String)> for PathParams {
    fn from_iter<I: IntoIterator<Item = (&'static str, String)>>(labels: I) -> Self {
        Self(labels.into_iter().collect())
    }
}

/// Why a request names no operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No route has this path.
    #[error("no operation has this path")]
    NotFound,
    /// A route has this path, with another method.
    #[error("no operation has this path with this method")]
    MethodNotAllowed,
    /// A label's percent-encoding is not of UTF-8 text.
    #[error("the path is not percent-encoded UTF-8")]
    BadEncoding,
}

/// Finds the operation that `method` on `raw_path` (undecoded, without the query) names.
///
/// # Errors
/// [`RouteError`] when there is none, or when a label does not decode to UTF-8.
pub fn route(method: &Method, raw_path: &str) -> Result<Match, RouteError> {
    let mut path_known = false;
    for route in &ROUTES {
        let Some(labels) = match_template(route.template, raw_path) else {
            continue;
        };
        if route.method == method {
            return Ok(Match {
                operation: route.operation,
                path_params: decode_labels(labels)?,
            });
        }
        path_known = true;
    }
    Err(if path_known {
        RouteError::MethodNotAllowed
    } else {
        RouteError::NotFound
    })
}

/// Every route: method, template and operation.
#[cfg(feature = "schema")]
pub(crate) fn routes() -> impl Iterator<Item = (&'static Method, &'static str, Operation)> {
    ROUTES
        .iter()
        .map(|route| (&route.method, route.template, route.operation))
}

/// Whether `raw_path` belongs to this API, known operation or not: its first segment is one of the
/// API's version dates. A bucket with such a name cannot be reached at the same address.
#[must_use]
pub fn is_control_path(raw_path: &str) -> bool {
    let first = |path: &str| path.split('/').nth(1).map(str::to_owned);
    let version = first(raw_path);
    version.is_some() && ROUTES.iter().any(|route| first(route.template) == version)
}

/// The labels of `path`, still encoded, when it has the template's form.
fn match_template<'p>(
    template: &'static str,
    path: &'p str,
) -> Option<Vec<(&'static str, &'p str)>> {
    let mut labels = Vec::new();
    let mut segments = path.split('/');
    for expected in template.split('/') {
        let segment = segments.next()?;
        match label_name(expected) {
            Some(name) if !segment.is_empty() => labels.push((name, segment)),
            None if segment == expected => {}
            _ => return None,
        }
    }
    segments.next().is_none().then_some(labels)
}

fn label_name(segment: &'static str) -> Option<&'static str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

fn decode_labels(labels: Vec<(&'static str, &str)>) -> Result<PathParams, RouteError> {
    labels
        .into_iter()
        .map(|(name, raw)| {
            let text = percent_decode_str(raw)
                .decode_utf8()
                .map_err(|_| RouteError::BadEncoding)?;
            Ok((name, text.into_owned()))
        })
        .collect()
}

impl Operation {
    /// AWS's name of the operation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreateMicrovmAuthToken => "CreateMicrovmAuthToken",
            Self::CreateMicrovmImage => "CreateMicrovmImage",
            Self::CreateMicrovmShellAuthToken => "CreateMicrovmShellAuthToken",
            Self::CreateNetworkConnector => "CreateNetworkConnector",
            Self::DeleteMicrovmImage => "DeleteMicrovmImage",
            Self::DeleteMicrovmImageVersion => "DeleteMicrovmImageVersion",
            Self::DeleteNetworkConnector => "DeleteNetworkConnector",
            Self::GetMicrovm => "GetMicrovm",
            Self::GetMicrovmImage => "GetMicrovmImage",
            Self::GetMicrovmImageBuild => "GetMicrovmImageBuild",
            Self::GetMicrovmImageVersion => "GetMicrovmImageVersion",
            Self::GetNetworkConnector => "GetNetworkConnector",
            Self::ListManagedMicrovmImageVersions => "ListManagedMicrovmImageVersions",
            Self::ListManagedMicrovmImages => "ListManagedMicrovmImages",
            Self::ListMicrovmImageBuilds => "ListMicrovmImageBuilds",
            Self::ListMicrovmImageVersions => "ListMicrovmImageVersions",
            Self::ListMicrovmImages => "ListMicrovmImages",
            Self::ListMicrovms => "ListMicrovms",
            Self::ListNetworkConnectorVersions => "ListNetworkConnectorVersions",
            Self::ListNetworkConnectors => "ListNetworkConnectors",
            Self::ListTags => "ListTags",
            Self::ResumeMicrovm => "ResumeMicrovm",
            Self::RunMicrovm => "RunMicrovm",
            Self::SuspendMicrovm => "SuspendMicrovm",
            Self::TagResource => "TagResource",
            Self::TerminateMicrovm => "TerminateMicrovm",
            Self::UntagResource => "UntagResource",
            Self::UpdateMicrovmImage => "UpdateMicrovmImage",
            Self::UpdateMicrovmImageVersion => "UpdateMicrovmImageVersion",
            Self::UpdateNetworkConnector => "UpdateNetworkConnector",
        }
    }

    /// Whether it is one of the connectors' service, `lambda-core`, which has errors of its own.
    #[must_use]
    pub const fn is_of_connectors(self) -> bool {
        matches!(
            self,
            Self::CreateNetworkConnector
                | Self::DeleteNetworkConnector
                | Self::GetNetworkConnector
                | Self::ListNetworkConnectorVersions
                | Self::ListNetworkConnectors
                | Self::UpdateNetworkConnector
        )
    }

    /// The operation that AWS calls so.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let operations = ROUTES.iter().map(|route| route.operation);
        operations
            .into_iter()
            .find(|operation| operation.name() == name)
    }

    /// The status of this operation's success.
    #[must_use]
    pub fn success(self) -> StatusCode {
        ROUTES
            .iter()
            .find(|route| route.operation == self)
            .map_or(StatusCode::OK, |route| route.success)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:microvm-image:img";
    const ARN_ENCODED: &str = "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Amicrovm-image%3Aimg";

    #[test]
    fn every_route_is_found_by_its_own_template() {
        for expected in &ROUTES {
            let path = expected.template.replace(['{', '}'], "");
            let found = route(&expected.method, &path).unwrap();
            assert_eq!(found.operation, expected.operation);
            assert_eq!(found.operation.success(), expected.success);
            assert_eq!(found.operation.name(), format!("{:?}", expected.operation));
            assert_eq!(
                Operation::by_name(found.operation.name()),
                Some(found.operation)
            );
            assert!(is_control_path(&path));
        }
    }

    #[test]
    fn each_operation_has_one_route() {
        let mut names: Vec<_> = ROUTES.iter().map(|r| r.operation.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROUTES.len());
    }

    #[test]
    fn an_arn_is_one_segment_encoded_or_raw() {
        for segment in [ARN, ARN_ENCODED] {
            let path = format!("/2025-09-09/microvm-images/{segment}/versions/1.0");
            let found = route(&Method::GET, &path).unwrap();
            assert_eq!(found.operation, Operation::GetMicrovmImageVersion);
            assert_eq!(found.path_params.get("imageIdentifier"), Some(ARN));
            assert_eq!(found.path_params.get("imageVersion"), Some("1.0"));
            assert_eq!(found.path_params.get("buildId"), None);
        }
    }

    #[test]
    fn only_an_unencoded_slash_separates_segments() {
        let raw = "/2025-09-09/microvm-images/arn:aws:lambda:r:0:microvm-image/img";
        assert_eq!(route(&Method::GET, raw), Err(RouteError::NotFound));
        let encoded = "/2025-09-09/microvm-images/arn:aws:lambda:r:0:microvm-image%2Fimg";
        let found = route(&Method::GET, encoded).unwrap();
        assert_eq!(
            found.path_params.get("imageIdentifier"),
            Some("arn:aws:lambda:r:0:microvm-image/img")
        );
    }

    #[test]
    fn what_names_no_operation_is_refused() {
        use RouteError::{BadEncoding, MethodNotAllowed, NotFound};
        for (method, path, expected) in [
            (Method::GET, "", NotFound),
            (Method::GET, "/", NotFound),
            (Method::GET, "/2025-09-09/microvms/", NotFound),
            (Method::GET, "//2025-09-09/microvms", NotFound),
            (
                Method::GET,
                "/2025-09-09/microvm-images/a/versions/",
                NotFound,
            ),
            (Method::GET, "/2025-09-09/microvms/a/b", NotFound),
            (Method::GET, "/2025%2D09-09/microvms", NotFound),
            (Method::PUT, "/2025-09-09/microvms", MethodNotAllowed),
            (
                Method::GET,
                "/2025-09-09/microvms/a/suspend",
                MethodNotAllowed,
            ),
            (Method::GET, "/2025-09-09/microvms/%ff", BadEncoding),
        ] {
            assert_eq!(route(&method, path), Err(expected), "{method} {path}");
        }
    }

    #[test]
    fn a_control_path_is_one_of_the_api_versions() {
        for path in [
            "/2025-09-09",
            "/2025-09-09/unknown",
            "/2017-03-31/tags/x",
            "/2026-04-04/network-connectors",
        ] {
            assert!(is_control_path(path), "{path}");
        }
        for path in [
            "",
            "/",
            "/bucket",
            "/bucket/2025-09-09",
            "2025-09-09",
            "/2025-09-090",
        ] {
            assert!(!is_control_path(path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn routing_never_panics(path in any::<String>(), tail in "[ -~]{0,60}") {
            for path in [path, format!("/2025-09-09/microvm-images/{tail}")] {
                for method in [Method::GET, Method::POST] {
                    let _ = route(&method, &path);
                }
                let _ = is_control_path(&path);
            }
        }
    }
}
