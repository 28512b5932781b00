//! What reaches the control API before anybody is let in or refused: the signature's header, the path, the query and
//! the body, for every operation. Whatever comes, the answer is a value or an error of the client's.

#![no_main]

use dormouse_api::restjson::{self, Request};
use dormouse_api::route::PathParams;
use dormouse_api::sigv4::Authorization;
use dormouse_api::types::{
    CreateMicrovmAuthTokenRequest, CreateMicrovmImageRequest, ListMicrovmsRequest,
    RunMicrovmRequest,
};
use http::Method;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(4, |byte| *byte == b'\n');
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (header, path, query) = (text(), text(), text());
    let body = parts.next().unwrap_or_default();

    let _ = Authorization::parse(&header);
    let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
    let found = methods
        .iter()
        .find_map(|method| dormouse_api::route(method, &path).ok());
    let labels = found.map(|found| found.path_params).unwrap_or_default();
    parse::<CreateMicrovmImageRequest>(&labels, &query, body);
    parse::<RunMicrovmRequest>(&labels, &query, body);
    parse::<CreateMicrovmAuthTokenRequest>(&labels, &query, body);
    parse::<ListMicrovmsRequest>(&labels, &query, body);
});

fn parse<T: Request>(labels: &PathParams, query: &str, body: &[u8]) {
    if let Err(error) = restjson::parse::<T>(labels, query, body) {
        let status = error.into_response(uuid::Uuid::nil()).status();
        assert!(status.is_client_error(), "{status}");
    }
}
