//! The corners of HTTP that a proxy must not round off.

use http::Request;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use crate::client::{
    BOTH, Client, Http, fed, head, host, raw, raw_exchange, read_to_close, request, text, whole,
};
use crate::fixture::{App, ENDPOINT, Fixture, read_until, soon, until};

async fn say(app: &mut App, words: &str) {
    app.stream.write_all(words.as_bytes()).await.expect("write");
}

#[tokio::test]
async fn trailers_pass_both_ways_over_http1() {
    let fixture = Fixture::new().await;
    let mut stream = raw(&fixture).await;
    let ask = format!(
        "{}te: trailers\r\nconnection: te, close\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
         5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n",
        head(&fixture, "POST /")
    );
    stream.write_all(ask.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    let seen = app.head().await;
    assert!(seen.contains("te: trailers\r\n"), "{seen}");
    assert!(seen.contains("trailer: x-sum\r\n"), "{seen}");
    let body = read_until(&mut app.stream, "\r\n\r\n").await;
    assert_eq!(body, "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n");
    say(
        &mut app,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-after\r\n\r\n\
         2\r\nhi\r\n0\r\nx-after: 1\r\n\r\n",
    )
    .await;
    let answer = read_to_close(&mut stream).await;
    assert!(
        answer.ends_with("\r\n\r\n2\r\nhi\r\n0\r\nx-after: 1\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn trailers_that_nobody_announced_still_pass_to_http2() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let ask = request(&fixture, "GET", "/")
        .body(whole(""))
        .expect("request");
    let app = async {
        let mut app = fixture.app().await;
        app.head().await;
        say(
            &mut app,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-after: 1\r\n\r\n",
        )
        .await;
    };
    let (response, ()) = tokio::join!(client.send(ask), app);
    let body = soon(response.expect("response").into_body().collect())
        .await
        .expect("body");
    assert_eq!(body.trailers().expect("trailers")["x-after"], "1");
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let ask = request(&fixture, "GET", "/")
            .body(whole(""))
            .expect("request");
        let app = async {
            let mut app = fixture.app().await;
            app.head().await;
            for interim in ["100 Continue", "102 Processing", "103 Early Hints"] {
                say(
                    &mut app,
                    &format!("HTTP/1.1 {interim}\r\nlink: </a>\r\n\r\n"),
                )
                .await;
            }
            say(
                &mut app,
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfinal",
            )
            .await;
        };
        let (response, ()) = tokio::join!(client.send(ask), app);
        let response = response.expect("response");
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("link"));
        assert_eq!(text(response).await, "final");
    }
}

#[tokio::test]
async fn an_app_that_answers_before_it_has_the_body_spares_the_client_from_sending_it() {
    let fixture = Fixture::asleep().await;
    let mut stream = raw(&fixture).await;
    let ask = head(&fixture, "POST /") + "content-length: 5\r\nexpect: 100-Continue\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.expect("write");
    until(|| fixture.waiting() == 1).await;
    fixture.refuse(dormouse_ingress::OpenError::NotListening);
    fixture.wake();
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_an_http2_client_announces_does_not_wait_for_a_100() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let ask = request(&fixture, "POST", "/")
        .header("expect", "100-continue")
        .body(whole("hello"))
        .expect("request");
    let app = async {
        let mut app = fixture.app().await;
        let seen = app.head().await;
        assert!(!seen.contains("expect"), "{seen}");
        assert_eq!(read_until(&mut app.stream, "hello").await, "5\r\nhello");
        say(
            &mut app,
            "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
    };
    let (response, ()) = tokio::join!(client.send(ask), app);
    assert_eq!(response.expect("response").status(), 201);
}

#[tokio::test]
async fn head_has_the_length_and_not_the_body_of_get() {
    let fixture = Fixture::new().await;
    for framing in ["content-length: 42", "transfer-encoding: chunked"] {
        let ask = head(&fixture, "HEAD /") + "connection: close\r\n\r\n";
        let app = async {
            let mut app = fixture.app().await;
            let seen = app.head().await;
            assert!(seen.starts_with("HEAD / HTTP/1.1\r\n"), "{seen}");
            say(
                &mut app,
                &format!("HTTP/1.1 200 OK\r\n{framing}\r\netag: \"1\"\r\n\r\n"),
            )
            .await;
            app
        };
        let (answer, _app) = tokio::join!(raw_exchange(&fixture, &ask), app);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("etag: \"1\"\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        assert_eq!(
            answer.contains("content-length: 42"),
            framing.contains("42"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_refusal_of_head_has_no_body() {
    let fixture = Fixture::new().await;
    let ask = format!(
        "HEAD / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        host(ENDPOINT)
    );
    let answer = raw_exchange(&fixture, &ask).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("content-length: 30\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn options_may_ask_for_the_server_as_a_whole() {
    let fixture = Fixture::new().await;
    let ask = head(&fixture, "OPTIONS *") + "connection: close\r\n\r\n";
    let app = async {
        let mut app = fixture.app().await;
        let seen = app.head().await;
        assert!(seen.starts_with("OPTIONS * HTTP/1.1\r\n"), "{seen}");
        say(&mut app, "HTTP/1.1 204 No Content\r\nallow: GET\r\n\r\n").await;
    };
    let (answer, ()) = tokio::join!(raw_exchange(&fixture, &ask), app);
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
}

#[tokio::test]
async fn any_method_passes() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        for method in ["DELETE", "PATCH", "PROPFIND", "TRACE", "x-Custom!"] {
            let ask: Request<_> = request(&fixture, method, "/")
                .body(whole(""))
                .expect("request");
            let app = async {
                let mut app = fixture.app().await;
                let seen = app.head().await;
                assert!(
                    seen.starts_with(&format!("{method} / HTTP/1.1\r\n")),
                    "{seen}"
                );
                say(&mut app, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            };
            let (response, ()) = tokio::join!(client.send(ask), app);
            assert_eq!(response.expect("response").status(), 200);
        }
    }
}

#[tokio::test]
async fn a_target_passes_as_it_was_written() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        for target in [
            "/a/../b/./c//d",
            "/%2e%2e/%00?x=%20&y=a+b",
            "/?",
            "/;a=1?b=/c?d",
            "/~u/{x}",
        ] {
            let ask = request(&fixture, "GET", target)
                .body(whole(""))
                .expect("request");
            let app = async {
                let mut app = fixture.app().await;
                let seen = app.head().await;
                assert!(
                    seen.starts_with(&format!("GET {target} HTTP/1.1\r\n")),
                    "{seen}"
                );
                say(&mut app, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            };
            let (response, ()) = tokio::join!(client.send(ask), app);
            assert_eq!(response.expect("response").status(), 200);
        }
    }
}

#[tokio::test]
async fn a_length_beyond_four_gigabytes_is_a_length_like_any() {
    let fixture = Fixture::new().await;
    let length = 5_u64 << 30;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let (feed, body) = fed();
        let ask = request(&fixture, "POST", "/")
            .header("content-length", length)
            .body(body)
            .expect("request");
        let app = async {
            let mut app = fixture.app().await;
            let seen = app.head().await;
            assert!(
                seen.contains(&format!("content-length: {length}\r\n")),
                "{seen}"
            );
            feed.send(Ok(Frame::data("begin".into())))
                .await
                .expect("feed");
            assert_eq!(read_until(&mut app.stream, "begin").await, "begin");
            say(
                &mut app,
                &format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\nfirst"),
            )
            .await;
            app
        };
        let (response, _app) = tokio::join!(client.send(ask), app);
        let mut response = response.expect("response");
        assert_eq!(response.headers()["content-length"], length.to_string());
        let first = soon(response.body_mut().frame())
            .await
            .expect("more")
            .expect("data");
        assert_eq!(first.into_data().expect("data"), "first");
    }
}

#[tokio::test]
async fn each_event_arrives_when_it_is_sent() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let ask = request(&fixture, "GET", "/events")
            .header("accept", "text/event-stream")
            .body(whole(""))
            .expect("request");
        let app = async {
            let mut app = fixture.app().await;
            app.head().await;
            // No length and no chunks: the end of the connection is the end of the stream.
            say(
                &mut app,
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
            )
            .await;
            app
        };
        let (response, mut app) = tokio::join!(client.send(ask), app);
        let mut response = response.expect("response");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        for n in 0..20 {
            let event = format!("id: {n}\ndata: x\n\n");
            say(&mut app, &event).await;
            let mut seen = Vec::new();
            while seen.len() < event.len() {
                let frame = soon(response.body_mut().frame())
                    .await
                    .expect("more")
                    .expect("data");
                seen.extend_from_slice(&frame.into_data().expect("data"));
            }
            assert_eq!(seen, event.as_bytes());
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_by_a_sleep_is_seen_to_be_cut() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        for framing in [
            "content-length: 10\r\n\r\nhalf",
            "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "\r\nhalf",
        ] {
            let mut client = Client::new(&fixture, http).await;
            let ask = request(&fixture, "GET", "/")
                .body(whole(""))
                .expect("request");
            let app = async {
                let mut app = fixture.app().await;
                app.head().await;
                say(&mut app, &format!("HTTP/1.1 200 OK\r\n{framing}")).await;
                app
            };
            let (response, app) = tokio::join!(client.send(ask), app);
            let mut body = response.expect("response").into_body();
            let first = soon(body.frame()).await.expect("more").expect("data");
            assert_eq!(first.into_data().expect("data"), "half");
            app.vanish();
            let ended = loop {
                match soon(body.frame()).await {
                    Some(Ok(frame)) => assert!(frame.into_data().is_ok_and(|data| data.is_empty())),
                    other => break other,
                }
            };
            assert!(
                ended.is_some_and(|ended| ended.is_err()),
                "{http:?} {framing:?}"
            );
        }
    }
    until(|| fixture.live() == 0).await;
}
