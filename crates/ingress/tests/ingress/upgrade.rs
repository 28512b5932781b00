//! Connections that go on with another protocol after a 101.

use expect_test::expect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{head, normalized, raw, read_to_close};
use crate::fixture::{App, Fixture, read_until, soon, until};

const ASK: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
     Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn ask(fixture: &Fixture) -> (TlsStream<TcpStream>, App, String) {
    let mut stream = raw(fixture).await;
    let request = head(fixture, "GET /chat") + ASK;
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    let seen = app.head().await;
    (stream, app, seen)
}

#[tokio::test]
async fn a_websocket_is_joined_to_its_app() {
    let fixture = Fixture::new().await;
    let (mut stream, mut app, seen) = ask(&fixture).await;
    assert!(seen.contains("connection: upgrade\r\n"), "{seen}");
    assert!(seen.contains("upgrade: websocket\r\n"), "{seen}");
    assert!(
        seen.contains("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        "{seen}"
    );
    // The app's first words may come in one piece with its head.
    app.stream
        .write_all(format!("{SWITCH}first").as_bytes())
        .await
        .expect("write");
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    expect![[r#"
        HTTP/1.1 101 Switching Protocols
        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=
        connection: upgrade
        upgrade: websocket
        x-amzn-requestid: …
        date: …

    "#]]
    .assert_eq(&normalized(&answer));
    assert_eq!(read_until(&mut stream, "first").await, "first");
    for n in 0..100 {
        let (ping, pong) = (format!("ping {n}."), format!("pong {n}."));
        stream.write_all(ping.as_bytes()).await.expect("write");
        assert_eq!(read_until(&mut app.stream, ".").await, ping);
        app.stream.write_all(pong.as_bytes()).await.expect("write");
        assert_eq!(read_until(&mut stream, ".").await, pong);
    }
    // Each side may close first, and the other may still talk.
    app.stream.shutdown().await.expect("shutdown");
    assert_eq!(read_to_close(&mut stream).await, "");
    stream.write_all(b"bye").await.expect("write");
    stream.shutdown().await.expect("shutdown");
    assert_eq!(app.rest().await.expect("rest"), b"bye");
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_client_that_vanishes_takes_the_tunnel_with_it() {
    let fixture = Fixture::new().await;
    let (mut stream, mut app, _) = ask(&fixture).await;
    app.stream
        .write_all(SWITCH.as_bytes())
        .await
        .expect("write");
    read_until(&mut stream, "\r\n\r\n").await;
    drop(stream);
    assert_eq!(app.rest().await.expect("rest"), b"");
    drop(app);
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn an_app_may_decline_to_switch() {
    let fixture = Fixture::new().await;
    let (mut stream, mut app, _) = ask(&fixture).await;
    let words =
        b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno";
    app.stream.write_all(words).await.expect("write");
    let mut answer = vec![0; 24];
    soon(stream.read_exact(&mut answer)).await.expect("answer");
    assert!(answer.starts_with(b"HTTP/1.1 426 "), "{answer:?}");
    let rest = read_until(&mut stream, "\r\n\r\nno").await;
    assert!(!rest.contains("upgrade"), "{rest}");
    drop(app);
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_switched_connection_keeps_its_place_under_the_limit() {
    let fixture = Fixture::with(|config| config.connections_max = 1).await;
    let (mut stream, mut app, _) = ask(&fixture).await;
    app.stream
        .write_all(SWITCH.as_bytes())
        .await
        .expect("write");
    read_until(&mut stream, "\r\n\r\n").await;
    let second = raw(&fixture);
    tokio::pin!(second);
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), second.as_mut()).await;
    assert!(early.is_err(), "a second connection was served");
    drop((stream, app));
    soon(second).await;
}
