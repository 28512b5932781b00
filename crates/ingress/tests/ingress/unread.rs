//! Uploads that their app never reads: they end with what they belong to, and hold nothing beyond.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dormouse_core::EndpointId;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::Request;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use crate::client::request;
use crate::fixture::{App, ENDPOINT, Fixture, soon, until};
use crate::grpc::{accept, call, client};

/// More than fits between client and app.
const BULK: usize = 8 << 20;
/// By then nothing moves any more.
const STALL: Duration = Duration::from_millis(200);
const BEGUN: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";

/// A client's side of an upload.
struct Upload {
    response: ResponseFuture,
    body: SendStream<Bytes>,
}

/// Sends `request` with a body that fills whatever is on its way, and the app that has it.
async fn pour(fixture: &Fixture, request: Request<()>) -> (Upload, App) {
    let mut client = client(fixture).await;
    let (response, mut body) = client.send_request(request, false).expect("request");
    body.send_data(Bytes::from(vec![0; BULK]), false)
        .expect("room");
    (Upload { response, body }, fixture.app().await)
}

fn post(fixture: &Fixture) -> Request<()> {
    request(fixture, "POST", "/").body(()).expect("request")
}

/// The client goes once it has the head of the answer and its upload stands still.
async fn leave_amid_the_answer(Upload { response, body }: Upload) {
    let response = soon(response).await.expect("response");
    sleep(STALL).await;
    drop((body, response));
}

fn is_in_flight(fixture: &Fixture) -> bool {
    let endpoint = EndpointId::parse(ENDPOINT).expect("endpoint");
    fixture.metrics.of(&endpoint).in_flight > 0
}

/// Waits until no request is in flight and no client has a connection.
async fn over(fixture: &Fixture) {
    until(|| {
        let connections = "dormouse_ingress_connections 0";
        !is_in_flight(fixture)
            && fixture.stub.visits.load(Ordering::SeqCst) == 0
            && fixture
                .metrics
                .text()
                .lines()
                .any(|line| line == connections)
    })
    .await;
}

#[tokio::test]
async fn it_ends_with_its_client_before_the_answer() {
    let fixture = Fixture::new().await;
    let (upload, mut app) = pour(&fixture, post(&fixture)).await;
    app.head().await;
    sleep(STALL).await;
    drop(upload);
    over(&fixture).await;
}

#[tokio::test]
async fn it_ends_with_its_client_during_the_answer() {
    let fixture = Fixture::new().await;
    let (upload, mut app) = pour(&fixture, post(&fixture)).await;
    app.head().await;
    app.stream.write_all(BEGUN).await.expect("write");
    leave_amid_the_answer(upload).await;
    over(&fixture).await;
}

#[tokio::test]
async fn it_ends_when_the_answer_does_not_come_in_time() {
    let fixture = Fixture::with(|config| config.response_timeout = Some(STALL)).await;
    let (upload, mut app) = pour(&fixture, post(&fixture)).await;
    app.head().await;
    let Upload { response, body } = upload;
    assert_eq!(soon(response).await.expect("response").status(), 502);
    until(|| fixture.stub.visits.load(Ordering::SeqCst) == 0).await;
    drop(body);
    over(&fixture).await;
}

#[tokio::test]
async fn it_ends_with_a_call_that_is_called_off() {
    let fixture = Fixture::new().await;
    let (upload, app) = pour(&fixture, call(&fixture)).await;
    let mut app = accept(app.stream).await;
    let _answer = app.answer();
    leave_amid_the_answer(upload).await;
    over(&fixture).await;
}

#[tokio::test]
async fn it_ends_with_a_call_whose_app_has_answered() {
    let fixture = Fixture::with(|config| config.unread_body_timeout = STALL).await;
    let (upload, app) = pour(&fixture, call(&fixture)).await;
    let mut app = accept(app.stream).await;
    app.answer()
        .send_data(Bytes::from_static(b"ok"), true)
        .expect("answer");
    let Upload {
        response,
        body: _body,
    } = upload;
    let mut response = soon(response).await.expect("response").into_body();
    while let Some(data) = soon(response.data()).await {
        data.expect("data");
    }
    until(|| !is_in_flight(&fixture)).await;
}
