//! Clients that mean harm: floods, silence, other hosts' names.

use std::time::{Duration, Instant};

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{
    BOTH, Client, Http, connect, head, host, raw, raw_exchange, read_to_close, request, text, whole,
};
use crate::fixture::{App, ENDPOINT, Fixture, OTHER_ENDPOINT, SUFFIX, read_until, soon};
use http::header::HeaderValue;

#[tokio::test]
async fn a_head_of_100_mb_is_refused_at_its_first_kilobytes() {
    let fixture = Fixture::new().await;
    let total = 100 << 20;
    for line in [
        format!("x: {}\r\n", "a".repeat(1000)),
        "x: 1\r\n".to_owned(),
        "a".repeat(1000),
    ] {
        let stream = raw(&fixture).await;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let head = head(&fixture, "GET /");
        let flood = async move {
            let mut sent = 0;
            if writer.write_all(head.as_bytes()).await.is_err() {
                return sent;
            }
            while sent < total && writer.write_all(line.as_bytes()).await.is_ok() {
                sent += line.len();
            }
            sent
        };
        let answer = async {
            let mut answer = Vec::new();
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = reader.read(&mut buffer).await {
                answer.extend_from_slice(&buffer[..length]);
            }
            String::from_utf8(answer).expect("text")
        };
        let (sent, answer) = soon(async { tokio::join!(flood, answer) }).await;
        assert!(sent < 16 << 20, "{sent} bytes were taken");
        // The reset may overtake the answer, as the client never stops writing.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
    }
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_answered_with_431() {
    let fixture = Fixture::new().await;
    for headers in [
        "x: 1\r\n".repeat(200),
        format!("x: {}\r\n", "a".repeat(70_000)),
    ] {
        let answer = raw_exchange(&fixture, &(head(&fixture, "GET /") + &headers + "\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    for (name, count, length) in [("count", 200, 1), ("size", 1, 70_000)] {
        let mut client = Client::new(&fixture, Http::Two).await;
        let mut bomb = request(&fixture, "GET", "/")
            .body(whole(""))
            .expect("request");
        for _ in 0..count {
            let value = HeaderValue::from_str(&"a".repeat(length)).expect("value");
            bomb.headers_mut().append("x", value);
        }
        let response = client.send(bomb).await.expect("response");
        assert_eq!(response.status(), 431, "{name}");
    }
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn a_head_within_the_limit_passes() {
    let fixture = Fixture::new().await;
    let request = head(&fixture, "GET /") + &format!("x: {}\r\n", "a".repeat(60_000));
    let request = request + "connection: close\r\n\r\n";
    let app = async {
        let mut app = fixture.app().await;
        let head = app.head().await;
        let words = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        app.stream.write_all(words).await.expect("write");
        head
    };
    let (answer, seen) = tokio::join!(raw_exchange(&fixture, &request), app);
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(seen.len() > 60_000);
}

#[tokio::test]
async fn an_http2_connection_serves_one_host_only() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let other = Request::builder()
            .uri(format!("https://{}/", host(OTHER_ENDPOINT)))
            .header("x-aws-proxy-auth", fixture.token_for(OTHER_ENDPOINT, 60))
            .body(whole(""))
            .expect("request");
        let response = client.send(other).await.expect("response");
        assert_eq!(response.status(), 421);
        assert_eq!(text(response).await, "Misdirected request");
    }
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn a_client_that_connects_by_address_is_told_apart_by_its_host_header() {
    let fixture = Fixture::new().await;
    let mut stream = connect(&fixture, "127.0.0.1", "http/1.1").await;
    let request = head(&fixture, "GET /") + "x-aws-proxy-port: 22\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("write");
    let answer = read_to_close(&mut stream).await;
    assert!(answer.ends_with("Access to port denied"), "{answer}");
}

#[tokio::test]
async fn connect_is_not_offered() {
    let fixture = Fixture::new().await;
    let request =
        head(&fixture, &format!("CONNECT {}:443", host(ENDPOINT))) + "connection: close\r\n\r\n";
    let answer = raw_exchange(&fixture, &request).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn silence_is_not_waited_out() {
    let brief = Duration::from_millis(200);
    let fixture = Fixture::with(|config| {
        config.head_timeout = brief;
        config.handshake_timeout = brief;
    })
    .await;
    let begin = Instant::now();
    // No handshake, no request, half a request, and no HTTP/2 preface.
    let mut tcp = TcpStream::connect(fixture.address).await.expect("connect");
    assert_eq!(soon(tcp.read(&mut [0; 1])).await.expect("closed"), 0);
    let mut mute = raw(&fixture).await;
    assert_eq!(read_to_close(&mut mute).await, "");
    let mut half = raw(&fixture).await;
    half.write_all(b"GET / HTTP/1.1\r\nhost: ")
        .await
        .expect("write");
    let answer = read_to_close(&mut half).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408 "),
        "{answer}"
    );
    let mut h2 = connect(&fixture, &host(ENDPOINT), "h2").await;
    let mut greeting = Vec::new();
    drop(soon(h2.read_to_end(&mut greeting)).await);
    assert!(begin.elapsed() >= 4 * brief);
}

#[tokio::test]
async fn a_slow_answer_is_no_silence() {
    // The handshake and the head have to come within this, too.
    let brief = Duration::from_millis(500);
    let fixture = Fixture::with(|config| config.head_timeout = brief).await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "GET", "/")
            .body(whole(""))
            .expect("request");
        let app = async {
            let mut app = fixture.app().await;
            app.head().await;
            tokio::time::sleep(3 * brief).await;
            let words = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow";
            app.stream.write_all(words).await.expect("write");
        };
        let (response, ()) = tokio::join!(client.send(request), app);
        assert_eq!(text(response.expect("response")).await, "slow");
    }
}

#[tokio::test]
async fn the_rest_of_a_refused_body_is_no_head_that_is_due() {
    let patience = Duration::from_secs(1);
    let fixture = Fixture::with(|config| config.head_timeout = patience).await;
    let mut stream = raw(&fixture).await;
    let denied = head(&fixture, "POST /") + "x-aws-proxy-port: 22\r\n";
    let begun = format!("{denied}content-length: 8\r\n\r\nhalf");
    stream.write_all(begun.as_bytes()).await.expect("write");
    read_until(&mut stream, "Access to port denied").await;
    stream.write_all(b"half").await.expect("write");
    tokio::time::sleep(2 * patience).await;
    let last = denied + "connection: close\r\n\r\n";
    stream.write_all(last.as_bytes()).await.expect("write");
    let answer = read_to_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer:?}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let fixture = Fixture::with(|config| config.connections_max = 2).await;
    let busy: Vec<_> = [in_flight(&fixture).await, in_flight(&fixture).await].into();
    let third = raw(&fixture);
    tokio::pin!(third);
    let early = tokio::time::timeout(Duration::from_millis(200), third.as_mut()).await;
    assert!(early.is_err(), "a third connection was served");
    drop(busy);
    soon(third).await;
}

#[tokio::test]
async fn idle_connections_make_room_for_others() {
    let fixture = Fixture::with(|config| config.connections_max = 3).await;
    let (mut busy, mut app) = in_flight(&fixture).await;
    let mut silent = raw(&fixture).await;
    let mut idle = connect(&fixture, &host(ENDPOINT), "h2").await;
    let _fourth = raw(&fixture).await;
    // The one that has been silent for longest went, and no other.
    assert_eq!(read_to_close(&mut silent).await, "");
    let open = tokio::time::timeout(Duration::from_millis(200), async {
        while idle.read_u8().await.is_ok() {}
    });
    assert!(open.await.is_err(), "more went than had to");
    app.stream.write_all(SLOW).await.expect("write");
    assert!(read_until(&mut busy, "slow").await.contains("200 OK"));
}

const SLOW: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow";

/// A connection with a request in flight, and the app that has it.
async fn in_flight(fixture: &Fixture) -> (TlsStream<TcpStream>, App) {
    let mut stream = raw(fixture).await;
    let request = head(fixture, "GET /") + "\r\n";
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    app.head().await;
    (stream, app)
}

#[tokio::test]
async fn tls_1_3_and_a_good_certificate_are_what_is_served() {
    let fixture = Fixture::new().await;
    let stream = connect(&fixture, SUFFIX, "h2").await;
    let session = stream.get_ref().1;
    assert_eq!(
        session.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
}
