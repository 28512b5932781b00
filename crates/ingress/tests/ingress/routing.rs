//! What the app sees of a request, and the client of an answer.

use expect_test::expect;
use http::Request;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{
    BOTH, Client, Http, fed, head, host, normalized, raw, raw_exchange, read_to_close, request,
    text, whole,
};
use crate::fixture::{App, ENDPOINT, Fixture, read_until, soon, until};

async fn answer(app: &mut App, words: &str) {
    app.stream.write_all(words.as_bytes()).await.expect("write");
}

#[tokio::test]
async fn the_app_sees_the_request_as_on_aws() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "GET", "/health?q=1")
            .header("x-aws-proxy-port", "9003")
            .header("traceparent", "00-1")
            .header("x-amzn-requestid", "mine")
            .body(whole(""))
            .expect("request");
        let app = async {
            let mut app = fixture.app().await;
            let head = app.head().await;
            answer(
                &mut app,
                "HTTP/1.1 200 OK\r\nx-amzn-requestid: forged\r\nkeep-alive: timeout=5\r\n\
                 x-app: 1\r\ncontent-length: 2\r\n\r\nhi",
            )
            .await;
            (app.endpoint, app.port, head)
        };
        let (response, (endpoint, port, head)) = tokio::join!(client.send(request), app);
        assert_eq!((endpoint.to_string(), port), (ENDPOINT.to_owned(), 9003));
        let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
        let (line, headers) = lines.split_first_mut().expect("request line");
        headers.sort_unstable();
        assert_eq!(*line, "GET /health?q=1 HTTP/1.1");
        let response = response.expect("response");
        let id = response.headers()["x-amzn-requestid"].to_str().expect("id");
        expect![[r#"
            host: 30d00336-db07-f4f5-79c1-8571c22bef9e.lambda-microvm.us-east-1.localhost
            traceparent: 00-1
            x-amzn-requestid: ID"#]]
        .assert_eq(&headers.join("\n").replace(id, "ID"));
        assert_eq!(response.headers()["x-app"], "1");
        assert!(!response.headers().contains_key("keep-alive"));
        assert_eq!(text(response).await, "hi");
    }
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        for (method, words, status, length) in [
            (
                "HEAD",
                "HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n",
                200,
                Some("42"),
            ),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, None),
            (
                "GET",
                "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n",
                304,
                None,
            ),
        ] {
            let request = request(&fixture, method, "/")
                .body(whole(""))
                .expect("request");
            let app = async {
                let mut app = fixture.app().await;
                app.head().await;
                answer(&mut app, words).await;
                app
            };
            let (response, _app) = tokio::join!(client.send(request), app);
            let response = response.expect("response");
            assert_eq!(response.status(), status);
            let seen = response.headers().get("content-length");
            assert_eq!(
                seen.map(|value| value.to_str().expect("text")),
                length,
                "{method}"
            );
            assert_eq!(text(response).await, "");
        }
    }
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        for n in 0..5 {
            let request = request(&fixture, "POST", &format!("/{n}"))
                .body(whole(format!("body {n}")))
                .expect("request");
            let app = async {
                let mut app = fixture.app().await;
                let head = app.head().await;
                assert!(head.starts_with(&format!("POST /{n} ")), "{head}");
                answer(&mut app, "HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
            };
            let (response, ()) = tokio::join!(client.send(request), app);
            assert_eq!(text(response.expect("response")).await, "until the end");
        }
    }
}

#[tokio::test]
async fn bodies_keep_their_framing() {
    let fixture = Fixture::new().await;
    for (sent, framing, body) in [
        (
            "content-length: 5\r\n\r\nhello",
            "content-length: 5\r\n",
            "hello",
        ),
        (
            "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "transfer-encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        ("content-length: 0\r\n\r\n", "content-length: 0\r\n", ""),
    ] {
        let request = format!("{}connection: close\r\n{sent}", head(&fixture, "POST /"));
        let app = async {
            let mut app = fixture.app().await;
            let head = app.head().await;
            assert!(head.contains(framing), "{head}");
            let mut seen = vec![0; body.len()];
            let read = app.stream.read_exact(&mut seen);
            soon(read).await.expect("body");
            assert_eq!(seen, body.as_bytes());
            answer(&mut app, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        };
        let (answer, ()) = tokio::join!(raw_exchange(&fixture, &request), app);
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}

#[tokio::test]
async fn old_protocol_versions_are_met_on_both_sides() {
    let fixture = Fixture::new().await;
    let app = async {
        let mut app = fixture.app().await;
        let head = app.head().await;
        assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
        answer(&mut app, "HTTP/1.0 200 OK\r\n\r\nold").await;
    };
    let request = head(&fixture, "GET /") + "connection: close\r\n\r\n";
    let (new, ()) = tokio::join!(raw_exchange(&fixture, &request), app);
    assert!(new.starts_with("HTTP/1.1 200 OK\r\n"), "{new}");
    assert!(new.ends_with("3\r\nold\r\n0\r\n\r\n"), "{new}");

    let app = async {
        let mut app = fixture.app().await;
        app.head().await;
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nnew\r\n0\r\n\r\n";
        answer(&mut app, chunked).await;
    };
    let request = head(&fixture, "GET /").replace("HTTP/1.1", "HTTP/1.0") + "\r\n";
    let (old, ()) = tokio::join!(raw_exchange(&fixture, &request), app);
    expect![[r#"
        HTTP/1.0 200 OK
        x-amzn-requestid: …
        date: …

        new"#]]
    .assert_eq(&normalized(&old));
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_once_the_app_is_there() {
    let fixture = Fixture::asleep().await;
    let mut stream = raw(&fixture).await;
    let request = head(&fixture, "POST /")
        + "content-length: 5\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("write");
    until(|| fixture.waiting() == 1).await;
    fixture.wake();
    let mut app = fixture.app().await;
    let seen = app.head().await;
    assert!(!seen.contains("expect"), "{seen}");
    let interim = read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.expect("write");
    assert_eq!(read_until(&mut app.stream, "hello").await, "hello");
    answer(
        &mut app,
        "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let answer = read_to_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
}

#[tokio::test]
async fn a_refused_client_that_waits_for_100_is_not_asked_for_its_body() {
    let fixture = Fixture::new().await;
    let request = head(&fixture, "POST /")
        + "x-aws-proxy-port: 22\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
    let answer = raw_exchange(&fixture, &request).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let (feed, body) = fed();
    let request = request(&fixture, "POST", "/")
        .header("te", "trailers")
        .header("trailer", "x-sum")
        .body(body)
        .expect("request");
    tokio::spawn(async move {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "7".parse().expect("value"));
        for frame in [Frame::data("hello".into()), Frame::trailers(trailers)] {
            feed.send(Ok(frame)).await.expect("feed");
        }
    });
    let client = async {
        let response = client.send(request).await.expect("response");
        soon(response.into_body().collect()).await.expect("body")
    };
    let app = async {
        let mut app = fixture.app().await;
        let head = app.head().await;
        assert!(head.contains("te: trailers\r\n"), "{head}");
        let body = read_until(&mut app.stream, "\r\n\r\n").await;
        assert_eq!(body, "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n");
        answer(
            &mut app,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-after\r\n\r\n\
             2\r\nhi\r\n0\r\nx-after: 1\r\n\r\n",
        )
        .await;
    };
    let (body, ()) = tokio::join!(client, app);
    assert_eq!(body.trailers().expect("trailers")["x-after"], "1");
    assert_eq!(body.to_bytes(), "hi");
}

#[tokio::test]
async fn many_requests_at_once_each_get_their_own_answer() {
    let fixture = std::sync::Arc::new(Fixture::new().await);
    let mut clients = tokio::task::JoinSet::new();
    for http in BOTH {
        for n in 0..20 {
            let fixture = std::sync::Arc::clone(&fixture);
            clients.spawn(async move {
                let mut client = Client::new(&fixture, http).await;
                for m in 0..10 {
                    let path = format!("/{http:?}/{n}/{m}");
                    let request: Request<_> = request(&fixture, "GET", &path)
                        .body(whole(""))
                        .expect("request");
                    let response = client.send(request).await.expect("response");
                    assert_eq!(text(response).await, path);
                }
            });
        }
    }
    let apps = async {
        loop {
            let mut app = fixture.app().await;
            tokio::spawn(async move {
                let head = app.head().await;
                let path = head.split(' ').nth(1).expect("path");
                let words = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
                    path.len()
                );
                answer(&mut app, &words).await;
            });
        }
    };
    let clients = async {
        while let Some(done) = clients.join_next().await {
            done.expect("client");
        }
    };
    tokio::select! {
        () = clients => {}
        () = apps => {}
    }
    assert_eq!(fixture.opens(), 400);
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn an_app_that_speaks_http2_is_spoken_to_in_http2() {
    let fixture = Fixture::new().await;
    for (http, header) in [
        (Http::One, ("x-aws-proxy-force-h2", "true")),
        (Http::Two, ("x-aws-proxy-force-h2", "true")),
        (Http::Two, ("content-type", "application/grpc+proto")),
    ] {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "POST", "/svc/Call")
            .header(header.0, header.1)
            .header("te", "trailers")
            .body(whole("ping"))
            .expect("request");
        let app = async {
            let app = fixture.app().await;
            let service =
                hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.version(), http::Version::HTTP_2);
                    assert!(!request.headers().contains_key("x-aws-proxy-force-h2"));
                    let host = request.uri().host().expect("authority").to_owned();
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().expect("value"));
                    let text = http_body_util::Full::new(bytes::Bytes::from(host));
                    let body = http_body_util::BodyExt::with_trailers(
                        text,
                        std::future::ready(Some(Ok::<_, std::convert::Infallible>(trailers))),
                    );
                    Ok::<_, hyper::Error>(http::Response::new(body))
                });
            let io = hyper_util::rt::TokioIo::new(app.stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            soon(hyper::server::conn::http2::Builder::new(executor).serve_connection(io, service))
                .await
        };
        let exchange = async {
            let response = client.send(request).await.expect("response");
            assert_eq!(response.status(), 200);
            soon(response.into_body().collect()).await.expect("body")
        };
        let (body, served) = tokio::join!(exchange, app);
        served.expect("served");
        if http == Http::Two {
            assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0");
        }
        assert_eq!(body.to_bytes(), host(ENDPOINT));
    }
}

#[tokio::test]
async fn an_app_that_does_not_speak_http2_is_a_502_when_it_is_forced() {
    let fixture = Fixture::new().await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let request = request(&fixture, "GET", "/")
        .header("x-aws-proxy-force-h2", "true")
        .body(whole(""))
        .expect("request");
    let app = async {
        let mut app = fixture.app().await;
        app.head().await;
        answer(
            &mut app,
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
    };
    let (response, ()) = tokio::join!(client.send(request), app);
    assert_eq!(response.expect("response").status(), 502);
}
