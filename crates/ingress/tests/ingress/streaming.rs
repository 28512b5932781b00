//! Bodies: both ways at once, in constant memory, and never half passed off as whole.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::client::{
    BOTH, Client, Feed, Http, fed, head, raw, read_to_close, request, text, whole,
};
use crate::fixture::{App, Fixture, read_until, soon, until};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
/// More than every buffer on the way together, by far.
const BULK: usize = 64 << 20;
/// What the buffers on the way may hold, those of the kernel's sockets included.
const BUFFERED_MAX: usize = 24 << 20;
/// Nothing moves for this long: the buffers are full.
const STALL: Duration = Duration::from_millis(500);

async fn say(app: &mut App, words: &str) {
    app.stream.write_all(words.as_bytes()).await.expect("write");
}

async fn feed_text(feed: &Feed, words: &'static str) {
    let frame = Frame::data(Bytes::from_static(words.as_bytes()));
    soon(feed.send(Ok(frame))).await.expect("feed");
}

/// The next piece of the body. HTTP/2 may end a body with an empty one, which says nothing.
async fn next(response: &mut Response<Incoming>) -> Option<hyper::Result<Bytes>> {
    loop {
        let frame = soon(response.body_mut().frame()).await?;
        let data = frame.map(|frame| frame.into_data().expect("data"));
        if data.as_ref().is_ok_and(Bytes::is_empty) {
            continue;
        }
        return Some(data);
    }
}

/// A POST that is under way, and its app, which has read the head.
async fn under_way(
    fixture: &Fixture,
    http: Http,
) -> (
    Feed,
    tokio::task::JoinHandle<hyper::Result<Response<Incoming>>>,
    App,
) {
    let mut client = Client::new(fixture, http).await;
    let (feed, body) = fed();
    let request = request(fixture, "POST", "/").body(body).expect("request");
    let response = tokio::spawn(async move { client.send(request).await });
    let mut app = fixture.app().await;
    let head = app.head().await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    (feed, response, app)
}

#[tokio::test]
async fn each_piece_passes_before_the_next_is_sent() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let (feed, response, mut app) = under_way(&fixture, http).await;
        feed_text(&feed, "one").await;
        assert_eq!(read_until(&mut app.stream, "one\r\n").await, "3\r\none\r\n");
        // The answer begins while the request still goes on.
        say(&mut app, CHUNKED).await;
        let mut response = soon(response).await.expect("task").expect("response");
        for (up, down) in [("two", "TWO"), ("six", "SIX")] {
            feed_text(&feed, up).await;
            let seen = read_until(&mut app.stream, &format!("{up}\r\n")).await;
            assert_eq!(seen, format!("3\r\n{up}\r\n"));
            say(&mut app, &format!("3\r\n{down}\r\n")).await;
            assert_eq!(
                next(&mut response).await.expect("more").expect("data"),
                down
            );
        }
        drop(feed);
        assert_eq!(read_until(&mut app.stream, "0\r\n\r\n").await, "0\r\n\r\n");
        say(&mut app, "0\r\n\r\n").await;
        assert!(next(&mut response).await.is_none());
        until(|| fixture.live() == 0).await;
    }
}

#[tokio::test]
async fn large_bodies_pass_whole_both_ways_at_once() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let (feed, body) = fed();
        let request = request(&fixture, "POST", "/").body(body).expect("request");
        let up = async {
            let chunk = Bytes::from(vec![7; 64 << 10]);
            for _ in 0..BULK / chunk.len() {
                let frame = Frame::data(chunk.clone());
                soon(feed.send(Ok(frame))).await.expect("feed");
            }
            drop(feed);
        };
        let echo = async {
            let app = fixture.app().await;
            let service =
                hyper::service::service_fn(|request: http::Request<Incoming>| async move {
                    Ok::<_, hyper::Error>(Response::new(request.into_body()))
                });
            let io = hyper_util::rt::TokioIo::new(app.stream);
            let server = hyper::server::conn::http1::Builder::new();
            server.serve_connection(io, service).await.expect("served");
        };
        let down = async {
            let mut response = client.send(request).await.expect("response");
            let mut length = 0;
            while let Some(data) = next(&mut response).await {
                let data = data.expect("data");
                assert!(data.iter().all(|byte| *byte == 7));
                length += data.len();
            }
            length
        };
        let ((), (), length) = tokio::join!(up, echo, down);
        assert_eq!(length, BULK);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_app() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "GET", "/")
            .body(whole(""))
            .expect("request");
        let pour = async {
            let mut app = fixture.app().await;
            app.head().await;
            say(
                &mut app,
                &format!("HTTP/1.1 200 OK\r\ncontent-length: {BULK}\r\n\r\n"),
            )
            .await;
            let chunk = vec![0; 64 << 10];
            let mut poured = 0;
            while let Ok(written) = timeout(STALL, app.stream.write(&chunk)).await {
                poured += written.expect("write");
                assert!(
                    poured < BUFFERED_MAX,
                    "{http:?}: {poured} bytes are buffered"
                );
            }
            (app, poured)
        };
        let (response, (mut app, poured)) = tokio::join!(client.send(request), pour);
        let mut response = response.expect("response");
        // Nothing of it is lost: the rest comes as soon as the client reads.
        let finish = async {
            let rest = vec![0; BULK - poured];
            app.stream.write_all(&rest).await.expect("write");
        };
        let read = async {
            let mut length = 0;
            while let Some(data) = next(&mut response).await {
                length += data.expect("data").len();
            }
            length
        };
        let ((), length) = tokio::join!(finish, read);
        assert_eq!(length, BULK);
    }
}

#[tokio::test]
async fn an_app_that_does_not_read_stops_the_client() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let (feed, response, app) = under_way(&fixture, http).await;
        let chunk = Bytes::from(vec![0; 64 << 10]);
        let mut poured = 0;
        while let Ok(sent) = timeout(STALL, feed.send(Ok(Frame::data(chunk.clone())))).await {
            sent.expect("feed");
            poured += chunk.len();
            assert!(
                poured < BUFFERED_MAX,
                "{http:?}: {poured} bytes are buffered"
            );
        }
        drop(app);
        response.abort();
    }
}

#[tokio::test]
async fn half_an_answer_is_never_taken_for_a_whole_one() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        for words in [
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n",
        ] {
            let mut client = Client::new(&fixture, http).await;
            let request = request(&fixture, "GET", "/")
                .body(whole(""))
                .expect("request");
            let app = async {
                let mut app = fixture.app().await;
                app.head().await;
                say(&mut app, words).await;
            };
            let (response, ()) = tokio::join!(client.send(request), app);
            let mut response = response.expect("response");
            let mut seen = Vec::new();
            let broken = loop {
                match next(&mut response).await {
                    Some(Ok(data)) => seen.extend_from_slice(&data),
                    Some(Err(_)) => break true,
                    None => break false,
                }
            };
            assert!(broken, "{http:?} {words:?}: {seen:?} looked whole");
            assert!(b"half".starts_with(&seen), "{seen:?}");
            // HTTP/2 drops what waits in a stream that is reset.
            assert!(http == Http::Two || seen == b"half", "{seen:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_closes_the_tunnel() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        // While the app thinks.
        let mut client = Client::new(&fixture, http).await;
        let thinking = request(&fixture, "GET", "/")
            .body(whole(""))
            .expect("request");
        let waiting = tokio::spawn(async move { client.send(thinking).await });
        let mut app = fixture.app().await;
        app.head().await;
        waiting.abort();
        assert_eq!(app.rest().await.expect("closed"), b"");
        until(|| fixture.live() == 0).await;

        // While the answer streams.
        let (feed, response, mut app) = under_way(&fixture, http).await;
        say(&mut app, CHUNKED).await;
        let response = soon(response).await.expect("task").expect("response");
        drop((feed, response));
        soon(async {
            while app.stream.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        until(|| fixture.live() == 0).await;
    }
}

#[tokio::test]
async fn a_request_that_breaks_off_breaks_off_at_the_app() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let (feed, response, mut app) = under_way(&fixture, http).await;
        feed_text(&feed, "half").await;
        assert_eq!(
            read_until(&mut app.stream, "half\r\n").await,
            "4\r\nhalf\r\n"
        );
        soon(feed.send(Err("cut"))).await.expect("feed");
        let rest = app.rest().await.expect("closed");
        assert!(!rest.ends_with(b"0\r\n\r\n"), "the request looked whole");
        assert!(soon(response).await.expect("task").is_err());
        until(|| fixture.live() == 0).await;
    }
}

#[tokio::test]
async fn an_early_answer_reaches_the_client_and_ends_the_upload() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let (feed, response, mut app) = under_way(&fixture, http).await;
        feed_text(&feed, "some").await;
        read_until(&mut app.stream, "some\r\n").await;
        say(
            &mut app,
            "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig",
        )
        .await;
        drop(app);
        let response = soon(response).await.expect("task").expect("response");
        assert_eq!(response.status(), 413);
        assert_eq!(text(response).await, "big");
        drop(feed);
        until(|| fixture.live() == 0).await;
    }
}

/// Sends an upload of this length, and reads the app's whole answer, which comes before the app has read any of it.
async fn answered_early(fixture: &Fixture, http: Http, length: usize) -> (Client, App) {
    let mut client = Client::new(fixture, http).await;
    let request = request(fixture, "POST", "/").header("content-length", length);
    let request = request.body(whole(vec![1; length])).expect("request");
    let answer = async {
        let mut app = fixture.app().await;
        app.head().await;
        say(
            &mut app,
            "HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok",
        )
        .await;
        app
    };
    let (response, app) = tokio::join!(client.send(request), answer);
    assert_eq!(text(response.expect("response")).await, "ok");
    (client, app)
}

#[tokio::test]
async fn an_app_that_has_answered_reads_the_upload_as_slowly_as_it_likes() {
    const PIECES: usize = 40;
    let mut piece = vec![0; 25 << 10];
    let patience = Duration::from_millis(500);
    let fixture = Fixture::with(|config| config.unread_body_timeout = patience).await;
    for http in BOTH {
        let (_client, mut app) = answered_early(&fixture, http, PIECES * piece.len()).await;
        for _ in 0..PIECES {
            tokio::time::sleep(patience / 10).await;
            soon(app.stream.read_exact(&mut piece))
                .await
                .expect("all of it");
        }
    }
}

#[tokio::test]
async fn an_upload_is_given_up_when_its_app_has_answered_and_reads_no_more() {
    let patience = Duration::from_millis(100);
    let fixture = Fixture::with(|config| config.unread_body_timeout = patience).await;
    for http in BOTH {
        let (_client, _app) = answered_early(&fixture, http, BULK).await;
        until(|| fixture.live() == 0).await;
    }
}

#[tokio::test]
async fn an_app_that_hangs_up_on_an_upload_is_still_heard() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        for _ in 0..20 {
            let (feed, response, mut app) = under_way(&fixture, http).await;
            let upload = tokio::spawn(async move {
                let chunk = Bytes::from(vec![0; 64 << 10]);
                while feed.send(Ok(Frame::data(chunk.clone()))).await.is_ok() {}
            });
            // The answer is there, and writing fails, before the proxy looks.
            say(
                &mut app,
                "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig",
            )
            .await;
            drop(app);
            let response = soon(response).await.expect("task").expect("response");
            assert_eq!(response.status(), 413);
            assert_eq!(text(response).await, "big");
            upload.abort();
        }
    }
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_client_that_writes_before_it_reads_still_sees_a_refusal() {
    let fixture = Fixture::new().await;
    let length = 64 << 20;
    let mut stream = raw(&fixture).await;
    let request = format!(
        "{}x-aws-proxy-port: 22\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n",
        head(&fixture, "POST /")
    );
    stream.write_all(request.as_bytes()).await.expect("head");
    soon(stream.write_all(&vec![0; length]))
        .await
        .expect("body");
    stream.flush().await.expect("flush");
    let answer = read_to_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.ends_with("Access to port denied"), "{answer}");
}

#[tokio::test]
async fn a_refused_upload_leaves_an_http2_connection_usable() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    // Many times the connection's window: what is dropped must be given back.
    for _ in 0..16 {
        let denied = request(&fixture, "POST", "/")
            .header("x-aws-proxy-port", "22")
            .body(whole(vec![0; 1 << 20]))
            .expect("request");
        let response = client.send(denied).await.expect("response");
        assert_eq!(text(response).await, "Access to port denied");
    }
}

#[tokio::test]
async fn a_tunnel_that_breaks_is_seen_by_a_client_that_reads_to_the_end() {
    let fixture = Fixture::new().await;
    let mut stream = raw(&fixture).await;
    let request = head(&fixture, "GET /") + "connection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    app.head().await;
    say(
        &mut app,
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
    )
    .await;
    drop(app);
    let mut answer = Vec::new();
    // TLS tells a cut from an end, also to a client that knows no content-length.
    let error = soon(stream.read_to_end(&mut answer))
        .await
        .expect_err("cut");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}
