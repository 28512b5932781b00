//! Connections to apps between two requests: used again, and never where that could do harm.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::client::{BOTH, Client, Http, request, text, whole};
use crate::fixture::{App, Fixture, soon, until};

const KEEP: Duration = Duration::from_secs(5);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";

async fn keeping(keep: Duration) -> Fixture {
    Fixture::with(|config| config.upstream_keep = keep).await
}

/// Sends a request, with a body if it is a POST; the answer comes from whatever app gets it.
async fn ask(fixture: &Fixture, client: &mut Client, method: &str, path: &str) -> (u16, String) {
    let body = if method == "POST" { "body" } else { "" };
    let request = request(fixture, method, path)
        .body(whole(body))
        .expect("request");
    let response = client.send(request).await.expect("response");
    let status = response.status().as_u16();
    let answer = (status, text(response).await);
    // The connection to the app is free a moment after its last byte has passed.
    sleep(Duration::from_millis(50)).await;
    answer
}

async fn serve(app: &mut App, path: &str, answer: &[u8]) {
    let head = app.head().await;
    assert!(head.contains(&format!(" {path} HTTP/1.1\r\n")), "{head}");
    if head.starts_with("POST ") {
        let chunked = head.contains("transfer-encoding: chunked");
        let body: &[u8] = if chunked {
            b"4\r\nbody\r\n0\r\n\r\n"
        } else {
            b"body"
        };
        let mut read = vec![0; body.len()];
        app.stream.read_exact(&mut read).await.expect("body");
        assert_eq!(read, body);
    }
    app.stream.write_all(answer).await.expect("write");
}

/// An app that has answered one request and whose connection is kept.
async fn kept(fixture: &Fixture, client: &mut Client) -> App {
    let (answer, app) = tokio::join!(ask(fixture, client, "GET", "/1"), async {
        let mut app = fixture.app().await;
        serve(&mut app, "/1", ANSWER).await;
        app
    });
    assert_eq!(answer, (200, "ok".to_owned()));
    app
}

#[tokio::test]
async fn the_next_request_takes_the_same_connection() {
    for http in BOTH {
        let fixture = keeping(KEEP).await;
        let mut client = Client::new(&fixture, http).await;
        let mut app = kept(&fixture, &mut client).await;
        for (method, path, answer) in [
            ("GET", "/2", CHUNKED),
            ("POST", "/3", CHUNKED),
            ("POST", "/4", ANSWER),
            ("GET", "/5", ANSWER),
        ] {
            let (answer, ()) = tokio::join!(
                ask(&fixture, &mut client, method, path),
                serve(&mut app, path, answer)
            );
            assert_eq!(answer, (200, "ok".to_owned()));
        }
        assert_eq!((fixture.opens(), fixture.live()), (5, 1));
        until(|| fixture.stub.visits.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn a_connection_that_is_kept_keeps_no_request_with_it() {
    let fixture = keeping(Duration::from_secs(60)).await;
    let mut client = Client::new(&fixture, Http::One).await;
    let _app = kept(&fixture, &mut client).await;
    until(|| fixture.stub.visits.load(Ordering::SeqCst) == 0).await;
    assert_eq!(fixture.live(), 1);
}

#[tokio::test]
async fn what_nobody_asks_for_is_closed() {
    let fixture = keeping(Duration::from_millis(200)).await;
    let mut client = Client::new(&fixture, Http::One).await;
    let mut app = kept(&fixture, &mut client).await;
    assert_eq!(app.rest().await.expect("closed"), b"");
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn an_app_that_closes_is_asked_over_a_new_connection() {
    let fixture = keeping(KEEP).await;
    let mut client = Client::new(&fixture, Http::One).await;
    for _ in 0..2 {
        let (answer, ()) = tokio::join!(ask(&fixture, &mut client, "POST", "/"), async {
            serve(&mut fixture.app().await, "/", LAST).await;
        });
        assert_eq!(answer.0, 200);
    }
}

#[tokio::test]
async fn an_app_that_hung_up_between_requests_is_asked_over_a_new_connection() {
    let fixture = keeping(KEEP).await;
    let mut client = Client::new(&fixture, Http::One).await;
    drop(kept(&fixture, &mut client).await);
    let (answer, ()) = tokio::join!(ask(&fixture, &mut client, "POST", "/2"), async {
        serve(&mut fixture.app().await, "/2", ANSWER).await;
    });
    assert_eq!(answer, (200, "ok".to_owned()));
}

#[tokio::test]
async fn a_kept_connection_that_breaks_under_a_harmless_request_costs_nobody_an_answer() {
    let fixture = keeping(KEEP).await;
    let mut client = Client::new(&fixture, Http::One).await;
    let mut app = kept(&fixture, &mut client).await;
    let (answer, ()) = tokio::join!(ask(&fixture, &mut client, "GET", "/2"), async {
        app.head().await;
        drop(app);
        serve(&mut fixture.app().await, "/2", ANSWER).await;
    });
    assert_eq!(answer, (200, "ok".to_owned()));
}

#[tokio::test]
async fn a_request_that_may_have_had_an_effect_is_never_sent_twice() {
    let fixture = keeping(KEEP).await;
    let mut client = Client::new(&fixture, Http::One).await;
    let mut app = kept(&fixture, &mut client).await;
    let (answer, ()) = tokio::join!(ask(&fixture, &mut client, "POST", "/2"), async {
        app.head().await;
        drop(app);
    });
    assert_eq!(answer, (502, String::new()));
    assert_eq!(fixture.opens(), 2);
}

#[tokio::test]
async fn no_connection_outlives_the_machines_sleep() {
    let fixture = keeping(KEEP).await;
    let mut client = Client::new(&fixture, Http::One).await;
    let _old = kept(&fixture, &mut client).await;
    fixture.stub.run.fetch_add(1, Ordering::SeqCst);
    let (answer, ()) = tokio::join!(ask(&fixture, &mut client, "GET", "/2"), async {
        serve(&mut fixture.app().await, "/2", ANSWER).await;
    });
    assert_eq!(answer.0, 200);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_idle_connections() {
    let mut fixture = keeping(Duration::from_secs(3600)).await;
    let mut client = Client::new(&fixture, Http::One).await;
    let _app = kept(&fixture, &mut client).await;
    drop(client);
    fixture.stop.cancel();
    soon(&mut fixture.served).await.expect("served");
    assert_eq!(fixture.live(), 0);
}
