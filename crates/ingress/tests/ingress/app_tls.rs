//! Apps that serve TLS themselves.

use std::sync::Arc;

use http::{Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::client::{BOTH, Client, Fed, Http, fed, request, text, whole};
use crate::fixture::{App, Fixture, SUFFIX, read_until, soon, until};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nTLS";
/// How TLS servers meet plaintext: OpenSSL, rustls, Go, nginx and Tomcat.
const MANNERS: [&[u8]; 5] = [
    b"",
    b"\x15\x03\x03\0\x02\x02\x46",
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
    b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nConnection: close\r\n\r\n\
      <html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>",
    b"HTTP/1.1 400 \r\nContent-Type: text/plain;charset=UTF-8\r\nConnection: close\r\n\r\n\
      Bad Request\r\nThis combination of host and port requires TLS.\r\n",
];

/// A TLS server that looks at a client's first bytes and finds no handshake.
async fn hang_up(mut app: App, manner: &[u8]) {
    let mut first = [0; 5];
    soon(app.stream.read_exact(&mut first))
        .await
        .expect("first bytes");
    assert_ne!(first[0], 0x16, "no handshake is tried unasked");
    app.stream.write_all(manner).await.expect("write");
}

async fn accept(fixture: &Fixture, app: App) -> TlsStream<DuplexStream> {
    let config = fixture.authority.server_config(SUFFIX, &[]).expect("TLS");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    soon(acceptor.accept(app.stream)).await.expect("handshake")
}

async fn serve(mut tls: TlsStream<DuplexStream>, end: &str) -> String {
    let seen = read_until(&mut tls, end).await;
    tls.write_all(ANSWER).await.expect("write");
    tls.flush().await.expect("flush");
    seen
}

async fn serve_plain(fixture: &Fixture) {
    let mut app = fixture.app().await;
    app.head().await;
    app.stream.write_all(ANSWER).await.expect("write");
}

fn ask(fixture: &Fixture) -> Request<Fed> {
    request(fixture, "GET", "/")
        .body(whole(""))
        .expect("request")
}

#[tokio::test]
async fn an_app_that_serves_tls_is_recognised_and_remembered() {
    for http in BOTH {
        for manner in MANNERS {
            let fixture = Fixture::new().await;
            let mut client = Client::new(&fixture, http).await;
            let post = || {
                let ask = request(&fixture, "POST", "/").header("content-length", "4");
                ask.body(whole("body")).expect("request")
            };
            let app = async {
                hang_up(fixture.app().await, manner).await;
                let tls = accept(&fixture, fixture.app().await).await;
                assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                serve(tls, "\r\n\r\nbody").await
            };
            let (response, seen) = tokio::join!(client.send(post()), app);
            assert!(seen.starts_with("POST / HTTP/1.1\r\n"), "{seen}");
            assert_eq!(text(response.expect("response")).await, "TLS");
            // From now on there is a handshake at once.
            let app = async {
                let tls = accept(&fixture, fixture.app().await).await;
                serve(tls, "\r\n\r\nbody").await
            };
            let (response, _) = tokio::join!(client.send(post()), app);
            assert_eq!(text(response.expect("response")).await, "TLS");
            assert_eq!(fixture.opens(), 2);
            until(|| fixture.live() == 0).await;
        }
    }
}

#[tokio::test]
async fn an_app_that_serves_grpc_over_tls_gets_http2() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let call = request(&fixture, "POST", "/svc/Call")
        .header("content-type", "application/grpc")
        .body(whole("ping"))
        .expect("request");
    let app = async {
        hang_up(fixture.app().await, MANNERS[1]).await;
        let tls = accept(&fixture, fixture.app().await).await;
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
            Ok::<_, hyper::Error>(Response::new(request.into_body()))
        });
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(tls);
        let server = hyper::server::conn::http2::Builder::new(executor);
        drop(soon(server.serve_connection(io, service)).await);
    };
    let (response, ()) = tokio::join!(
        async { text(client.send(call).await.expect("response")).await },
        app
    );
    assert_eq!(response, "ping");
}

#[tokio::test]
async fn a_plaintext_app_never_sees_a_handshake() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    for words in [
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ] {
        let app = async {
            let mut app = fixture.app().await;
            app.head().await;
            app.stream.write_all(words.as_bytes()).await.expect("write");
        };
        let (response, ()) = tokio::join!(client.send(ask(&fixture)), app);
        assert!(response.is_ok());
    }
    assert_eq!(fixture.opens(), 4);
}

#[tokio::test]
async fn an_app_that_hangs_up_on_its_first_request_is_asked_once_whether_it_speaks_tls() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::One).await;
    let app = async {
        fixture.app().await.head().await;
        let mut app = fixture.app().await;
        let mut first = [0; 1];
        soon(app.stream.read_exact(&mut first))
            .await
            .expect("first byte");
        assert_eq!(first, [0x16]);
        let words = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        app.stream.write_all(words).await.expect("write");
    };
    let (response, ()) = tokio::join!(client.send(ask(&fixture)), app);
    assert_eq!(response.expect("response").status(), 502);
    // Nothing came of it: the next request is one in plaintext.
    let app = serve_plain(&fixture);
    let (response, ()) = tokio::join!(client.send(ask(&fixture)), app);
    assert_eq!(text(response.expect("response")).await, "TLS");
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_microvm_that_goes_away_is_not_asked_whether_its_app_speaks_tls() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let app = async {
        let mut app = fixture.app().await;
        app.head().await;
        app.vanish();
    };
    let (response, ()) = tokio::join!(client.send(ask(&fixture)), app);
    assert_eq!(response.expect("response").status(), 502);
    assert_eq!(fixture.opens(), 1);
}

#[tokio::test]
async fn an_app_that_is_silent_when_asked_is_not_waited_for() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let app = async {
        fixture.app().await.head().await;
        fixture.app().await
    };
    let (response, _silent) = tokio::join!(client.send(ask(&fixture)), app);
    assert_eq!(response.expect("response").status(), 502);
}

/// An upload of a megabyte, of unknown length.
async fn upload(fixture: &Fixture, client: &mut Client) -> hyper::Result<Response<Incoming>> {
    let (feed, body) = fed();
    tokio::spawn(async move {
        for _ in 0..64 {
            let frame = Frame::data(vec![7; 16 << 10].into());
            if feed.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    });
    let ask = request(fixture, "POST", "/").body(body).expect("request");
    client.send(ask).await
}

#[tokio::test]
async fn a_large_upload_may_be_the_first_request_to_an_app_that_serves_tls() {
    for manner in MANNERS {
        let fixture = Fixture::new().await;
        let mut client = Client::new(&fixture, Http::Two).await;
        let app = async {
            hang_up(fixture.app().await, manner).await;
            let tls = accept(&fixture, fixture.app().await).await;
            serve(tls, "\r\n0\r\n\r\n").await
        };
        let (response, seen) = tokio::join!(upload(&fixture, &mut client), app);
        assert_eq!(text(response.expect("response")).await, "TLS");
        assert_eq!(seen.matches('\x07').count(), 1 << 20);
    }
}

#[tokio::test]
async fn a_large_upload_may_be_the_first_request_to_any_app() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let app = async {
        let mut app = fixture.app().await;
        let seen = read_until(&mut app.stream, "\r\n0\r\n\r\n").await;
        app.stream.write_all(ANSWER).await.expect("write");
        seen
    };
    let (response, seen) = tokio::join!(upload(&fixture, &mut client), app);
    assert_eq!(text(response.expect("response")).await, "TLS");
    assert_eq!(seen.matches('\x07').count(), 1 << 20);
    assert_eq!(fixture.opens(), 1);
}

#[tokio::test]
async fn an_app_that_hangs_up_amid_an_upload_sees_no_handshake() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let app = async {
        let mut app = fixture.app().await;
        let mut taken = vec![0; 512 << 10];
        soon(app.stream.read_exact(&mut taken)).await.expect("some");
    };
    let (response, ()) = tokio::join!(upload(&fixture, &mut client), app);
    assert_eq!(response.expect("response").status(), 502);
    assert_eq!(fixture.opens(), 1);
}

#[tokio::test]
async fn an_app_that_gives_up_tls_is_found_out_anew() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let app = async {
        hang_up(fixture.app().await, MANNERS[0]).await;
        let tls = accept(&fixture, fixture.app().await).await;
        serve(tls, "\r\n\r\n").await
    };
    let (response, _) = tokio::join!(client.send(ask(&fixture)), app);
    assert_eq!(text(response.expect("response")).await, "TLS");
    let app = async { drop(fixture.app().await) };
    let (response, ()) = tokio::join!(client.send(ask(&fixture)), app);
    assert_eq!(response.expect("response").status(), 502);
    let app = serve_plain(&fixture);
    let (response, ()) = tokio::join!(client.send(ask(&fixture)), app);
    assert_eq!(text(response.expect("response")).await, "TLS");
}

#[tokio::test]
async fn an_app_that_takes_up_tls_is_found_out_anew() {
    for manner in MANNERS {
        let fixture = Fixture::new().await;
        let mut client = Client::new(&fixture, Http::Two).await;
        let app = serve_plain(&fixture);
        let (response, ()) = tokio::join!(client.send(ask(&fixture)), app);
        assert_eq!(text(response.expect("response")).await, "TLS");
        // Started anew it has TLS: one request fails, and no more.
        let app = async { hang_up(fixture.app().await, manner).await };
        let (response, ()) = tokio::join!(client.send(ask(&fixture)), app);
        assert!(!response.expect("response").status().is_success());
        let app = async {
            hang_up(fixture.app().await, manner).await;
            let tls = accept(&fixture, fixture.app().await).await;
            serve(tls, "\r\n\r\n").await
        };
        let (response, _) = tokio::join!(client.send(ask(&fixture)), app);
        assert_eq!(text(response.expect("response")).await, "TLS");
    }
}
