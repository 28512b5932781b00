//! STS, as far as tools need it to see who they are: GetCallerIdentity. Another protocol than the rest of
//! the API: a form in, XML out, at the root of the address.

use super::authenticate;
use crate::app::App;
use crate::audit::Action;
use crate::keys::Keys;
use bytes::Bytes;
use dormouse_api::error::REQUEST_ID;
use dormouse_api::sigv4::{Authorization, Scope};
use dormouse_api::{ApiError, ErrorCode};
use dormouse_core::AccountId;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Extensions, Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use uuid::Uuid;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
const VERSION: &str = "2011-06-15";
/// What clients of `sts.amazonaws.com` sign for.
const GLOBAL_REGION: &str = "us-east-1";
const FORM: &[u8] = b"application/x-www-form-urlencoded";

/// Whether a request speaks STS's protocol: S3, which has the rest of the address, takes no form there.
pub(crate) fn is_for_sts(parts: &Parts) -> bool {
    let form = |value: &HeaderValue| value.as_bytes().starts_with(FORM);
    parts.method == Method::POST
        && parts.uri.path() == "/"
        && parts.headers.get(CONTENT_TYPE).is_some_and(form)
}

/// Answers one request of STS; `body` is whole and bounded already.
pub(crate) fn handle(app: &App, keys: &Keys, parts: &Parts, body: &[u8]) -> Response<Bytes> {
    let request_id = Uuid::new_v4();
    let mut marks = Extensions::new();
    let (status, xml) = match answer(app, keys, parts, body, &mut marks) {
        Ok(account) => (StatusCode::OK, identity(&account, request_id)),
        Err(failure) => (failure.status, failure.xml(request_id)),
    };
    let mut response = Response::new(Bytes::from(xml));
    *response.status_mut() = status;
    *response.extensions_mut() = marks;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    if let Ok(id) = HeaderValue::from_str(&request_id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

fn answer(
    app: &App,
    keys: &Keys,
    parts: &Parts,
    body: &[u8],
    marks: &mut Extensions,
) -> Result<AccountId, Failure> {
    let scope = Scope {
        region: signing_region(parts, &app.config.region),
        service: "sts",
    };
    let account = authenticate(keys, parts, body, scope, marks)?;
    let action = form_value(body, "Action").ok_or_else(|| Failure {
        status: StatusCode::BAD_REQUEST,
        code: "MissingAction",
        message: "The request must contain the parameter Action".to_owned(),
    })?;
    let version = form_value(body, "Version").unwrap_or_default();
    if action == "GetCallerIdentity" && version == VERSION {
        marks.insert(Action("GetCallerIdentity"));
        return Ok(account);
    }
    Err(Failure {
        status: StatusCode::BAD_REQUEST,
        code: "InvalidAction",
        message: format!("Could not find operation {action} for version {version}"),
    })
}

/// The region that a request may be signed for: the daemon's own, or that of the global endpoint, which is the same for
/// all.
fn signing_region<'a>(parts: &Parts, own: &'a str) -> &'a str {
    let header = parts.headers.get(AUTHORIZATION);
    let header = header.and_then(|value| value.to_str().ok());
    let signed = header.and_then(|header| Authorization::parse(header).ok());
    match signed.is_some_and(|signed| signed.region == GLOBAL_REGION) {
        true => GLOBAL_REGION,
        false => own,
    }
}

/// The first value of a form's field, decoded. Bytes that are no UTF-8 become replacement characters, which
/// no action has in its name.
fn form_value(form: &[u8], name: &str) -> Option<String> {
    let form = std::str::from_utf8(form).ok()?;
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    form.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    })
}

/// A key of Dormouse acts for its account as a whole, so its caller is the account's root.
fn identity(account: &AccountId, request_id: Uuid) -> String {
    format!(
        "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult>\
         <Arn>arn:aws:iam::{account}:root</Arn><UserId>{account}</UserId>\
         <Account>{account}</Account></GetCallerIdentityResult><ResponseMetadata>\
         <RequestId>{request_id}</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
    )
}

/// An error in STS's form.
struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let (status, code) = match error.code() {
            ErrorCode::IncompleteSignature => (StatusCode::BAD_REQUEST, "IncompleteSignature"),
            ErrorCode::InvalidSignature => (StatusCode::FORBIDDEN, "SignatureDoesNotMatch"),
            ErrorCode::MissingAuthenticationToken => {
                (StatusCode::FORBIDDEN, "MissingAuthenticationToken")
            }
            ErrorCode::UnrecognizedClient => (StatusCode::FORBIDDEN, "InvalidClientTokenId"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure"),
        };
        Self {
            status,
            code,
            message: error.message().unwrap_or_default().to_owned(),
        }
    }
}

impl Failure {
    fn xml(&self, request_id: Uuid) -> String {
        let fault = if self.status.is_server_error() {
            "Receiver"
        } else {
            "Sender"
        };
        format!(
            "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>{fault}</Type><Code>{}</Code>\
             <Message>{}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>",
            self.code,
            escaped(&self.message)
        )
    }
}

/// Text as XML takes it; what XML cannot hold at all becomes a replacement character.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => {
                escaped.push(c);
            }
            _ => escaped.push('\u{fffd}'),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forms_fields_are_found_and_decoded() {
        let form = b"Action=GetCallerIdentity&Version=2011-06-15&Odd=a%26b+c&Bare";
        assert_eq!(
            form_value(form, "Action").as_deref(),
            Some("GetCallerIdentity")
        );
        assert_eq!(form_value(form, "Odd").as_deref(), Some("a&b c"));
        assert_eq!(form_value(form, "Bare").as_deref(), Some(""));
        assert_eq!(form_value(form, "None"), None);
        assert_eq!(form_value(b"\xff=1", "Action"), None);
    }

    #[test]
    fn an_error_is_xml_whatever_the_action_was() {
        let failure = Failure {
            status: StatusCode::BAD_REQUEST,
            code: "InvalidAction",
            message: "<&>\u{0}\u{ffff}".to_owned(),
        };
        let xml = failure.xml(Uuid::nil());
        assert!(xml.contains("<Type>Sender</Type><Code>InvalidAction</Code>"));
        assert!(xml.contains("<Message>&lt;&amp;&gt;\u{fffd}\u{fffd}</Message>"));
    }

    #[test]
    fn only_a_form_at_the_root_is_for_sts() {
        let request = |method: &str, path: &str, kind: &str| {
            let builder = http::Request::builder().method(method).uri(path);
            let request = builder.header(CONTENT_TYPE, kind).body(());
            is_for_sts(&request.expect("request").into_parts().0)
        };
        let form = "application/x-www-form-urlencoded; charset=utf-8";
        assert!(request("POST", "/", form));
        assert!(request("POST", "/?a=b", form));
        assert!(!request("POST", "/bucket", form));
        assert!(!request("GET", "/", form));
        assert!(!request("POST", "/", "application/xml"));
    }
}
