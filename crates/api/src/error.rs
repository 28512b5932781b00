//! Errors as AWS puts them on the wire: a status, the name of the shape in `x-amzn-errortype`, and
//! a JSON body of the message and the shape's other members, always null.

mod catalogue;

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
    /// The service refuses a member's value; the connectors' and the tags' word for it.
    InvalidParameterValue,
    /// The signature is wrong, too old, or for something else.
    InvalidSignature,
    /// The request is not signed.
    MissingAuthenticationToken,
    /// The account has all the network connectors that it may have.
    NetworkConnectorLimitExceeded,
    /// A network connector does not exist; the connectors' API has a shape of its own.
    NetworkConnectorNotFound,
    /// The body is larger than the server reads.
    RequestTooLarge,
    /// A network connector's name is taken, or its state rules this out.
    ResourceConflict,
    /// The thing does not exist.
    ResourceNotFound,
    /// A member has the wrong JSON type, or the body is not JSON.
    Serialization,
    /// The server failed, in the connectors' own word.
    Service,
    /// The account has all that it may have.
    ServiceQuotaExceeded,
    /// Too many requests.
    Throttling,
    /// Too many requests, in the connectors' own word.
    TooManyRequests,
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
            Self::InvalidParameterValue => shape(StatusCode::BAD_REQUEST, "InvalidParameterValueException"),
            Self::InvalidSignature => shape(StatusCode::FORBIDDEN, "InvalidSignatureException"),
            Self::MissingAuthenticationToken => shape(StatusCode::FORBIDDEN, "MissingAuthenticationTokenException"),
            Self::NetworkConnectorLimitExceeded => shape(StatusCode::BAD_REQUEST, "NetworkConnectorLimitExceededException"),
            Self::NetworkConnectorNotFound => shape(StatusCode::NOT_FOUND, "ResourceNotFoundException").capital(),
            Self::RequestTooLarge => shape(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException"),
            Self::ResourceConflict => shape(StatusCode::CONFLICT, "ResourceConflictException"),
            Self::ResourceNotFound => shape(StatusCode::NOT_FOUND, "ResourceNotFoundException").with_null(RESOURCE),
            Self::Serialization => shape(StatusCode::BAD_REQUEST, "SerializationException").capital(),
            Self::Service => shape(StatusCode::INTERNAL_SERVER_ERROR, "ServiceException").capital(),
            Self::ServiceQuotaExceeded => shape(StatusCode::PAYMENT_REQUIRED, "ServiceQuotaExceededException").with_null(QUOTA),
            Self::Throttling => shape(StatusCode::TOO_MANY_REQUESTS, "ThrottlingException").with_null(THROTTLE),
            Self::TooManyRequests => shape(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException"),
            Self::UnknownOperation => shape(StatusCode::NOT_FOUND, "UnknownOperationException"),
            Self::UnrecognizedClient => shape(StatusCode::FORBIDDEN, "UnrecognizedClientException"),
            Self::Validation => shape(StatusCode::BAD_REQUEST, "ValidationException"),
        }
    }

    /// Every kind of error.
    #[cfg(any(test, feature = "schema"))]
    #[rustfmt::skip]
    pub(crate) const ALL: &[Self] = &[
        Self::AccessDenied,
        Self::Conflict,
        Self::IncompleteSignature,
        Self::InsufficientCapacity,
        Self::InternalServer,
        Self::InvalidParameterValue,
        Self::InvalidSignature,
        Self::MissingAuthenticationToken,
        Self::NetworkConnectorLimitExceeded,
        Self::NetworkConnectorNotFound,
        Self::RequestTooLarge,
        Self::ResourceConflict,
        Self::ResourceNotFound,
        Self::Serialization,
        Self::Service,
        Self::ServiceQuotaExceeded,
        Self::Throttling,
        Self::TooManyRequests,
        Self::UnknownOperation,
        Self::UnrecognizedClient,
        Self::Validation,
    ];

    /// The members of its body, the message first.
    #[cfg(feature = "schema")]
    pub(crate) fn members(self) -> Vec<&'static str> {
        let shape = self.shape();
        let mut members = vec![shape.message_member];
        members.extend(shape.null_members);
        members
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

    /// The same error in the words of the operation's service: that of network connectors has names of its
    /// own for what is none of its handlers' doing.
    #[must_use]
    pub fn in_the_words_of(mut self, operation: Operation) -> Self {
        if operation.is_of_connectors() {
            self.code = match self.code {
                ErrorCode::Conflict => ErrorCode::ResourceConflict,
                ErrorCode::InternalServer => ErrorCode::Service,
                ErrorCode::Throttling => ErrorCode::TooManyRequests,
                other => other,
            };
        }
        self
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
            ApiError::internal(),
            500,
            expect![[r#"{"message":"Internal server error"}"#]],
        );
    }

    #[test]
    fn the_list_of_codes_is_whole() {
        assert_eq!(ErrorCode::ALL.len(), ErrorCode::Validation as usize + 1);
        let distinct: std::collections::HashSet<_> = ErrorCode::ALL.iter().collect();
        assert_eq!(distinct.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn the_connectors_service_has_words_of_its_own() {
        let operation = Operation::GetNetworkConnector;
        let check = |error: ApiError, name: &str| {
            let response = error.in_the_words_of(operation).into_response(Uuid::nil());
            assert_eq!(response.headers()[ERROR_TYPE], name);
        };
        check(ApiError::internal(), "ServiceException");
        check(
            ApiError::client_token_reused("t"),
            "ResourceConflictException",
        );
        check(
            ApiError::throttled(Duration::ZERO),
            "TooManyRequestsException",
        );
        let same = ApiError::internal().in_the_words_of(Operation::GetMicrovm);
        assert_eq!(same.code(), ErrorCode::InternalServer);
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
