//! The listener without TLS: the same phases, by HTTP/1.1 and by HTTP/2 with prior knowledge.

use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{head, host, text, whole};
use crate::fixture::{ENDPOINT, Fixture, OTHER_ENDPOINT, soon};

#[tokio::test]
async fn http_1_passes_and_is_judged_as_over_tls() {
    let fixture = Fixture::new().await;
    let mut stream = TcpStream::connect(fixture.plain_address)
        .await
        .expect("connect");
    let request = head(&fixture, "GET /") + "connection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    assert!(app.head().await.starts_with("GET / HTTP/1.1\r\n"));
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    app.stream.write_all(answer).await.expect("write");
    let mut seen = String::new();
    soon(stream.read_to_string(&mut seen)).await.expect("read");
    assert!(
        seen.starts_with("HTTP/1.1 200 OK") && seen.ends_with("hi"),
        "{seen}"
    );

    let mut stream = TcpStream::connect(fixture.plain_address)
        .await
        .expect("connect");
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        host(ENDPOINT)
    );
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut seen = String::new();
    soon(stream.read_to_string(&mut seen)).await.expect("read");
    assert!(seen.starts_with("HTTP/1.1 403 "), "{seen}");
}

#[tokio::test]
async fn http_2_with_prior_knowledge_passes() {
    let fixture = Fixture::new().await;
    let stream = TcpStream::connect(fixture.plain_address)
        .await
        .expect("connect");
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = soon(handshake).await.expect("h2");
    tokio::spawn(connection);
    let request = |endpoint: &str| {
        let builder = Request::builder().uri(format!("http://{}/", host(endpoint)));
        let builder = builder.header("x-aws-proxy-auth", fixture.token());
        builder.body(whole("")).expect("request")
    };
    // Nothing was agreed on in a handshake, so one connection may name any host; the token decides.
    let refused = soon(sender.send_request(request(OTHER_ENDPOINT)))
        .await
        .expect("response");
    assert_eq!(refused.status(), 403);
    let answered = tokio::spawn(sender.send_request(request(ENDPOINT)));
    let mut app = fixture.app().await;
    app.head().await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    app.stream.write_all(answer).await.expect("write");
    let response = soon(answered).await.expect("task").expect("response");
    assert_eq!(text(response).await, "hi");
}
