//! The limits of a MicroVM, what is beyond them, and that they are its own affair.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dormouse_core::EndpointId;
use dormouse_ingress::{OpenError, VmLimits};
use http::{Response, StatusCode};
use http_body::Frame;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::{
    BOTH, Client, Http, connect, fed, head, host, raw, read_to_close, request, request_to, text,
    whole,
};
use crate::fixture::{App, ENDPOINT, Fixture, OTHER_ENDPOINT, microvm, read_until, soon, until};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BRIEF: Duration = Duration::from_millis(100);

fn in_flight(most: u32) -> VmLimits {
    VmLimits {
        in_flight: NonZeroU32::new(most),
        ..VmLimits::default()
    }
}

/// A request whose app has its head and keeps it waiting.
async fn waiting(
    fixture: &Fixture,
    http: Http,
) -> (App, tokio::task::JoinHandle<Response<Incoming>>) {
    let mut client = Client::new(fixture, http).await;
    let request = request(fixture, "GET", "/")
        .body(whole(""))
        .expect("request");
    let response = tokio::spawn(async move { client.send(request).await.expect("response") });
    let mut app = fixture.app().await;
    app.head().await;
    (app, response)
}

async fn get(fixture: &Fixture, http: Http) -> Response<Incoming> {
    ask(fixture, &mut Client::new(fixture, http).await).await
}

async fn ask(fixture: &Fixture, client: &mut Client) -> Response<Incoming> {
    let request = request(fixture, "GET", "/")
        .body(whole(""))
        .expect("request");
    client.send(request).await.expect("response")
}

/// Answers every request from now on, at once.
fn answer_all(fixture: &Arc<Fixture>) -> tokio::task::JoinHandle<()> {
    let fixture = Arc::clone(fixture);
    tokio::spawn(async move {
        loop {
            let mut app = fixture.app().await;
            tokio::spawn(async move {
                app.head().await;
                let _ = app.stream.write_all(ANSWER).await;
                let _ = app.rest().await;
            });
        }
    })
}

async fn assert_is_429(response: Response<Incoming>) {
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let headers = response.headers();
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(headers["cache-control"], "private, no-store");
    assert!(headers.contains_key("x-amzn-requestid"));
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn more_requests_in_flight_than_allowed_are_told_to_come_again() {
    for http in BOTH {
        let fixture = Fixture::with(|config| config.turn_patience = BRIEF).await;
        fixture.limit(in_flight(2));
        let (mut app, first) = waiting(&fixture, http).await;
        let (_second_app, _second) = waiting(&fixture, http).await;
        assert_is_429(get(&fixture, http).await).await;
        assert_eq!(fixture.opens(), 2);
        // Another MicroVM has places of its own.
        let mut client = Client::to(&fixture, OTHER_ENDPOINT, http).await;
        let other = request_to(&fixture, OTHER_ENDPOINT, "GET", "/");
        let other =
            tokio::spawn(async move { client.send(other.body(whole("")).expect("request")).await });
        fixture
            .app()
            .await
            .stream
            .write_all(ANSWER)
            .await
            .expect("write");
        assert_eq!(other.await.expect("task").expect("response").status(), 200);
        // A place that gets free is for the next one.
        app.stream.write_all(ANSWER).await.expect("write");
        assert_eq!(text(soon(first).await.expect("task")).await, "ok");
        drop(app);
        let (_third_app, _third) = waiting(&fixture, http).await;
    }
}

#[tokio::test]
async fn a_switched_connection_is_in_flight_until_it_ends() {
    let fixture = Fixture::with(|config| config.turn_patience = BRIEF).await;
    fixture.limit(in_flight(1));
    let mut stream = raw(&fixture).await;
    let ask = head(&fixture, "GET /") + "connection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    app.head().await;
    let switch =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    app.stream.write_all(switch).await.expect("write");
    read_until(&mut stream, "\r\n\r\n").await;
    assert_is_429(get(&fixture, Http::One).await).await;
    let endpoint = EndpointId::parse(ENDPOINT).expect("endpoint");
    assert_eq!(fixture.metrics.of(&endpoint).in_flight, 1);
    drop((stream, app));
    until(|| fixture.metrics.of(&endpoint).in_flight == 0).await;
    let (_app, _response) = waiting(&fixture, Http::One).await;
}

#[tokio::test]
async fn more_requests_a_second_than_allowed_are_told_to_come_again() {
    let fixture = Arc::new(Fixture::with(|config| config.turn_patience = Duration::ZERO).await);
    fixture.limit(VmLimits {
        requests_per_second: NonZeroU32::new(1),
        ..VmLimits::default()
    });
    let answers = answer_all(&fixture);
    // No handshake comes between the two.
    let mut client = Client::new(&fixture, Http::Two).await;
    assert_eq!(ask(&fixture, &mut client).await.status(), 200);
    assert_is_429(ask(&fixture, &mut client).await).await;
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(get(&fixture, Http::One).await.status(), 200);
    answers.abort();
}

#[tokio::test]
async fn whoever_comes_while_it_sleeps_is_answered_a_few_at_a_time() {
    let fixture = Arc::new(Fixture::asleep().await);
    fixture.limit(in_flight(2));
    let mut clients = JoinSet::new();
    for n in 0..50 {
        let fixture = Arc::clone(&fixture);
        clients.spawn(async move { get(&fixture, BOTH[n % 2]).await.status() });
    }
    until(|| fixture.waiting() == 2).await;
    sleep(BRIEF).await;
    assert_eq!(fixture.opens(), 2);
    fixture.wake();
    let answers = answer_all(&fixture);
    while let Some(status) = soon(clients.join_next()).await {
        assert_eq!(status.expect("client"), StatusCode::OK);
        assert!(fixture.live() <= 2);
    }
    let endpoint = EndpointId::parse(ENDPOINT).expect("endpoint");
    let counted = fixture.metrics.of(&endpoint);
    assert_eq!(
        (counted.held, counted.waiting, counted.answers_2xx),
        (50, 0, 50)
    );
    answers.abort();
}

#[tokio::test]
async fn a_microvm_that_stays_asleep_says_so_at_once_and_owes_nothing_for_it() {
    let fixture = Fixture::asleep().await;
    fixture.limit(VmLimits {
        requests_per_second: NonZeroU32::new(1),
        ..VmLimits::default()
    });
    fixture.refuse(OpenError::Asleep);
    let begun = Instant::now();
    for n in 0..10 {
        let refused = get(&fixture, BOTH[n % 2]).await;
        assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);
    }
    fixture.refuse_no_more();
    fixture.wake();
    let (_app, _response) = waiting(&fixture, Http::One).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn bytes_go_no_faster_than_allowed() {
    const MB: usize = 1_000_000;
    let fixture = Fixture::new().await;
    fixture.limit(VmLimits {
        bytes_per_second: NonZeroU64::new(MB as u64),
        ..VmLimits::default()
    });
    for http in BOTH {
        let (mut app, response) = waiting(&fixture, http).await;
        let begun = Instant::now();
        let body = tokio::spawn(async move {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {MB}\r\n\r\n");
            app.stream.write_all(head.as_bytes()).await.expect("write");
            app.stream.write_all(&vec![b'x'; MB]).await.expect("write");
            app
        });
        let answer = text(soon(response).await.expect("task")).await;
        assert_eq!(answer.len(), MB);
        let took = begun.elapsed().as_secs_f64();
        assert!(took >= 0.7, "{took}");
        body.await.expect("app");
    }
}

/// A flood of one MicroVM: a thousand requests that its app never answers, and as many that are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_microvm_leaves_another_alone() {
    const FLOOD: usize = 1000;
    let fixture = Arc::new(Fixture::new().await);
    fixture.limit(in_flight(32));
    let mut flood = JoinSet::new();
    for _ in 0..8 {
        let Client::Two(client) = Client::new(&fixture, Http::Two).await else {
            unreachable!("asked for HTTP/2");
        };
        for _ in 0..FLOOD / 8 {
            let (fixture, mut client) = (Arc::clone(&fixture), client.clone());
            flood.spawn(async move {
                loop {
                    let request = request(&fixture, "GET", "/flood");
                    let request = request.body(whole("")).expect("request");
                    client.ready().await.expect("open");
                    let response = client.send_request(request).await.expect("response");
                    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
                }
            });
        }
    }
    let endpoint = EndpointId::parse(ENDPOINT).expect("endpoint");
    until(|| fixture.metrics.of(&endpoint).refused > 0).await;
    assert_eq!(fixture.metrics.of(&endpoint).in_flight, 32);
    // In a queue of the flood's a request would wait for ever, or be refused.
    others_are_answered(&fixture).await;
    assert!(fixture.metrics.of(&endpoint).in_flight == 32 && flood.try_join_next().is_none());
}

/// A hundred requests to the other MicroVM, one after the other, get their answers.
async fn others_are_answered(fixture: &Arc<Fixture>) {
    let mut client = Client::to(fixture, OTHER_ENDPOINT, Http::Two).await;
    for _ in 0..100 {
        let request = request_to(fixture, OTHER_ENDPOINT, "GET", "/");
        let request = request.body(whole("")).expect("request");
        let answer = async {
            loop {
                let mut app = fixture.app().await;
                // The flood's are never answered.
                if app.endpoint.to_string() == ENDPOINT {
                    tokio::spawn(async move { app.rest().await });
                    continue;
                }
                app.head().await;
                app.stream.write_all(ANSWER).await.expect("write");
                return app;
            }
        };
        let (response, _app) = tokio::join!(client.send(request), answer);
        assert_eq!(text(response.expect("response")).await, "ok");
    }
}

#[tokio::test]
async fn an_upload_that_stands_still_breaks_off_and_a_conversation_may() {
    let fixture = Fixture::with(|config| config.body_timeout = BRIEF).await;
    for http in BOTH {
        for stated in [true, false] {
            let mut client = Client::new(&fixture, http).await;
            let (feed, body) = fed();
            let mut request = request(&fixture, "POST", "/");
            if stated {
                request = request.header("content-length", "10");
            }
            let request = request.body(body).expect("request");
            let response = tokio::spawn(async move { client.send(request).await });
            for _ in 0..3 {
                // Each piece comes in time.
                sleep(BRIEF * 2 / 3).await;
                let piece = Frame::data(Bytes::from_static(b"a"));
                soon(feed.send(Ok(piece))).await.expect("feed");
            }
            let mut app = fixture.app().await;
            app.head().await;
            sleep(3 * BRIEF).await;
            if !stated {
                app.stream.write_all(ANSWER).await.expect("write");
            }
            let response = soon(response).await.expect("task").expect("response");
            let expected = if stated { 400 } else { 200 };
            assert_eq!(
                response.status(),
                expected,
                "{http:?}, length stated: {stated}"
            );
        }
    }
}

#[tokio::test]
async fn an_app_that_does_not_read_is_no_client_that_does_not_send() {
    let fixture = Fixture::with(|config| config.body_timeout = BRIEF).await;
    const LENGTH: usize = 8 << 20;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "POST", "/").header("content-length", LENGTH);
        let request = request.body(whole(vec![1; LENGTH])).expect("request");
        let response = tokio::spawn(async move { client.send(request).await });
        let mut app = fixture.app().await;
        app.head().await;
        sleep(4 * BRIEF).await;
        let mut body = vec![0; LENGTH];
        soon(app.stream.read_exact(&mut body))
            .await
            .expect("all of it");
        app.stream.write_all(ANSWER).await.expect("write");
        let response = soon(response).await.expect("task").expect("response");
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn an_app_that_is_too_slow_counts_as_none_where_there_is_a_limit() {
    let fixture = Fixture::with(|config| config.response_timeout = Some(BRIEF)).await;
    for http in BOTH {
        let (mut app, response) = waiting(&fixture, http).await;
        let response = soon(response).await.expect("task");
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(app.rest().await.expect("closed"), b"");
    }
}

#[tokio::test]
async fn a_connection_that_has_become_idle_is_closed_in_time() {
    let brief = |config: &mut dormouse_ingress::Config| {
        // The first request has more time to come.
        config.head_timeout = BRIEF * 5;
        config.idle_timeout = BRIEF;
    };
    let fixture = Arc::new(Fixture::with(brief).await);
    let answers = answer_all(&fixture);
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "GET", "/")
            .body(whole(""))
            .expect("request");
        assert_eq!(client.send(request).await.expect("response").status(), 200);
        soon(async {
            while !client.is_closed() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    answers.abort();
}

/// A body is not read before the app is there: what waits is what fits in windows and sockets.
#[tokio::test]
async fn a_held_request_holds_no_more_of_its_body_than_a_window() {
    const BULK: usize = 64 << 20;
    const HELD_MAX: usize = 16 << 20;
    let fixture = Fixture::asleep().await;
    let length = format!("content-length: {BULK}\r\n\r\n");
    let mut one = raw(&fixture).await;
    let request_head = head(&fixture, "POST /") + &length;
    one.write_all(request_head.as_bytes()).await.expect("write");
    let mut written = 0;
    while let Ok(Ok(length)) = timeout(BRIEF * 5, one.write(&[0; 64 << 10])).await {
        written += length;
    }
    assert!(written < HELD_MAX, "{written} bytes of HTTP/1");
    let mut client = Client::new(&fixture, Http::Two).await;
    let (feed, body) = fed();
    let request = request(&fixture, "POST", "/").body(body).expect("request");
    let _response = tokio::spawn(async move { client.send(request).await });
    let mut fed = 0;
    let piece = Bytes::from_static(&[0; 64 << 10]);
    while timeout(BRIEF * 5, feed.send(Ok(Frame::data(piece.clone()))))
        .await
        .is_ok()
    {
        fed += piece.len();
        assert!(fed < HELD_MAX, "{fed} bytes of HTTP/2");
    }
    assert_eq!(fixture.waiting(), 2);
}

/// The samples of a scrape by name and labels.
fn samples(text: &str) -> std::collections::HashMap<&str, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name, value.parse().expect("a number"))
        })
        .collect()
}

#[tokio::test]
async fn what_happens_is_counted_for_all_and_for_each_microvm() {
    let fixture = Arc::new(Fixture::new().await);
    let answers = answer_all(&fixture);
    assert_eq!(text(get(&fixture, Http::One).await).await, "ok");
    assert_eq!(text(get(&fixture, Http::Two).await).await, "ok");
    let stranger = format!(
        "GET / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        host(ENDPOINT)
    );
    let mut stream = connect(&fixture, &host(ENDPOINT), "http/1.1").await;
    stream.write_all(stranger.as_bytes()).await.expect("write");
    assert!(read_to_close(&mut stream).await.contains("403"));
    let text = || fixture.metrics.text();
    let of_vm = |name: &str, more: &str| {
        format!(
            "dormouse_microvm_{name}{{microvm=\"{}\"{more}}}",
            microvm(ENDPOINT)
        )
    };
    until(|| samples(&text())["dormouse_ingress_in_flight"] == 0.0).await;
    let text = text();
    let all = samples(&text);
    let answers_of = of_vm("answers_total", ",class=\"2xx\"");
    assert_eq!(all[answers_of.as_str()], 2.0, "{text}");
    assert_eq!(all["dormouse_ingress_answers_total{class=\"2xx\"}"], 2.0);
    assert_eq!(all["dormouse_ingress_answers_total{class=\"4xx\"}"], 1.0);
    assert_eq!(
        all["dormouse_ingress_refusals_total{reason=\"auth_missing\"}"],
        1.0
    );
    assert_eq!(all["dormouse_ingress_connect_seconds_count"], 2.0);
    assert_eq!(all["dormouse_ingress_duration_seconds_count"], 3.0);
    assert!(all[of_vm("out_bytes_total", "").as_str()] >= 2.0 * ANSWER.len() as f64);
    assert!(all["dormouse_ingress_in_bytes_total"] > 0.0);
    assert!(!text.contains(&fixture.token()[..20]));
    answers.abort();
}
