//! HTTP/2 clients that keep to the letter of RFC 9113 and do harm by the number.

use tokio::time::Instant;

use crate::client::{Client, Http, request as good_request, text, whole};
use crate::fixture::{Fixture, PATIENCE, until};
use crate::frames_http2::{
    CONTINUATION, Connection, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, Verdict, WINDOW_UPDATE, field, frame, request, setting,
};

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

const WHOLE: u8 = END_HEADERS | END_STREAM;

/// Sends `bytes` again and again, up to `times`; the proxy may end that, and must be well afterwards.
async fn flood(fixture: &Fixture, times: usize, mut bytes: impl FnMut(u32) -> Vec<u8>) -> Verdict {
    let mut connection = Connection::new(fixture).await;
    let begin = Instant::now();
    let mut sent = 0;
    for n in 0..times {
        if !connection.send(&bytes(n as u32)).await {
            break;
        }
        sent += 1;
    }
    connection.send(&frame(PING, 0, 0, b"the end.")).await;
    let verdict = loop {
        match connection.verdict().await {
            Verdict::Answer | Verdict::Reset(_) => {}
            Verdict::Pong(data) if data != b"the end." => {}
            other => break other,
        }
    };
    assert!(begin.elapsed() < PATIENCE, "{sent} took too long");
    let mut client = Client::new(fixture, Http::Two).await;
    let denied = good_request(fixture, "GET", "/")
        .header("x-aws-proxy-port", "22")
        .body(whole(""))
        .expect("request");
    let response = client.send(denied).await.expect("response");
    assert_eq!(text(response).await, "Access to port denied");
    verdict
}

#[tokio::test]
async fn a_flood_of_continuations_is_stopped() {
    let fixture = Fixture::new().await;
    let block = request(&fixture, "GET");
    for piece in [vec![], field("x", &"a".repeat(8 << 10))] {
        let mut first = true;
        let verdict = flood(&fixture, 2000, |_| {
            if std::mem::take(&mut first) {
                return frame(HEADERS, END_STREAM, 1, &block);
            }
            frame(CONTINUATION, 0, 1, &piece)
        })
        .await;
        assert!(
            matches!(
                verdict,
                Verdict::Goaway(ENHANCE_YOUR_CALM | PROTOCOL_ERROR) | Verdict::Closed
            ),
            "{verdict:?}"
        );
    }
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn rapid_resets_are_stopped() {
    let fixture = Fixture::asleep().await;
    let block = request(&fixture, "GET");
    let verdict = flood(&fixture, 5000, |n| {
        let stream = 2 * n + 1;
        [
            frame(HEADERS, WHOLE, stream, &block),
            frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat()
    })
    .await;
    assert!(
        matches!(
            verdict,
            Verdict::Goaway(ENHANCE_YOUR_CALM) | Verdict::Pong(_) | Verdict::Closed
        ),
        "{verdict:?}"
    );
    // None of them goes on waiting.
    until(|| fixture.waiting() == 0).await;
}

#[tokio::test]
async fn resets_that_the_client_provokes_are_stopped() {
    let fixture = Fixture::asleep().await;
    let block = request(&fixture, "POST");
    let verdict = flood(&fixture, 5000, |n| {
        let stream = 2 * n + 1;
        [
            frame(HEADERS, END_HEADERS, stream, &block),
            frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]),
        ]
        .concat()
    })
    .await;
    assert!(
        matches!(
            verdict,
            Verdict::Goaway(ENHANCE_YOUR_CALM) | Verdict::Closed
        ),
        "{verdict:?}"
    );
    until(|| fixture.waiting() == 0).await;
}

#[tokio::test]
async fn floods_of_small_talk_do_no_harm() {
    let fixture = Fixture::new().await;
    for (name, bytes) in [
        ("settings", frame(SETTINGS, 0, 0, &setting(3, 100))),
        ("pings", frame(PING, 0, 0, &[7; 8])),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16])),
        ("unknown frames", frame(0x77, 0, 0, &[0; 100])),
        (
            "updates of a byte",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ),
    ] {
        let verdict = flood(&fixture, 10_000, |_| bytes.clone()).await;
        assert!(
            matches!(
                verdict,
                Verdict::Pong(_) | Verdict::Closed | Verdict::Goaway(NO_ERROR | ENHANCE_YOUR_CALM)
            ),
            "{name}: {verdict:?}"
        );
    }
}

#[tokio::test]
async fn a_small_head_that_unpacks_to_a_large_one_is_refused() {
    let fixture = Fixture::new().await;
    let mut connection = Connection::new(&fixture).await;
    // One field of 4,000 bytes into the table, and then again and again by its index.
    let mut bomb = request(&fixture, "GET");
    bomb.push(0x40);
    bomb.extend_from_slice(&field("x", &"a".repeat(3900))[1..]);
    bomb.extend(std::iter::repeat_n(0x80 | 62, 8000));
    connection.send(&frame(HEADERS, WHOLE, 1, &bomb)).await;
    let verdict = connection.verdict().await;
    assert!(
        matches!(
            verdict,
            Verdict::Answer | Verdict::Reset(_) | Verdict::Goaway(_)
        ),
        "{verdict:?}"
    );
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_the_others_served() {
    let fixture = Fixture::asleep().await;
    let mut connection = Connection::new(&fixture).await;
    let block = request(&fixture, "GET");
    for n in 0..129 {
        connection
            .send(&frame(HEADERS, WHOLE, 2 * n + 1, &block))
            .await;
    }
    let refused = 7;
    assert_eq!(connection.verdict().await, Verdict::Reset(refused));
    until(|| fixture.waiting() == 128).await;
    drop(connection);
    until(|| fixture.waiting() == 0).await;
}
