//! Sleep, wake and the end of the daemon, as seen by requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::{BOTH, Client, Http, head, raw, read_to_close, request, text, whole};
use crate::fixture::{Fixture, soon, until};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nawake";

#[tokio::test]
async fn requests_to_a_sleeping_microvm_are_held_and_all_answered() {
    let fixture = Arc::new(Fixture::asleep().await);
    let mut clients = JoinSet::new();
    for n in 0..100 {
        let fixture = Arc::clone(&fixture);
        clients.spawn(async move {
            let mut client = Client::new(&fixture, BOTH[n % 2]).await;
            let body = whole("held");
            let request = request(&fixture, "POST", "/").body(body).expect("request");
            text(client.send(request).await.expect("response")).await
        });
    }
    until(|| fixture.waiting() == 100).await;
    fixture.wake();
    for _ in 0..100 {
        let mut app = fixture.app().await;
        tokio::spawn(async move {
            app.head().await;
            app.stream.write_all(ANSWER).await.expect("write");
            app.rest().await.expect("rest");
        });
    }
    while let Some(answer) = soon(clients.join_next()).await {
        assert_eq!(answer.expect("client"), "awake");
    }
    assert_eq!(fixture.opens(), 100);
}

#[tokio::test]
async fn a_client_that_gives_up_waits_no_more() {
    let fixture = Fixture::asleep().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "GET", "/")
            .body(whole(""))
            .expect("request");
        let waiting = tokio::spawn(async move { client.send(request).await });
        until(|| fixture.waiting() == 1).await;
        waiting.abort();
        until(|| fixture.waiting() == 0).await;
    }
    assert_eq!(fixture.live(), 0);
}

#[tokio::test]
async fn a_graceful_stop_lets_requests_finish_and_takes_no_more() {
    let mut fixture = Fixture::new().await;
    let mut apps = Vec::new();
    let mut clients = Vec::new();
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "GET", "/")
            .body(whole(""))
            .expect("request");
        clients.push(tokio::spawn(async move {
            let response = client.send(request).await.expect("response");
            (text(response).await, client)
        }));
        let mut app = fixture.app().await;
        app.head().await;
        apps.push(app);
    }
    let mut idle = raw(&fixture).await;
    fixture.stop.cancel();
    // An idle connection is closed at once, and nobody listens.
    assert_eq!(read_to_close(&mut idle).await, "");
    soon(async { while TcpStream::connect(fixture.address).await.is_ok() {} }).await;
    assert!(!fixture.served.is_finished());
    for mut app in apps {
        app.stream.write_all(ANSWER).await.expect("write");
    }
    for client in clients {
        let (answer, _client) = soon(client).await.expect("task");
        assert_eq!(answer, "awake");
    }
    soon(&mut fixture.served).await.expect("served");
    assert_eq!(fixture.live(), 0);
}

#[tokio::test]
async fn a_graceful_stop_does_not_wait_for_ever() {
    let patience = Duration::from_millis(200);
    let mut fixture = Fixture::with(|config| config.drain_timeout = patience).await;
    let mut client = Client::new(&fixture, Http::Two).await;
    let request = request(&fixture, "GET", "/")
        .body(whole(""))
        .expect("request");
    let waiting = tokio::spawn(async move { client.send(request).await });
    let mut app = fixture.app().await;
    app.head().await;
    let begin = Instant::now();
    fixture.stop.cancel();
    soon(&mut fixture.served).await.expect("served");
    assert!(begin.elapsed() >= patience);
    assert!(soon(waiting).await.expect("task").is_err());
    assert_eq!(app.rest().await.expect("closed"), b"");
    assert_eq!(fixture.live(), 0);
}

#[tokio::test]
async fn a_stop_ends_switched_connections_too() {
    let patience = Duration::from_millis(200);
    let mut fixture = Fixture::with(|config| config.drain_timeout = patience).await;
    let mut stream = raw(&fixture).await;
    let request = head(&fixture, "GET /") + "connection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    app.head().await;
    let switch =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    app.stream.write_all(switch).await.expect("write");
    crate::fixture::read_until(&mut stream, "\r\n\r\n").await;
    fixture.stop.cancel();
    soon(&mut fixture.served).await.expect("served");
    assert_eq!(app.rest().await.expect("closed"), b"");
}
