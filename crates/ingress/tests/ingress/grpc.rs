//! HTTP/2 on both sides, as gRPC needs it: each kind of call, half-closed streams, resets either way.

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::DuplexStream;

use crate::client::{connect, host};
use crate::fixture::{ENDPOINT, Fixture, soon, until};

type Sender = SendRequest<Bytes>;
type AppConnection = h2::server::Connection<DuplexStream, Bytes>;

pub(crate) async fn client(fixture: &Fixture) -> Sender {
    let stream = connect(fixture, &host(ENDPOINT), "h2").await;
    let (sender, connection) = h2::client::handshake(stream).await.expect("h2");
    tokio::spawn(connection);
    soon(sender.ready()).await.expect("ready")
}

pub(crate) fn call(fixture: &Fixture) -> Request<()> {
    Request::builder()
        .method("POST")
        .uri(format!("https://{}/echo.Echo/Call", host(ENDPOINT)))
        .header("x-aws-proxy-auth", fixture.token())
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .header("grpc-timeout", "10S")
        .body(())
        .expect("request")
}

/// A call that the app has accepted: both ends of it.
struct Call {
    request: SendStream<Bytes>,
    response: h2::client::ResponseFuture,
    app: AppCall,
    _client: Sender,
}

pub(crate) struct AppCall {
    head: http::request::Parts,
    request: RecvStream,
    response: SendResponse<Bytes>,
}

async fn begin(fixture: &Fixture) -> Call {
    let mut sender = client(fixture).await;
    let (response, request) = sender.send_request(call(fixture), false).expect("request");
    let app = fixture.app().await;
    Call {
        request,
        response,
        app: accept(app.stream).await,
        _client: sender,
    }
}

/// The first call on a connection; the connection is driven on.
pub(crate) async fn accept(stream: DuplexStream) -> AppCall {
    let mut connection: AppConnection = soon(h2::server::handshake(stream)).await.expect("h2c");
    let (request, response) = soon(connection.accept())
        .await
        .expect("a call")
        .expect("a call");
    tokio::spawn(async move { while let Some(Ok(_)) = connection.accept().await {} });
    let (head, request) = request.into_parts();
    AppCall {
        head,
        request,
        response,
    }
}

impl AppCall {
    pub(crate) fn answer(&mut self) -> SendStream<Bytes> {
        let head = Response::builder()
            .header("content-type", "application/grpc+proto")
            .body(())
            .expect("response");
        self.response.send_response(head, false).expect("response")
    }
}

fn say(stream: &mut SendStream<Bytes>, words: &'static str) {
    stream
        .send_data(Bytes::from_static(words.as_bytes()), false)
        .expect("send");
}

async fn hear(stream: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    loop {
        let data = soon(stream.data()).await?;
        if let Ok(data) = &data {
            stream
                .flow_control()
                .release_capacity(data.len())
                .expect("window");
            if data.is_empty() {
                continue;
            }
        }
        return Some(data);
    }
}

async fn hear_words(stream: &mut RecvStream) -> String {
    let data = hear(stream).await.expect("more").expect("data");
    String::from_utf8(data.to_vec()).expect("text")
}

fn status(code: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().expect("value"));
    trailers
}

async fn grpc_status(stream: &mut RecvStream) -> String {
    assert!(hear(stream).await.is_none(), "more than was said");
    let trailers = soon(stream.trailers())
        .await
        .expect("trailers")
        .expect("trailers");
    trailers["grpc-status"].to_str().expect("text").to_owned()
}

#[tokio::test]
async fn a_unary_call() {
    let fixture = Fixture::new().await;
    let mut call = begin(&fixture).await;
    let head = &call.app.head;
    assert_eq!(head.uri.path(), "/echo.Echo/Call");
    assert_eq!(
        head.uri.authority().expect("authority"),
        &host(ENDPOINT)[..]
    );
    assert_eq!(head.headers["te"], "trailers");
    assert_eq!(head.headers["grpc-timeout"], "10S");
    assert!(!head.headers.contains_key("x-aws-proxy-auth"));
    call.request.send_data("ask".into(), true).expect("send");
    assert_eq!(hear_words(&mut call.app.request).await, "ask");
    assert!(hear(&mut call.app.request).await.is_none());
    let mut answer = call.app.answer();
    say(&mut answer, "answer");
    answer.send_trailers(status("0")).expect("trailers");
    let mut response = soon(call.response).await.expect("response").into_body();
    assert_eq!(hear_words(&mut response).await, "answer");
    assert_eq!(grpc_status(&mut response).await, "0");
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_call_that_streams_to_the_app() {
    let fixture = Fixture::new().await;
    let mut call = begin(&fixture).await;
    for words in ["one", "two", "three"] {
        say(&mut call.request, words);
        assert_eq!(hear_words(&mut call.app.request).await, words);
    }
    call.request.send_data(Bytes::new(), true).expect("end");
    assert!(hear(&mut call.app.request).await.is_none());
    let mut answer = call.app.answer();
    say(&mut answer, "sum");
    answer.send_trailers(status("0")).expect("trailers");
    let mut response = soon(call.response).await.expect("response").into_body();
    assert_eq!(hear_words(&mut response).await, "sum");
    assert_eq!(grpc_status(&mut response).await, "0");
}

#[tokio::test]
async fn a_call_that_streams_to_the_client() {
    let fixture = Fixture::new().await;
    let mut call = begin(&fixture).await;
    call.request.send_data("go".into(), true).expect("send");
    let mut answer = call.app.answer();
    let mut response = soon(call.response).await.expect("response").into_body();
    for words in ["one", "two", "three"] {
        say(&mut answer, words);
        assert_eq!(hear_words(&mut response).await, words);
    }
    answer.send_trailers(status("14")).expect("trailers");
    assert_eq!(grpc_status(&mut response).await, "14");
}

#[tokio::test]
async fn a_call_that_streams_both_ways() {
    let fixture = Fixture::new().await;
    let mut call = begin(&fixture).await;
    let mut answer = call.app.answer();
    let mut response = soon(call.response).await.expect("response").into_body();
    for (up, down) in [("a", "A"), ("b", "B"), ("c", "C")] {
        say(&mut call.request, up);
        assert_eq!(hear_words(&mut call.app.request).await, up);
        say(&mut answer, down);
        assert_eq!(hear_words(&mut response).await, down);
    }
    // The client has said all, the app has not.
    call.request.send_data(Bytes::new(), true).expect("end");
    assert!(hear(&mut call.app.request).await.is_none());
    say(&mut answer, "more");
    assert_eq!(hear_words(&mut response).await, "more");
    answer.send_trailers(status("0")).expect("trailers");
    assert_eq!(grpc_status(&mut response).await, "0");
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_status_without_a_message_is_a_head_alone() {
    let fixture = Fixture::new().await;
    let mut call = begin(&fixture).await;
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", "5")
        .body(())
        .expect("response");
    call.app
        .response
        .send_response(head, true)
        .expect("response");
    let response = soon(call.response).await.expect("response");
    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn an_answer_before_the_request_has_ended_is_not_lost() {
    let fixture = Fixture::new().await;
    let mut call = begin(&fixture).await;
    say(&mut call.request, "first of many");
    assert_eq!(hear_words(&mut call.app.request).await, "first of many");
    let mut answer = call.app.answer();
    say(&mut answer, "enough");
    answer.send_trailers(status("8")).expect("trailers");
    // It lets go of the rest of the request, which resets the stream without an error.
    drop(call.app);
    let mut response = soon(call.response).await.expect("response").into_body();
    assert_eq!(hear_words(&mut response).await, "enough");
    assert_eq!(grpc_status(&mut response).await, "8");
}

#[tokio::test]
async fn a_client_that_resets_its_call_resets_the_apps() {
    let fixture = Fixture::new().await;
    // While the app has not answered yet ...
    let mut call = begin(&fixture).await;
    say(&mut call.request, "x");
    assert_eq!(hear_words(&mut call.app.request).await, "x");
    call.request.send_reset(Reason::CANCEL);
    let reset = hear(&mut call.app.request)
        .await
        .expect("a reset")
        .expect_err("a reset");
    assert!(reset.reason().is_some() || reset.is_io(), "{reset}");
    until(|| fixture.live() == 0).await;

    // ... and while it answers, to a request that is whole.
    let mut call = begin(&fixture).await;
    call.request.send_data(Bytes::new(), true).expect("end");
    let mut answer = call.app.answer();
    say(&mut answer, "x");
    let mut response = soon(call.response).await.expect("response").into_body();
    assert_eq!(hear_words(&mut response).await, "x");
    call.request.send_reset(Reason::CANCEL);
    let reset = soon(std::future::poll_fn(|context| answer.poll_reset(context))).await;
    assert!(reset.is_err() || reset.is_ok_and(|reason| reason == Reason::CANCEL));
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn an_app_that_resets_an_answer_resets_the_clients() {
    let fixture = Fixture::new().await;
    for reason in [
        Reason::INTERNAL_ERROR,
        Reason::CANCEL,
        Reason::ENHANCE_YOUR_CALM,
    ] {
        let mut call = begin(&fixture).await;
        let mut answer = call.app.answer();
        say(&mut answer, "half");
        let mut response = soon(call.response).await.expect("response").into_body();
        assert_eq!(hear_words(&mut response).await, "half");
        answer.send_reset(reason);
        let reset = hear(&mut response)
            .await
            .expect("no clean end")
            .expect_err("a reset");
        assert_eq!(reset.reason(), Some(reason));
    }
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn an_app_that_resets_before_it_answers_is_a_502() {
    let fixture = Fixture::new().await;
    let mut call = begin(&fixture).await;
    call.app.response.send_reset(Reason::REFUSED_STREAM);
    let response = soon(call.response).await.expect("response");
    assert_eq!(response.status(), 502);
}

#[tokio::test]
async fn a_microvm_that_goes_away_resets_the_stream() {
    let fixture = Fixture::new().await;
    let mut sender = client(&fixture).await;
    let (response, _request) = sender.send_request(call(&fixture), true).expect("request");
    let mut app = fixture.app().await;
    let stream = std::mem::replace(&mut app.stream, tokio::io::duplex(1).0);
    let mut accepted = accept(stream).await;
    let mut answer = accepted.answer();
    say(&mut answer, "half");
    let mut response = soon(response).await.expect("response").into_body();
    assert_eq!(hear_words(&mut response).await, "half");
    app.vanish();
    // Both ends of the app's connection are in a task of its own, which ends with its last stream.
    drop((answer, accepted));
    let ended = hear(&mut response).await.expect("no clean end");
    assert!(ended.expect_err("a reset").reason().is_some());
}

#[tokio::test]
async fn a_refusal_is_a_plain_403() {
    let fixture = Fixture::new().await;
    let mut sender = client(&fixture).await;
    let mut denied = call(&fixture);
    denied.headers_mut().remove("x-aws-proxy-auth");
    let (response, _request) = sender.send_request(denied, false).expect("request");
    let response = soon(response).await.expect("response");
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["content-type"], "text/plain");
    assert!(!response.headers().contains_key("grpc-status"));
    let mut body = response.into_body();
    assert_eq!(
        hear_words(&mut body).await,
        "Request missing authentication"
    );
    assert!(hear(&mut body).await.is_none());
    assert!(soon(body.trailers()).await.expect("end").is_none());
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn many_calls_share_a_connection() {
    let fixture = Fixture::new().await;
    let sender = client(&fixture).await;
    let mut calls = Vec::new();
    for _ in 0..20 {
        let mut sender = soon(sender.clone().ready()).await.expect("ready");
        let (response, request) = sender.send_request(call(&fixture), false).expect("request");
        let app = accept(fixture.app().await.stream).await;
        calls.push((response, request, app));
    }
    for (response, mut request, mut app) in calls.into_iter().rev() {
        request.send_data("x".into(), true).expect("send");
        assert_eq!(hear_words(&mut app.request).await, "x");
        let mut answer = app.answer();
        answer.send_trailers(status("0")).expect("trailers");
        let mut response = soon(response).await.expect("response").into_body();
        assert_eq!(grpc_status(&mut response).await, "0");
    }
    until(|| fixture.live() == 0).await;
}
