//! The rest-json binding: a request's body, query and path become one typed value, and a typed
//! value becomes a response.

use crate::error::{ApiError, json_response};
use crate::route::{Operation, PathParams};
use crate::shape::{Location, Member, Shape};
use crate::validate;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};
use uuid::Uuid;

/// A request that has a table of members; the tables are in [`crate::model`].
pub trait Request: DeserializeOwned {
    /// The members and their constraints, in the order in which errors list them.
    fn members() -> &'static [Member];
}

/// Parses and validates a request.
///
/// `query` is the raw query without its question mark. The body is read only when the request has
/// members there, and an empty one is an empty structure; its content type does not matter.
///
/// # Errors
/// An [`ApiError`] of status 400 when the request cannot be taken apart, has a member of the wrong
/// JSON type, or breaks a constraint of its table.
pub fn parse<T: Request>(
    path_params: &PathParams,
    query: &str,
    body: &[u8],
) -> Result<T, ApiError> {
    let members = T::members();
    let in_body = |name: &str| {
        members
            .iter()
            .any(|member| member.name == name && member.location == Location::Body)
    };
    let mut input = if members.iter().any(|m| m.location == Location::Body) {
        parse_body(body)?
    } else {
        Map::new()
    };
    input.retain(|name, _| in_body(name));

    let query = parse_query(query)?;
    for member in members {
        let bound = match member.location {
            Location::Body => None,
            Location::Path => path_params.get(member.name).map(Value::from),
            Location::Query => bind_query(member, &query)?,
        };
        if let Some(value) = bound {
            input.insert(member.name.to_owned(), value);
        }
    }
    validate::check(members, &mut input)?;
    // The table and the type agree, so this fails only on a mistake of ours that tests would find;
    // the client still gets an answer.
    serde_json::from_value(Value::Object(input)).map_err(|_| ApiError::unparseable())
}

/// The response to a request that succeeded; without a body where the success code says so.
#[must_use]
pub fn respond<T: Serialize>(
    operation: Operation,
    output: &T,
    request_id: Uuid,
) -> Response<Bytes> {
    if operation.success() == StatusCode::NO_CONTENT {
        let mut response = json_response(StatusCode::NO_CONTENT, Bytes::new(), request_id);
        response.headers_mut().remove(CONTENT_TYPE);
        return response;
    }
    match serde_json::to_vec(output) {
        Ok(body) => json_response(operation.success(), body.into(), request_id),
        Err(_) => ApiError::internal().into_response(request_id),
    }
}

fn parse_body(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(ApiError::serialization("Expected structure")),
        Err(error) => Err(ApiError::serialization(format!(
            "Could not parse request body into json: {error}"
        ))),
    }
}

/// The pairs of a raw query, decoded. A plus is a plus: SigV4 signs it as one.
fn parse_query(raw: &str) -> Result<Vec<(String, String)>, ApiError> {
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| ApiError::unparseable())
    };
    raw.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if value.contains('=') {
                // As AWS does on a page token whose padding was not encoded.
                return Err(ApiError::unparseable());
            }
            Ok((decode(key)?, decode(value)?))
        })
        .collect()
}

/// The value of a query parameter: all occurrences for a list, the first one otherwise.
fn bind_query(member: &Member, query: &[(String, String)]) -> Result<Option<Value>, ApiError> {
    let mut values = query
        .iter()
        .filter(|(key, _)| key == member.name)
        .map(|(_, value)| value.as_str());
    if let Shape::List(..) = member.shape {
        let values: Vec<&str> = values.collect();
        return Ok((!values.is_empty()).then(|| Value::from(values)));
    }
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let wrong = || validate::wrong_type(member.shape, member.name);
    Ok(Some(match member.shape {
        Shape::Integer(_) => {
            Value::Number(Number::from(value.parse::<i32>().map_err(|_| wrong())?))
        }
        Shape::Boolean => Value::Bool(value.parse().map_err(|_| wrong())?),
        _ => Value::from(value),
    }))
}
