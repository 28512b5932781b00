//! Clients that hang up before they are answered, or that do not go on.

use super::lab::{Lab, ONE, World, arn};
use crate::audit::Peer;
use crate::http::{self, Client};
use ::http::Request;
use async_trait::async_trait;
use dormouse_api::sigv4::{self, Scope};
use dormouse_core::limits;
use dormouse_store::{Backend, Kind, Memory, Query, Row, Store, StoreError, Write, Written};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const COMMIT: Duration = Duration::from_secs(2);

/// A store that answers long after it has written.
#[derive(Debug, Default)]
struct Slow(Memory);

#[async_trait]
impl Backend for Slow {
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Row>, StoreError> {
        self.0.get(kind, id).await
    }

    async fn list(&self, kind: Kind, query: &Query) -> Result<Vec<Row>, StoreError> {
        self.0.list(kind, query).await
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<Vec<Written>, StoreError> {
        let written = self.0.apply(writes).await;
        tokio::time::sleep(COMMIT).await;
        written
    }
}

impl Lab {
    /// A connection to the API, and what its requests run in.
    async fn connect(&self) -> (DuplexStream, TaskTracker) {
        let (client, server) = tokio::io::duplex(64 << 10);
        let places = Arc::new(Semaphore::new(1));
        let from = Client {
            peer: Peer(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            place: Arc::new(places.acquire_owned().await.unwrap()),
            tasks: TaskTracker::new(),
        };
        let tasks = from.tasks.clone();
        let (service, stop) = (Arc::clone(&self.0), CancellationToken::new());
        tasks.spawn(http::connection(server, from, service, stop));
        (client, tasks)
    }

    /// A signed call, as it goes over the wire.
    fn signed(&self, path: &str, body: &str) -> Vec<u8> {
        let request = Request::post(path).header("host", "localhost").body(());
        let (mut parts, ()) = request.unwrap().into_parts();
        let key = self.0.keys.first_of(&self.config.account).unwrap();
        let scope = Scope {
            region: &self.config.region,
            service: "lambda",
        };
        let now = jiff::Timestamp::now();
        sigv4::sign(
            &mut parts,
            body.as_bytes(),
            &key.id,
            &key.secret,
            scope,
            now,
        )
        .unwrap();
        let mut text = format!("POST {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in &parts.headers {
            text += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        format!("{text}\r\n{body}").into_bytes()
    }
}

#[test]
fn a_microvm_whose_caller_hung_up_is_launched_all_the_same() {
    let world = World::over(Store::new(Slow::default()), "");
    world.day(async |lab| {
        lab.built(ONE, "app").await;
        let (mut client, tasks) = lab.connect().await;
        let body = json!({"imageIdentifier": arn(ONE, "app")}).to_string();
        let call = lab.signed("/2025-09-09/microvms", &body);
        client.write_all(&call).await.unwrap();
        let id = loop {
            let listed = lab.get(ONE, "/2025-09-09/microvms").await.ok();
            if let Some(id) = listed["items"][0]["microvmId"].as_str() {
                break id.to_owned();
            }
            tokio::time::sleep(COMMIT / 10).await;
        };
        drop(client);
        lab.until_vm(ONE, &id, "RUNNING").await;
        // A stop of the listener waits for just this.
        tasks.close();
        tasks.wait().await;
    });
}

#[test]
fn a_client_that_does_not_go_on_is_left() {
    const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const UPLOAD: &[u8] =
        b"POST /2025-09-09/microvms HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nx";
    let unanswered = limits::HTTP_HEAD_TIMEOUT + limits::H2_PING_INTERVAL + limits::H2_PING_TIMEOUT;
    World::new("").day(async |lab| {
        for (said, most, answer) in [
            (&b""[..], limits::HTTP_HEAD_TIMEOUT, &b""[..]),
            (b"PRI * HTTP", limits::HTTP_HEAD_TIMEOUT, b""),
            (b"GET / HTTP/1.1\r\n", limits::HTTP_HEAD_TIMEOUT, b""),
            (HTTP2, unanswered, b"\0"),
            (UPLOAD, limits::BODY_STALL_TIMEOUT, b"HTTP/1.1 408 "),
        ] {
            let (mut client, tasks) = lab.connect().await;
            let begun = Instant::now();
            client.write_all(said).await.unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            let (took, said) = (begun.elapsed(), String::from_utf8_lossy(said));
            assert!(took <= most + Duration::from_secs(1), "{said:?}: {took:?}");
            assert!(heard.starts_with(answer), "{said:?}: {heard:?}");
            tasks.close();
            tasks.wait().await;
        }
    });
}

#[test]
fn a_client_that_answers_pings_and_takes_nothing_is_left() {
    // A window of no bytes; then `:method: GET`, `:scheme: http`, `:path: /` and the end of the request.
    const SAID: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
        \0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0\
        \0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84";
    const PING: u8 = 6;
    const ACK: u8 = 1;
    World::new("").day(async |lab| {
        let (mut client, tasks) = lab.connect().await;
        let begun = Instant::now();
        client.write_all(SAID).await.unwrap();
        let mut head = [0; 9];
        while client.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[2])];
            client.read_exact(&mut payload).await.unwrap();
            if head[3] == PING && head[4] != ACK {
                head[4] = ACK;
                // It may have ended meanwhile.
                let _ = client.write_all(&[&head[..], &payload].concat()).await;
            }
        }
        let (took, limit) = (begun.elapsed(), limits::CLIENT_UNREAD_TIMEOUT);
        assert!(took >= limit && took <= limit * 6 / 5, "{took:?}");
        tasks.close();
        tasks.wait().await;
    });
}
