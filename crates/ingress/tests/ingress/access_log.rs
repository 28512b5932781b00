//! The access log: one line for each exchange, with all that an operator asks for and no secret.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dormouse_ingress::ACCESS_LOG;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};

use crate::client::{BOTH, Client, head, raw, request, text, whole};
use crate::fixture::{ENDPOINT, Fixture, microvm, read_until, soon};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// What all tests of this process log, as JSON and as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("lock").clone()).expect("text")
    }

    /// The one line that names this request.
    async fn of(&self, request_id: &str) -> String {
        soon(async {
            loop {
                let text = self.text();
                let mut lines = text.lines().filter(|line| line.contains(request_id));
                if let Some(line) = lines.next() {
                    assert_eq!(lines.next(), None, "a second line");
                    return line.to_owned();
                }
                sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0.lock().expect("lock"), bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Logs {
    json: Lines,
    plain: Lines,
}

fn logs() -> &'static Logs {
    static LOGS: OnceLock<Logs> = OnceLock::new();
    LOGS.get_or_init(|| {
        let (json, plain) = (Lines::default(), Lines::default());
        let only = || Targets::new().with_target(ACCESS_LOG, tracing::Level::INFO);
        let (one, two) = (json.clone(), plain.clone());
        let as_json = fmt::layer().json().with_writer(move || one.clone());
        let as_text = fmt::layer()
            .with_ansi(false)
            .with_writer(move || two.clone());
        let both = tracing_subscriber::registry()
            .with(as_json.with_filter(only()))
            .with(as_text.with_filter(only()));
        tracing::subscriber::set_global_default(both).expect("the first");
        Logs { json, plain }
    })
}

fn request_id(answer: &str) -> String {
    let line = answer
        .lines()
        .find_map(|line| line.strip_prefix("x-amzn-requestid: "));
    line.expect("a request id").to_owned()
}

#[tokio::test]
async fn an_exchange_leaves_one_line_with_what_came_of_it() {
    let (logs, fixture) = (logs(), Fixture::new().await);
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let request = request(&fixture, "POST", "/a/path?secret=query")
            .header("cookie", "session=secret")
            .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
            .header("tracestate", "vendor=1")
            .header("baggage", "user=2")
            .body(whole("upload"))
            .expect("request");
        let app = async {
            let mut app = fixture.app().await;
            let head = app.head().await;
            let mut upload = [0; 6];
            if head.contains("content-length") {
                tokio::io::AsyncReadExt::read_exact(&mut app.stream, &mut upload)
                    .await
                    .expect("upload");
            } else {
                read_until(&mut app.stream, "0\r\n\r\n").await;
            }
            sleep(Duration::from_millis(20)).await;
            app.stream.write_all(ANSWER).await.expect("write");
            head
        };
        let (response, seen) = tokio::join!(client.send(request), app);
        for passed in [TRACE, "tracestate: vendor=1", "baggage: user=2"] {
            assert!(
                seen.contains(passed),
                "the app did not get {passed}: {seen}"
            );
        }
        let response = response.expect("response");
        let id = response.headers()["x-amzn-requestid"]
            .to_str()
            .expect("text")
            .to_owned();
        assert_eq!(text(response).await, "hello");
        let line = logs.json.of(&id).await;
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            (&line["level"], &line["target"]),
            (&"INFO".into(), &ACCESS_LOG.into())
        );
        let fields = &line["fields"];
        for (name, value) in [
            ("trace_id", TRACE.into()),
            ("endpoint", ENDPOINT.into()),
            ("microvm", microvm(ENDPOINT).as_str().into()),
            ("port", 8080.into()),
            ("method", "POST".into()),
            ("path", "/a/path".into()),
            ("status", 200.into()),
            ("bytes_in", 6.into()),
            ("bytes_out", 5.into()),
            ("complete", Value::Bool(true)),
        ] {
            assert_eq!(fields[name], value, "{name} of {line}");
        }
        let us = |name: &str| fields[name].as_u64().expect("a time");
        assert!(us("first_byte_us") >= 20_000 && us("duration_us") >= us("first_byte_us"));
        assert!(us("connect_us") < us("duration_us"));
        assert!(fields.get("wake_us").is_none() && fields.get("refusal").is_none());
        let text = line.to_string();
        let token = fixture.token();
        assert!(
            !text.contains("secret") && !text.contains(&token[..40]),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_refusal_says_why_and_where_to() {
    let (logs, fixture) = (logs(), Fixture::new().await);
    let mut stream = raw(&fixture).await;
    let ask = head(&fixture, "GET /x") + "x-aws-proxy-port: 22\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.expect("write");
    let answer = read_until(&mut stream, "denied").await;
    let line: Value =
        serde_json::from_str(&logs.json.of(&request_id(&answer)).await).expect("JSON");
    assert_eq!(line["fields"]["refusal"], "port_denied");
    assert_eq!(line["fields"]["status"], 403);
    assert_eq!(line["fields"]["endpoint"], Value::Null);
}

#[tokio::test]
async fn a_held_request_says_how_long_and_one_that_is_given_up_leaves_its_line_too() {
    let (logs, fixture) = (logs(), Fixture::asleep().await);
    let mut client = Client::new(&fixture, BOTH[0]).await;
    let held = request(&fixture, "GET", "/held")
        .body(whole(""))
        .expect("request");
    let held = tokio::spawn(async move { client.send(held).await.expect("response") });
    crate::fixture::until(|| fixture.waiting() == 1).await;
    let mut client = Client::new(&fixture, BOTH[1]).await;
    let given_up = request(&fixture, "GET", "/given-up-7c1e")
        .body(whole(""))
        .expect("request");
    let given_up = tokio::spawn(async move { client.send(given_up).await });
    crate::fixture::until(|| fixture.waiting() == 2).await;
    given_up.abort();
    let line: Value = serde_json::from_str(&logs.json.of("/given-up-7c1e").await).expect("JSON");
    assert_eq!(line["fields"]["status"], Value::Null);
    assert_eq!(line["fields"]["complete"], false);
    sleep(Duration::from_millis(50)).await;
    fixture.wake();
    let mut app = fixture.app().await;
    app.head().await;
    app.stream.write_all(ANSWER).await.expect("write");
    let response = held.await.expect("task");
    let id = response.headers()["x-amzn-requestid"]
        .to_str()
        .expect("text")
        .to_owned();
    assert_eq!(text(response).await, "hello");
    let line: Value = serde_json::from_str(&logs.json.of(&id).await).expect("JSON");
    assert!(line["fields"]["wake_us"].as_u64().expect("a time") >= 50_000);
}

#[tokio::test]
async fn an_answer_that_broke_off_is_not_complete() {
    let (logs, fixture) = (logs(), Fixture::new().await);
    let mut stream = raw(&fixture).await;
    let ask = head(&fixture, "GET /half") + "\r\n";
    stream.write_all(ask.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    app.head().await;
    app.stream
        .write_all(&ANSWER[..ANSWER.len() - 2])
        .await
        .expect("write");
    drop(app);
    let answer = read_until(&mut stream, "hel").await;
    let line: Value =
        serde_json::from_str(&logs.json.of(&request_id(&answer)).await).expect("JSON");
    assert_eq!(line["fields"]["complete"], false);
    assert_eq!(line["fields"]["bytes_out"], 3);
}

#[tokio::test]
async fn a_switched_connection_leaves_its_line_at_its_end() {
    let (logs, fixture) = (logs(), Fixture::new().await);
    let mut stream = raw(&fixture).await;
    let ask = head(&fixture, "GET /ws") + "connection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    app.head().await;
    let switch =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    app.stream.write_all(switch).await.expect("write");
    let id = request_id(&read_until(&mut stream, "\r\n\r\n").await);
    stream.write_all(b"ping").await.expect("write");
    read_until(&mut app.stream, "ping").await;
    app.stream.write_all(b"pong!").await.expect("write");
    read_until(&mut stream, "pong!").await;
    assert!(!logs.json.text().contains(&id));
    drop((stream, app));
    let line: Value = serde_json::from_str(&logs.json.of(&id).await).expect("JSON");
    let fields = &line["fields"];
    assert_eq!(
        (&fields["bytes_in"], &fields["bytes_out"]),
        (&4.into(), &5.into())
    );
    assert_eq!(fields["status"], 101);
}

/// Whatever a client puts into its request, a line stays one line and a field one field.
#[tokio::test]
async fn no_client_writes_lines_of_its_own() {
    let (logs, fixture) = (logs(), Fixture::new().await);
    let path = "/\"%0a{\"level\":\"ERROR\"}\\n status=500";
    let path = path.replace(' ', "%20");
    let mut stream = raw(&fixture).await;
    let ask = head(&fixture, &format!("GET {path}")) + "\r\n";
    stream.write_all(ask.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    app.head().await;
    app.stream.write_all(ANSWER).await.expect("write");
    let id = request_id(&read_until(&mut stream, "hello").await);
    let line: Value = serde_json::from_str(&logs.json.of(&id).await).expect("JSON");
    assert_eq!(line["fields"]["path"], path);
    assert_eq!(line["level"], "INFO");
    let plain = logs.plain.of(&id).await;
    assert!(plain.contains(&format!("path={path:?}")), "{plain}");
    assert!(plain.contains("status=200"), "{plain}");
}
