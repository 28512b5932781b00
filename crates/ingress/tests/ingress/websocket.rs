//! WebSockets as browsers open them, over HTTP/1.1 and HTTP/2, and what is left of one whose app is gone.

use bytes::Bytes;
use expect_test::{Expect, expect};
use http::{Method, Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{connect, host, normalized, raw, raw_exchange, text};
use crate::fixture::{App, ENDPOINT, Fixture, OTHER_ENDPOINT, read_until, soon, until};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
     upgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
/// A close frame: 1001 and the reason.
const GONE: &[u8] = b"\x88\x17\x03\xe9the MicroVM went away";

/// An opening handshake without a token, open for more headers.
fn handshake() -> String {
    format!(
        "GET /chat HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        host(ENDPOINT)
    )
}

/// As [`handshake`], with the platform's marker and a token, open for more subprotocols.
fn browser(fixture: &Fixture) -> String {
    browser_with(&fixture.token())
}

fn browser_with(token: &str) -> String {
    format!(
        "{}sec-websocket-protocol: lambda-microvms, lambda-microvms.authentication.{token}",
        handshake()
    )
}

/// Sends a handshake; the app sees it and answers with `answer`.
async fn open(
    fixture: &Fixture,
    handshake: &str,
    answer: &str,
) -> (TlsStream<TcpStream>, App, String, String) {
    let mut stream = raw(fixture).await;
    stream.write_all(handshake.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    let seen = app.head().await;
    app.stream
        .write_all(answer.as_bytes())
        .await
        .expect("write");
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    (stream, app, seen, answer)
}

fn subprotocol(head: &str) -> Option<&str> {
    let mut lines = head
        .lines()
        .filter_map(|line| line.strip_prefix("sec-websocket-protocol: "));
    let value = lines.next();
    assert_eq!(lines.next(), None, "{head}");
    value
}

#[tokio::test]
async fn a_browser_names_token_and_port_as_subprotocols() {
    let fixture = Fixture::new().await;
    let none = format!("{SWITCH}\r\n");
    let chat = format!("{SWITCH}sec-websocket-protocol: chat\r\n\r\n");
    let token = format!("lambda-microvms.authentication.{}", fixture.token());
    let marker = Some("lambda-microvms");
    for (offered, answer, port, seen, selected) in [
        (vec!["lambda-microvms", &token], &none, 8080, None, marker),
        (
            vec![&token, "lambda-microvms.port.9003", "lambda-microvms"],
            &none,
            9003,
            None,
            marker,
        ),
        (
            vec![
                "lambda-microvms",
                "chat",
                &token,
                "lambda-microvms.port.9000",
            ],
            &chat,
            9000,
            Some("chat"),
            Some("chat"),
        ),
        (
            vec!["lambda-microvms", "chat", "talk", &token],
            &none,
            8080,
            Some("chat, talk"),
            marker,
        ),
    ] {
        for between in [", ", "\r\nsec-websocket-protocol: "] {
            let offered = offered.join(between);
            let ask = format!("{}sec-websocket-protocol: {offered}\r\n\r\n", handshake());
            let (stream, app, head, answer) = open(&fixture, &ask, answer).await;
            assert_eq!(app.port, port);
            assert_eq!(subprotocol(&head), seen);
            assert!(!head.contains("lambda-microvms."), "{head}");
            assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
            assert_eq!(subprotocol(&answer), selected);
            drop(stream);
        }
    }
}

#[tokio::test]
async fn a_token_in_the_header_opens_a_websocket_too() {
    let fixture = Fixture::new().await;
    let answer = format!("{SWITCH}\r\n");
    let token = fixture.token();
    let ask = format!("{}x-aws-proxy-auth: {token}\r\n\r\n", handshake());
    let (_stream, _app, head, answer_) = open(&fixture, &ask, &answer).await;
    assert_eq!(subprotocol(&head), None);
    // A client that offers no subprotocol must not be given one.
    assert_eq!(subprotocol(&answer_), None);

    let ask = format!(
        "{}x-aws-proxy-auth: {token}\r\nx-aws-proxy-port: 9001\r\n\
         sec-websocket-protocol: lambda-microvms.port.9002, chat\r\n\r\n",
        handshake()
    );
    let (_stream, app, head, answer) = open(&fixture, &ask, &answer).await;
    assert_eq!(app.port, 9001, "the header comes first");
    assert_eq!(subprotocol(&head), Some("chat"));
    assert_eq!(subprotocol(&answer), None);
}

async fn check(fixture: &Fixture, ask: &str, expected: &Expect) {
    let answer = raw_exchange(fixture, ask).await;
    expected.assert_eq(&normalized(&answer));
}

#[tokio::test]
async fn a_handshake_without_a_whole_offer_is_refused() {
    let fixture = Fixture::new().await;
    let token = fixture.token();
    let expected = expect![[r#"
        HTTP/1.1 403 Forbidden
        cache-control: private, no-store
        content-type: text/plain
        x-amzn-requestid: …
        connection: close
        content-length: 30
        date: …

        Request missing authentication"#]];
    for offered in [
        "lambda-microvms".to_owned(),
        format!("lambda-microvms.authentication.{token}"),
        "lambda-microvms, lambda-microvms.authentication.not-a-token".to_owned(),
        format!("Lambda-Microvms, lambda-microvms.authentication.{token}"),
    ] {
        let ask = format!(
            "{}sec-websocket-protocol: {offered}\r\n\r\n",
            handshake().replace("Upgrade\r\n", "Upgrade, close\r\n")
        );
        check(&fixture, &ask, &expected).await;
    }
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn what_a_handshake_asks_for_is_judged_like_a_request() {
    let fixture = Fixture::new().await;
    let whole = browser(&fixture);
    let foreign = browser_with(&fixture.token_for(OTHER_ENDPOINT, 60));
    let expired = browser_with(&fixture.token_for(ENDPOINT, -1));
    for (ask, status, words) in [
        (foreign, 403, "Token authentication failed"),
        (expired, 403, "Token authentication failed"),
        (
            format!("{whole}, lambda-microvms.port.22"),
            403,
            "Access to port denied",
        ),
        (
            format!("{whole}, lambda-microvms.port.x"),
            400,
            "Invalid X-aws-proxy-port",
        ),
        (
            format!("{whole}, lambda-microvms.port.0"),
            400,
            "Invalid X-aws-proxy-port",
        ),
        (
            format!("{whole}, lambda-microvms.port."),
            400,
            "Invalid X-aws-proxy-port",
        ),
        (
            format!("{whole}, lambda-microvms.port.65536"),
            400,
            "Invalid X-aws-proxy-port",
        ),
        (
            format!("{whole}, lambda-microvms.port.9000, lambda-microvms.port.9001"),
            400,
            "Invalid Sec-WebSocket-Protocol",
        ),
        (
            format!("{whole}, lambda-microvms"),
            400,
            "Invalid Sec-WebSocket-Protocol",
        ),
        (
            format!("{whole}\r\nsec-websocket-protocol: lambda-microvms.authentication.x"),
            400,
            "Invalid Sec-WebSocket-Protocol",
        ),
    ] {
        let ask = ask.replace("Upgrade\r\n", "Upgrade, close\r\n") + "\r\n\r\n";
        let answer = raw_exchange(&fixture, &ask).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{ask}: {answer}"
        );
        assert!(
            answer.ends_with(&format!("\r\n\r\n{words}")),
            "{ask}: {answer}"
        );
        assert!(answer.contains("x-amzn-requestid: "), "{answer}");
    }
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn subprotocols_open_nothing_but_a_websocket() {
    let fixture = Fixture::new().await;
    let offer = browser(&fixture).replace("connection: Upgrade\r\nupgrade: websocket\r\n", "");
    let answer = raw_exchange(&fixture, &(offer + "\r\nconnection: close\r\n\r\n")).await;
    assert!(
        answer.ends_with("Request missing authentication"),
        "{answer}"
    );
    let echo = browser(&fixture).replace("upgrade: websocket", "upgrade: echo");
    let echo = echo.replace("Upgrade\r\n", "Upgrade, close\r\n") + "\r\n\r\n";
    let answer = raw_exchange(&fixture, &echo).await;
    assert!(
        answer.ends_with("Request missing authentication"),
        "{answer}"
    );
    assert_eq!(fixture.opens(), 0);
    // Where the header opens the way, they still do not reach the app.
    let ask = browser(&fixture).replace("connection: Upgrade\r\nupgrade: websocket\r\n", "");
    let mut stream = raw(&fixture).await;
    let ask = format!(
        "{ask}, chat\r\nx-aws-proxy-auth: {}\r\n\r\n",
        fixture.token()
    );
    stream.write_all(ask.as_bytes()).await.expect("write");
    let head = fixture.app().await.head().await;
    assert_eq!(subprotocol(&head), Some("chat"));
}

/// An HTTP/2 connection that knows that it may open WebSockets.
async fn http2(fixture: &Fixture) -> http2::SendRequest<Empty<Bytes>> {
    let stream = connect(fixture, &host(ENDPOINT), "h2").await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("h2");
    tokio::spawn(connection);
    // The server's settings have come when the first answer has.
    let uri = format!("https://{}/", host(ENDPOINT));
    let first = Request::builder()
        .uri(uri)
        .body(Empty::new())
        .expect("request");
    let refused = soon(sender.send_request(first)).await.expect("response");
    assert_eq!(refused.status(), 403);
    sender
}

fn connect_request(fixture: &Fixture, protocol: &'static str) -> Request<Empty<Bytes>> {
    let token = fixture.token();
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://{}/chat?q=1", host(ENDPOINT)))
        .header("sec-websocket-version", "13")
        .header("origin", "https://example.com")
        .header(
            "sec-websocket-protocol",
            format!(
                "lambda-microvms, lambda-microvms.authentication.{token}, lambda-microvms.port.9000"
            ),
        )
        .body(Empty::new())
        .expect("request");
    request
        .extensions_mut()
        .insert(Protocol::from_static(protocol));
    request
}

async fn open_http2(
    fixture: &Fixture,
    answer: &str,
) -> (hyper::Result<Response<Incoming>>, App, String) {
    let mut sender = http2(fixture).await;
    let response = tokio::spawn(sender.send_request(connect_request(fixture, "websocket")));
    let mut app = fixture.app().await;
    let head = app.head().await;
    app.stream
        .write_all(answer.as_bytes())
        .await
        .expect("write");
    (soon(response).await.expect("task"), app, head)
}

async fn joined_http2(fixture: &Fixture) -> (TokioIo<Upgraded>, App) {
    let (response, app, _) = open_http2(fixture, &format!("{SWITCH}\r\n")).await;
    let response = response.expect("response");
    assert_eq!(response.status(), 200);
    let stream = soon(hyper::upgrade::on(response)).await.expect("switched");
    (TokioIo::new(stream), app)
}

#[tokio::test]
async fn a_websocket_over_http2_is_one_over_http1_to_the_app() {
    let fixture = Fixture::new().await;
    let (response, mut app, head) = open_http2(&fixture, &format!("{SWITCH}\r\nfirst")).await;
    assert_eq!(app.port, 9000);
    let mut lines: Vec<&str> = head
        .trim_end()
        .split("\r\n")
        .map(|line| match line.split_once(": ") {
            Some((name @ ("sec-websocket-key" | "x-amzn-requestid"), _)) => name,
            _ => line,
        })
        .collect();
    lines[1..].sort_unstable();
    expect![[r#"
        GET /chat?q=1 HTTP/1.1
        connection: upgrade
        host: 30d00336-db07-f4f5-79c1-8571c22bef9e.lambda-microvm.us-east-1.localhost
        origin: https://example.com
        sec-websocket-key
        sec-websocket-version: 13
        upgrade: websocket
        x-amzn-requestid"#]]
    .assert_eq(&lines.join("\n"));
    let response = response.expect("response");
    assert_eq!(response.status(), 200);
    let headers = response.headers();
    assert_eq!(headers["sec-websocket-protocol"], "lambda-microvms");
    for absent in ["sec-websocket-accept", "connection", "upgrade"] {
        assert!(!headers.contains_key(absent), "{absent}");
    }
    let stream = soon(hyper::upgrade::on(response)).await.expect("switched");
    let mut stream = TokioIo::new(stream);
    assert_eq!(read_until(&mut stream, "first").await, "first");
    for n in 0..100 {
        let (ping, pong) = (format!("ping {n}."), format!("pong {n}."));
        stream.write_all(ping.as_bytes()).await.expect("write");
        assert_eq!(read_until(&mut app.stream, ".").await, ping);
        app.stream.write_all(pong.as_bytes()).await.expect("write");
        assert_eq!(read_until(&mut stream, ".").await, pong);
    }
    stream.shutdown().await.expect("shutdown");
    assert_eq!(app.rest().await.expect("rest"), b"");
    app.stream.write_all(b"bye").await.expect("write");
    app.stream.shutdown().await.expect("shutdown");
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.expect("end");
    assert_eq!(rest, b"bye");
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn many_megabytes_pass_a_websocket_over_http2() {
    let fixture = Fixture::new().await;
    let (stream, app) = joined_http2(&fixture).await;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let total = 16 << 20;
    let up = async {
        soon(writer.write_all(&vec![7; total]))
            .await
            .expect("write");
        soon(writer.shutdown()).await.expect("shutdown");
    };
    let echo = async {
        let (mut reader, mut writer) = tokio::io::split(app.stream);
        let copied = soon(tokio::io::copy(&mut reader, &mut writer)).await;
        assert_eq!(copied.expect("copied"), total as u64);
        writer.shutdown().await.expect("shutdown");
    };
    let down = async {
        let mut seen = Vec::new();
        soon(reader.read_to_end(&mut seen)).await.expect("read");
        assert!(seen.iter().all(|byte| *byte == 7));
        seen.len()
    };
    assert_eq!(tokio::join!(up, echo, down).2, total);
}

#[tokio::test]
async fn an_app_may_decline_a_websocket_over_http2() {
    let fixture = Fixture::new().await;
    for (answer, status, words) in [
        (
            "HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno",
            426,
            "no",
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            302,
            "",
        ),
        // Success would mean that the WebSocket stands.
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 502, ""),
        ("HTTP/1.1 204 No Content\r\n\r\n", 502, ""),
        ("nonsense\r\n\r\n", 502, ""),
    ] {
        let (response, app, _) = open_http2(&fixture, answer).await;
        drop(app);
        let response = response.expect("response");
        assert_eq!(response.status(), status, "{answer}");
        assert_eq!(text(response).await, words);
    }
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn http2_connects_to_nothing_else() {
    let fixture = Fixture::new().await;
    let mut sender = http2(&fixture).await;
    let other = connect_request(&fixture, "connect-udp");
    let response = soon(sender.send_request(other)).await.expect("response");
    assert_eq!(response.status(), 501);
    let plain = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("{}:443", host(ENDPOINT)))
        .header("x-aws-proxy-auth", fixture.token())
        .body(Empty::new())
        .expect("request");
    let response = soon(sender.send_request(plain)).await.expect("response");
    assert_eq!(response.status(), 405);
    assert_eq!(text(response).await, "Method not allowed");
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn a_client_that_resets_its_websocket_takes_the_tunnel_with_it() {
    let fixture = Fixture::new().await;
    let (stream, mut app) = joined_http2(&fixture).await;
    drop(stream);
    assert_eq!(app.rest().await.expect("rest"), b"");
    drop(app);
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_client_is_told_that_its_microvm_went_away() {
    let fixture = Fixture::new().await;
    let (mut stream, mut app, ..) = open(
        &fixture,
        &(browser(&fixture) + "\r\n\r\n"),
        &format!("{SWITCH}\r\n"),
    )
    .await;
    app.stream.write_all(b"\x81\x02hi").await.expect("write");
    app.vanish();
    let mut seen = Vec::new();
    // The end is one of TLS too: nothing was cut.
    soon(stream.read_to_end(&mut seen)).await.expect("end");
    assert_eq!(seen, [b"\x81\x02hi", GONE].concat());
    // Its own close frame is still taken, and then all is over.
    stream
        .write_all(b"\x88\x82\0\0\0\0\x03\xe9")
        .await
        .expect("write");
    stream.shutdown().await.expect("shutdown");
    until(|| fixture.live() == 0).await;

    let (mut stream, mut app) = joined_http2(&fixture).await;
    app.stream.write_all(b"\x81\x02hi").await.expect("write");
    app.vanish();
    let mut seen = Vec::new();
    soon(stream.read_to_end(&mut seen)).await.expect("end");
    assert_eq!(seen, [b"\x81\x02hi", GONE].concat());
    drop(stream);
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn amid_a_frame_there_is_no_room_for_a_farewell() {
    let fixture = Fixture::new().await;
    let (mut stream, mut app, ..) = open(
        &fixture,
        &(browser(&fixture) + "\r\n\r\n"),
        &format!("{SWITCH}\r\n"),
    )
    .await;
    app.stream.write_all(b"\x81\x03hi").await.expect("write");
    app.vanish();
    let mut seen = Vec::new();
    let error = soon(stream.read_to_end(&mut seen)).await.expect_err("cut");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(seen, b"\x81\x03hi");
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_client_that_stays_after_the_farewell_is_not_waited_for() {
    let fixture = Fixture::with(|config| config.connections_max = 1).await;
    let (mut stream, app, ..) = open(
        &fixture,
        &(browser(&fixture) + "\r\n\r\n"),
        &format!("{SWITCH}\r\n"),
    )
    .await;
    app.vanish();
    let mut seen = Vec::new();
    soon(stream.read_to_end(&mut seen)).await.expect("end");
    assert_eq!(seen, GONE);
    // It neither answers nor closes, and still its place is free for another.
    soon(raw(&fixture)).await;
    drop(stream);
}

#[tokio::test]
async fn other_protocols_get_no_frames_of_websocket() {
    let fixture = Fixture::new().await;
    let ask = format!(
        "{}x-aws-proxy-auth: {}\r\n\r\n",
        handshake(),
        fixture.token()
    );
    let ask = ask.replace("upgrade: websocket", "upgrade: echo");
    let answer = format!("{SWITCH}\r\n").replace("upgrade: websocket", "upgrade: echo");
    let (mut stream, mut app, ..) = open(&fixture, &ask, &answer).await;
    app.stream.write_all(b"hi").await.expect("write");
    app.vanish();
    let mut seen = Vec::new();
    let error = soon(stream.read_to_end(&mut seen)).await.expect_err("cut");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(seen, b"hi");
}
