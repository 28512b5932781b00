//! Errors as AWS puts them on the wire: a status, the name of the shape in `x-amzn-errortype`, and
//! a JSON body of the message and the shape's other members, always null.

use crate::route::{Operation, RouteError};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::{Map, Value};
use std::fmt;
use std::time::Duration;
use uuid::Uuid;

/// Names the request, on every response.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// Names the error's shape.
pub const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// What kind of error it is; decides everything but the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The caller may not do this.
    AccessDenied,
    /// The thing is in a state that rules this out.
    Conflict,
    /// The Authorization header is not a whole signature.
    IncompleteSignature,
    /// No room to run a MicroVM now.
    InsufficientCapacity,
    /// The server failed.
    InternalServer,
    /// The signature is wrong, too old, or for something else.
    InvalidSignature,
    /// The request is not signed.
    MissingAuthenticationToken,
    /// A network connector does not exist; the connectors' API has a shape of its own.
    NetworkConnectorNotFound,
    /// Dormouse does not have this operation yet.
    NotImplemented,
    /// The body is larger than the server reads.
    RequestTooLarge,
    /// The thing does not exist.
    ResourceNotFound,
    /// A member has the wrong JSON type, or the body is not JSON.
    Serialization,
    /// The account has all that it may have.
    ServiceQuotaExceeded,
    /// Too many requests.
    Throttling,
    /// Nothing is served at this path.
    UnknownOperation,
    /// The access key is not known.
    UnrecognizedClient,
    /// The request breaks a rule.
    Validation,
}

struct ErrorShape {
    status: StatusCode,
    name: &'static str,
    /// AWS spells the message's own name in two ways.
    message_member: &'static str,
    null_members: &'static [&'static str],
}

impl ErrorShape {
    const fn new(status: StatusCode, name: &'static str) -> Self {
        Self {
            status,
            name,
            message_member: "message",
            null_members: &[],
        }
    }

    const fn capital(mut self) -> Self {
        self.message_member = "Message";
        self
    }

    const fn with_null(mut self, members: &'static [&'static str]) -> Self {
        self.null_members = members;
        self
    }
}

impl ErrorCode {
    #[rustfmt::skip]
    fn shape(self) -> ErrorShape {
        const RESOURCE: &[&str] = &["resourceId", "resourceType"];
        const QUOTA: &[&str] = &["quotaCode", "resourceId", "resourceType", "serviceCode"];
        const THROTTLE: &[&str] = &["quotaCode", "serviceCode"];
        let shape = ErrorShape::new;
        match self {
            Self::AccessDenied => shape(StatusCode::FORBIDDEN, "AccessDeniedException").capital(),
            Self::Conflict => shape(StatusCode::CONFLICT, "ConflictException").with_null(RESOURCE),
            Self::IncompleteSignature => shape(StatusCode::FORBIDDEN, "IncompleteSignatureException"),
            Self::InsufficientCapacity => shape(StatusCode::INTERNAL_SERVER_ERROR, "InsufficientCapacityException"),
            Self::InternalServer => shape(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerException"),
            Self::InvalidSignature => shape(StatusCode::FORBIDDEN, "InvalidSignatureException"),
            Self::MissingAuthenticationToken => shape(StatusCode::FORBIDDEN, "MissingAuthenticationTokenException"),
            Self::NetworkConnectorNotFound => shape(StatusCode::NOT_FOUND, "ResourceNotFoundException").capital(),
            Self::NotImplemented => shape(StatusCode::NOT_IMPLEMENTED, "NotImplementedException"),
            Self::RequestTooLarge => shape(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException"),
            Self::ResourceNotFound => shape(StatusCode::NOT_FOUND, "ResourceNotFoundException").with_null(RESOURCE),
            Self::Serialization => shape(StatusCode::BAD_REQUEST, "SerializationException").capital(),
            Self::ServiceQuotaExceeded => shape(StatusCode::PAYMENT_REQUIRED, "ServiceQuotaExceededException").with_null(QUOTA),
            Self::Throttling => shape(StatusCode::TOO_MANY_REQUESTS, "ThrottlingException").with_null(THROTTLE),
            Self::UnknownOperation => shape(StatusCode::NOT_FOUND, "UnknownOperationException"),
            Self::UnrecognizedClient => shape(StatusCode::FORBIDDEN, "UnrecognizedClientException"),
            Self::Validation => shape(StatusCode::BAD_REQUEST, "ValidationException"),
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.shape().status
    }

    /// The name in `x-amzn-errortype`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.shape().name
    }
}

/// An error on its way to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    code: ErrorCode,
    message: Option<String>,
    retry_after: Option<Duration>,
}

impl std::error::Error for ApiError {}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.name())?;
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl ApiError {
    /// An error of this kind with this message for the client.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: Some(message.into()),
            retry_after: None,
        }
    }

    /// What kind of error it is.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What the client is told.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// The response that tells the client.
    #[must_use]
    pub fn into_response(self, request_id: Uuid) -> Response<Bytes> {
        let shape = self.code.shape();
        let mut body = Map::new();
        body.insert(shape.message_member.to_owned(), Value::from(self.message));
        for member in shape.null_members {
            body.insert((*member).to_owned(), Value::Null);
        }
        let body = Value::Object(body).to_string();

        let mut response = json_response(shape.status, body.into(), request_id);
        let headers = response.headers_mut();
        headers.insert(ERROR_TYPE, HeaderValue::from_static(shape.name));
        if let Some(delay) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(delay.as_secs().max(1)));
        }
        response
    }
}

/// A JSON response with the headers that every response has.
pub(crate) fn json_response(status: StatusCode, body: Bytes, request_id: Uuid) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut text = Uuid::encode_buffer();
    let id = HeaderValue::from_str(request_id.hyphenated().encode_lower(&mut text))
        .expect("a UUID is hexadecimal digits and dashes");
    headers.insert(REQUEST_ID, id);
    response
}

/// Errors of no one operation.
impl ApiError {
    /// The request breaks a rule.
    #[must_use]
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Validation, message)
    }

    /// The thing is in a state that rules this out.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Conflict, message)
    }

    /// The thing does not exist.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::ResourceNotFound, message)
    }

    /// The server failed; why is for its log alone.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(ErrorCode::InternalServer, "Internal server error")
    }

    /// Too many requests; the client may try again after the delay (whole seconds, at least one).
    #[must_use]
    pub fn throttled(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(ErrorCode::Throttling, "Rate exceeded")
        }
    }

    /// A request that cannot be taken apart; AWS says no more than that.
    #[must_use]
    pub fn unparseable() -> Self {
        Self {
            code: ErrorCode::Validation,
            message: None,
            retry_after: None,
        }
    }

    /// A member of the wrong JSON type, or no JSON at all.
    #[must_use]
    pub fn serialization(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Serialization, message)
    }

    /// The body has more than `limit` bytes.
    #[must_use]
    pub fn body_too_large(limit: usize) -> Self {
        Self::new(
            ErrorCode::RequestTooLarge,
            format!("Request must be smaller than {limit} bytes"),
        )
    }

    /// An operation of AWS's that Dormouse does not have.
    #[must_use]
    pub fn not_implemented(operation: Operation) -> Self {
        Self::new(
            ErrorCode::NotImplemented,
            format!("Dormouse does not implement {operation} yet"),
        )
    }

    /// The caller may not do this; AWS often gives no message.
    #[must_use]
    pub fn access_denied(message: Option<String>) -> Self {
        Self {
            code: ErrorCode::AccessDenied,
            message,
            retry_after: None,
        }
    }
}

/// Errors of images.
impl ApiError {
    /// No such image.
    #[must_use]
    pub fn image_not_found(arn: &str) -> Self {
        Self::not_found(format!("MicroVMImage not found for MicroVMImageID: {arn}"))
    }

    /// No such version of the image.
    #[must_use]
    pub fn image_version_not_found(arn: &str, version: &str) -> Self {
        Self::not_found(format!(
            "MicroVMImage not found for MicroVMImage: {arn}, Version: {version}"
        ))
    }

    /// No such build of the version; the text is our own.
    #[must_use]
    pub fn image_build_not_found(arn: &str, version: &str, build: &str) -> Self {
        Self::not_found(format!(
            "MicroVMImageBuild not found for MicroVMImage: {arn}, Version: {version}, BuildId: {build}"
        ))
    }

    /// An image operation got something that is no image ARN.
    #[must_use]
    pub fn invalid_arn(text: &str) -> Self {
        Self::validation(format!("Invalid ARN format: {text}"))
    }

    /// The account has an image of this name.
    #[must_use]
    pub fn image_name_taken(name: &str) -> Self {
        Self::validation(format!(
            "A MicroVM image with the name '{name}' already exists in this account"
        ))
    }

    /// The base image is none, or not in this version.
    #[must_use]
    pub fn base_image_unknown(arn: &str, version: &str) -> Self {
        Self::validation(format!(
            "No managed MicroVM Image with arn {arn} and version {version} is available"
        ))
    }

    /// The image is busy in this state, spelled as on the wire.
    #[must_use]
    pub fn image_busy(state: &str) -> Self {
        Self::conflict(format!("MicroVM Image is already in state: {state}"))
    }

    /// The account has as many images, versions or builds under way as it may.
    #[must_use]
    pub fn quota_exceeded(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::ServiceQuotaExceeded, message)
    }
}

/// Errors of MicroVMs.
impl ApiError {
    /// No such MicroVM.
    #[must_use]
    pub fn microvm_not_found(id: &str) -> Self {
        Self::not_found(format!("MicroVM not found: {id}"))
    }

    /// Nothing of this image can be launched; `version` when the client named one.
    #[must_use]
    pub fn no_active_version(arn: &str, version: Option<&str>) -> Self {
        let which = version.map_or_else(String::new, |v| format!(" and version {v}"));
        Self::not_found(format!(
            "No active version found for MicroVM image {arn}{which}"
        ))
    }

    /// RunMicrovm got something that is no ARN.
    #[must_use]
    pub fn malformed_arn() -> Self {
        Self::validation("Malformed ARN - doesn't start with 'arn:'")
    }

    /// The MicroVM has ended and stays so.
    #[must_use]
    pub fn microvm_terminated(id: &str) -> Self {
        Self::validation(format!(
            "The MicroVM {id} has been terminated and its state cannot be changed."
        ))
    }

    /// The MicroVM is on its way between two states, spelled as on the wire; the text is our own.
    #[must_use]
    pub fn microvm_busy(id: &str, state: &str) -> Self {
        Self::conflict(format!(
            "The MicroVM {id} cannot be changed in its current state: {state}"
        ))
    }

    /// The client token came with other parameters before; the text is our own.
    #[must_use]
    pub fn client_token_reused(token: &str) -> Self {
        Self::conflict(format!(
            "The client token '{token}' was already used with different parameters"
        ))
    }

    /// The account's MicroVMs take all the memory that they may.
    #[must_use]
    pub fn memory_quota() -> Self {
        Self::quota_exceeded(
            "The base maximum allocated memory limit has been reached for this account.",
        )
    }

    /// A payload for a run hook that the image does not have.
    #[must_use]
    pub fn run_hook_disabled() -> Self {
        Self::validation(
            "The run hook must be enabled in the MicroVM image to pass the run hook payload",
        )
    }

    /// No host has room now; the text is our own.
    #[must_use]
    pub fn insufficient_capacity() -> Self {
        Self::new(
            ErrorCode::InsufficientCapacity,
            "There is not enough capacity to run the MicroVM. Try again later.",
        )
    }
}

/// Errors of network connectors.
impl ApiError {
    /// No such connector.
    #[must_use]
    pub fn connector_not_found(arn: &str) -> Self {
        Self::new(
            ErrorCode::NetworkConnectorNotFound,
            format!("Network connector not found for: {arn}"),
        )
    }

    /// A managed connector's ARN with a name that is none.
    #[must_use]
    pub fn connector_unrecognized(arn: &str) -> Self {
        Self::validation(format!("Unrecognized managed network connector ARN: {arn}"))
    }

    /// Not a connector's ARN at all.
    #[must_use]
    pub fn connector_malformed() -> Self {
        Self::validation("Malformed network connector ARN")
    }
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NotFound => Self::new(
                ErrorCode::UnknownOperation,
                "No operation is served at this path",
            ),
            RouteError::MethodNotAllowed => Self::new(
                ErrorCode::UnknownOperation,
                "No operation is served at this path with this method",
            ),
            RouteError::BadEncoding => Self::unparseable(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn wire(error: ApiError) -> String {
        let response = error.into_response(Uuid::nil());
        let mut lines = vec![response.status().as_u16().to_string()];
        for (name, value) in response.headers() {
            lines.push(format!("{name}: {}", value.to_str().unwrap()));
        }
        lines.push(String::from_utf8(response.body().to_vec()).unwrap());
        lines.join("\n")
    }

    #[test]
    fn an_error_has_the_recorded_form() {
        let id = "microvm-00000000-0000-0000-0000-000000000000";
        expect![[r#"
            404
            content-type: application/json
            x-amzn-requestid: 00000000-0000-0000-0000-000000000000
            x-amzn-errortype: ResourceNotFoundException
            {"message":"MicroVM not found: microvm-00000000-0000-0000-0000-000000000000","resourceId":null,"resourceType":null}"#]]
        .assert_eq(&wire(ApiError::microvm_not_found(id)));
    }

    #[test]
    fn bodies_have_their_shapes_members() {
        let check = |error: ApiError, status: u16, expected: Expect| {
            let response = error.into_response(Uuid::nil());
            assert_eq!(response.status(), status);
            expected.assert_eq(std::str::from_utf8(response.body()).unwrap());
        };
        check(
            ApiError::memory_quota(),
            402,
            expect![[
                r#"{"message":"The base maximum allocated memory limit has been reached for this account.","quotaCode":null,"resourceId":null,"resourceType":null,"serviceCode":null}"#
            ]],
        );
        check(
            ApiError::connector_not_found("arn:x"),
            404,
            expect![[r#"{"Message":"Network connector not found for: arn:x"}"#]],
        );
        check(
            ApiError::access_denied(None),
            403,
            expect![[r#"{"Message":null}"#]],
        );
        check(
            ApiError::unparseable(),
            400,
            expect![[r#"{"message":null}"#]],
        );
        check(
            ApiError::image_busy("UPDATING"),
            409,
            expect![[
                r#"{"message":"MicroVM Image is already in state: UPDATING","resourceId":null,"resourceType":null}"#
            ]],
        );
        check(
            ApiError::not_implemented(Operation::UpdateMicrovmImage),
            501,
            expect![[r#"{"message":"Dormouse does not implement UpdateMicrovmImage yet"}"#]],
        );
        check(
            ApiError::internal(),
            500,
            expect![[r#"{"message":"Internal server error"}"#]],
        );
    }

    #[test]
    fn a_throttled_client_is_told_when_to_come_back() {
        let response = ApiError::throttled(Duration::from_millis(10)).into_response(Uuid::nil());
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.status(), 429);
    }

    #[test]
    fn a_missing_version_is_named_only_when_asked_for() {
        let text = |version| {
            let error = ApiError::no_active_version("arn:x", version);
            error.message().unwrap().to_owned()
        };
        assert_eq!(
            text(None),
            "No active version found for MicroVM image arn:x"
        );
        assert_eq!(
            text(Some("2")),
            "No active version found for MicroVM image arn:x and version 2"
        );
    }
}
