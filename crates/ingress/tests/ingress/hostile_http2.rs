//! HTTP/2 clients that break the rules of RFC 9113.

use std::time::{Duration, Instant};

use crate::client::host;
use crate::fixture::{ENDPOINT, Fixture, read_until, until};
use crate::frames_http2::{
    ACK, CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING,
    PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, Verdict, WINDOW_UPDATE, field, frame,
    request, setting,
};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

const WHOLE: u8 = END_HEADERS | END_STREAM;

/// What RFC 9113 demands, and may be met by more: every error of a stream may be taken for one of the connection
/// (section 5.4), and a general code may stand for a special one.
fn meets(verdict: &Verdict, expected: &Verdict) -> bool {
    match (verdict, expected) {
        (Verdict::Goaway(PROTOCOL_ERROR), Verdict::Goaway(_) | Verdict::Reset(_)) => true,
        (Verdict::Goaway(code), Verdict::Reset(expected)) => code == expected,
        _ => verdict == expected,
    }
}

/// Sends each case on a connection of its own; the proxy must say what the case expects. After a stream error the
/// connection must still serve, and no case may reach an app.
async fn check(fixture: &Fixture, cases: Vec<(&str, Vec<u8>, Verdict)>) {
    for (name, bytes, expected) in cases {
        let mut connection = Connection::new(fixture).await;
        connection.send(&bytes).await;
        let verdict = connection.verdict().await;
        assert!(meets(&verdict, &expected), "{name}: {verdict:?}");
        if matches!(verdict, Verdict::Reset(_) | Verdict::Answer) {
            connection.send(&frame(PING, 0, 0, b"go on???")).await;
            let alive = loop {
                match connection.verdict().await {
                    Verdict::Answer | Verdict::Reset(_) => {}
                    other => break other,
                }
            };
            assert_eq!(alive, Verdict::Pong(b"go on???".to_vec()), "{name}");
        }
    }
    assert_eq!(fixture.opens(), 0);
}

fn goaway(code: u32) -> Verdict {
    Verdict::Goaway(code)
}

fn reset(code: u32) -> Verdict {
    Verdict::Reset(code)
}

#[tokio::test]
async fn frames_of_a_wrong_size_end_the_connection() {
    let fixture = Fixture::new().await;
    let head = frame(HEADERS, END_HEADERS, 1, &request(&fixture, "POST"));
    let too_large = frame(DATA, 0, 1, &[0; (16 << 10) + 1]);
    check(
        &fixture,
        vec![
            (
                "4.2 a frame beyond 16 KiB",
                too_large,
                goaway(FRAME_SIZE_ERROR),
            ),
            (
                "6.5 settings that are not a multiple of six",
                frame(SETTINGS, 0, 0, &[0; 5]),
                goaway(FRAME_SIZE_ERROR),
            ),
            (
                "6.5 an acknowledgement with settings",
                frame(SETTINGS, ACK, 0, &setting(3, 1)),
                goaway(FRAME_SIZE_ERROR),
            ),
            (
                "6.7 a ping of seven bytes",
                frame(PING, 0, 0, &[0; 7]),
                goaway(FRAME_SIZE_ERROR),
            ),
            (
                "6.9 a window update of three bytes",
                frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
                goaway(FRAME_SIZE_ERROR),
            ),
            (
                "6.4 a reset of three bytes",
                [head, frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
                goaway(FRAME_SIZE_ERROR),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn frames_in_the_wrong_place_end_the_connection() {
    let fixture = Fixture::new().await;
    let block = request(&fixture, "GET");
    let open = frame(HEADERS, 0, 1, &block);
    check(
        &fixture,
        vec![
            (
                "6.1 data on stream 0",
                frame(DATA, 0, 0, b"x"),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.2 a head on stream 0",
                frame(HEADERS, WHOLE, 0, &block),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.4 a reset of stream 0",
                frame(RST_STREAM, 0, 0, &[0; 4]),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.5 settings of a stream",
                frame(SETTINGS, 0, 1, &[]),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.7 a ping on a stream",
                frame(PING, 0, 1, &[0; 8]),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.8 a goodbye on a stream",
                frame(GOAWAY, 0, 1, &[0; 8]),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "5.1.1 an even stream",
                frame(HEADERS, WHOLE, 2, &block),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "5.1 data on an idle stream",
                frame(DATA, 0, 1, b"x"),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "5.1 a reset of an idle stream",
                frame(RST_STREAM, 0, 1, &[0; 4]),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "5.1 a window update of an idle stream",
                frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.6 a promise from a client",
                frame(
                    PUSH_PROMISE,
                    END_HEADERS,
                    1,
                    &[&[0, 0, 0, 2], &block[..]].concat(),
                ),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.10 a continuation of nothing",
                frame(CONTINUATION, END_HEADERS, 1, &block),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.10 a ping within a head",
                [open.clone(), frame(PING, 0, 0, &[0; 8])].concat(),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.10 a continuation of another stream",
                [open, frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.1 more padding than frame",
                frame(
                    HEADERS,
                    WHOLE | PADDED,
                    1,
                    &[&[255], &b"short"[..]].concat(),
                ),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "4.3 a head that is no HPACK",
                frame(HEADERS, WHOLE, 1, &[0x80]),
                goaway(COMPRESSION_ERROR),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn settings_and_windows_have_their_bounds() {
    let fixture = Fixture::new().await;
    let refused = field(":authority", &host(ENDPOINT));
    let refused = [
        field(":method", "POST"),
        field(":scheme", "https"),
        field(":path", "/"),
        refused,
    ]
    .concat();
    let head = frame(HEADERS, END_HEADERS, 1, &refused);
    check(
        &fixture,
        vec![
            (
                "6.5.2 push of two",
                frame(SETTINGS, 0, 0, &setting(2, 2)),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.5.2 a window beyond 2^31-1",
                frame(SETTINGS, 0, 0, &setting(4, 1 << 31)),
                goaway(FLOW_CONTROL_ERROR),
            ),
            (
                "6.5.2 frames below 16 KiB",
                frame(SETTINGS, 0, 0, &setting(5, 100)),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.9 a window update of nothing",
                frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
                goaway(PROTOCOL_ERROR),
            ),
            (
                "6.9.1 a connection's window beyond 2^31-1",
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                goaway(FLOW_CONTROL_ERROR),
            ),
            (
                "an unknown setting, and then a request",
                [frame(SETTINGS, 0, 0, &setting(0x99, 7)), head.clone()].concat(),
                Verdict::Answer,
            ),
            (
                "an unknown frame, and then a request",
                [frame(0x99, 0, 0, b"?"), head].concat(),
                Verdict::Answer,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_malformed_head_costs_its_stream() {
    let fixture = Fixture::new().await;
    let good = request(&fixture, "GET");
    let with = |name: &str, value: &str| {
        let block = [good.clone(), field(name, value)].concat();
        frame(HEADERS, WHOLE, 1, &block)
    };
    let method = field(":method", "GET");
    let scheme = field(":scheme", "https");
    let path = field(":path", "/");
    let authority = field(":authority", &host(ENDPOINT));
    let of = |fields: &[&Vec<u8>]| {
        let block: Vec<u8> = fields.iter().copied().flatten().copied().collect();
        frame(HEADERS, WHOLE, 1, &block)
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("8.2.1 an upper-case name", with("X-Upper", "1")),
        ("8.2.1 a name with a space", with("x y", "1")),
        ("8.2.1 a name with a colon", with("x:y", "1")),
        ("8.2.1 an empty name", with("", "1")),
        (
            "8.2.1 a line break in a value",
            with("x", "1\r\nx-smuggled: 1"),
        ),
        ("8.2.1 a zero in a value", with("x", "1\0")),
        ("8.2.2 connection", with("connection", "close")),
        (
            "8.2.2 transfer-encoding",
            with("transfer-encoding", "chunked"),
        ),
        ("8.2.2 upgrade", with("upgrade", "websocket")),
        ("8.2.2 keep-alive", with("keep-alive", "5")),
        ("8.2.2 te of more than trailers", with("te", "gzip")),
        (
            "8.3 a pseudo-header behind a header",
            with(":path", "/late"),
        ),
        (
            "8.3 an unknown pseudo-header",
            of(&[&method, &scheme, &path, &authority, &field(":x", "1")]),
        ),
        (
            "8.3 a response's pseudo-header",
            of(&[&method, &scheme, &path, &field(":status", "200")]),
        ),
        ("8.3.1 no method", of(&[&scheme, &path, &authority])),
        ("8.3.1 no scheme", of(&[&method, &path, &authority])),
        ("8.3.1 no path", of(&[&method, &scheme, &authority])),
        (
            "8.3.1 an empty path",
            of(&[&method, &scheme, &field(":path", ""), &authority]),
        ),
        (
            "8.3.1 two methods",
            of(&[&method, &method, &scheme, &path, &authority]),
        ),
        (
            "8.3.1 two paths",
            of(&[&method, &scheme, &path, &path, &authority]),
        ),
        (
            "8.3.1 two authorities",
            of(&[&method, &scheme, &path, &authority, &authority]),
        ),
        (
            "8.3.1 a path with a line break",
            of(&[
                &method,
                &scheme,
                &field(":path", "/ HTTP/1.1\r\nx: 1"),
                &authority,
            ]),
        ),
        (
            "8.3.1 a path with a space",
            of(&[&method, &scheme, &field(":path", "/ HTTP/1.1"), &authority]),
        ),
        (
            "8.3.1 a method with a space",
            of(&[&field(":method", "GET /"), &scheme, &path, &authority]),
        ),
        ("8.1.1 a length and no body", with("content-length", "5")),
        (
            "8441 a protocol without CONNECT",
            of(&[
                &method,
                &scheme,
                &path,
                &authority,
                &field(":protocol", "websocket"),
            ]),
        ),
    ];
    let cases = cases
        .into_iter()
        .map(|(name, bytes)| (name, bytes, reset(PROTOCOL_ERROR)));
    check(&fixture, cases.collect()).await;
}

#[tokio::test]
async fn a_request_that_contradicts_itself_never_ends_at_the_app() {
    let fixture = Fixture::new().await;
    let head = |length: &str| {
        let block = [request(&fixture, "POST"), field("content-length", length)].concat();
        frame(HEADERS, END_HEADERS, 1, &block)
    };
    let plain = frame(HEADERS, END_HEADERS, 1, &request(&fixture, "POST"));
    let trailers = |flags, block: &[u8]| frame(HEADERS, flags, 1, block);
    for (name, bytes, expected) in [
        (
            "8.1.1 less than its length",
            [head("5"), frame(DATA, END_STREAM, 1, b"four")].concat(),
            reset(PROTOCOL_ERROR),
        ),
        (
            "8.1.1 more than its length",
            [head("5"), frame(DATA, END_STREAM, 1, b"sixsix")].concat(),
            reset(PROTOCOL_ERROR),
        ),
        (
            "8.1 trailers that do not end it",
            [plain.clone(), trailers(END_HEADERS, &field("x", "1"))].concat(),
            reset(PROTOCOL_ERROR),
        ),
        (
            "6.9 a window update of nothing",
            [plain.clone(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            reset(PROTOCOL_ERROR),
        ),
        (
            "6.9.1 a stream's window beyond 2^31-1",
            [plain, frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            reset(FLOW_CONTROL_ERROR),
        ),
    ] {
        let mut connection = Connection::new(&fixture).await;
        connection.send(&bytes).await;
        let verdict = connection.verdict().await;
        assert!(meets(&verdict, &expected), "{name}: {verdict:?}");
        // The head may have gone ahead. If so the app sees it break off.
        until(|| fixture.live() == 0).await;
        for mut app in fixture.apps_so_far().await {
            let seen = app.rest().await.expect("closed");
            assert!(
                !seen.ends_with(b"0\r\n\r\n"),
                "{name}: the request looked whole"
            );
        }
    }
}

#[tokio::test]
async fn a_pseudo_header_in_trailers_is_lost() {
    let fixture = Fixture::new().await;
    let mut connection = Connection::new(&fixture).await;
    let head = [request(&fixture, "POST"), field("trailer", "x-sum")].concat();
    let trailers = [field(":path", "/other"), field("x-sum", "7")].concat();
    connection
        .send(&frame(HEADERS, END_HEADERS, 1, &head))
        .await;
    connection.send(&frame(HEADERS, WHOLE, 1, &trailers)).await;
    let mut app = fixture.app().await;
    let head = app.head().await;
    assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
    let end = read_until(&mut app.stream, "\r\n\r\n").await;
    assert_eq!(end, "0\r\nx-sum: 7\r\n\r\n");
}

#[tokio::test]
async fn a_stream_may_not_come_back() {
    let fixture = Fixture::new().await;
    let denied = [request(&fixture, "GET"), field("x-aws-proxy-port", "22")].concat();
    let mut connection = Connection::new(&fixture).await;
    connection.send(&frame(HEADERS, WHOLE, 3, &denied)).await;
    assert_eq!(connection.verdict().await, Verdict::Answer);
    connection.send(&frame(HEADERS, WHOLE, 1, &denied)).await;
    assert_eq!(connection.verdict().await, goaway(PROTOCOL_ERROR));

    let mut connection = Connection::new(&fixture).await;
    connection.send(&frame(HEADERS, WHOLE, 1, &denied)).await;
    assert_eq!(connection.verdict().await, Verdict::Answer);
    connection.send(&frame(DATA, 0, 1, b"late")).await;
    let verdict = connection.verdict().await;
    assert!(
        matches!(
            verdict,
            Verdict::Reset(STREAM_CLOSED) | Verdict::Goaway(STREAM_CLOSED)
        ),
        "{verdict:?}"
    );
}

#[tokio::test]
async fn a_preface_is_a_preface() {
    // One that only begins well is waited for, as long as a head is.
    let fixture = Fixture::with(|config| config.head_timeout = Duration::from_millis(300)).await;
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"[..],
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        &[0; 64],
    ] {
        let mut connection = Connection::bare(&fixture).await;
        connection.send(bytes).await;
        let verdict = connection.verdict().await;
        assert!(
            matches!(verdict, Verdict::Closed | Verdict::Goaway(PROTOCOL_ERROR)),
            "{verdict:?}"
        );
    }
    let mut connection = Connection::bare(&fixture).await;
    connection.send(PREFACE).await;
    connection.send(&frame(PING, 0, 0, b"12345678")).await;
    let verdict = connection.verdict().await;
    assert!(
        matches!(verdict, Verdict::Goaway(_) | Verdict::Pong(_)),
        "{verdict:?}"
    );
}

/// It holds its connection, and with a token a place in the MicroVM.
#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_given_up() {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let brief = Duration::from_millis(300);
    let fixture = Fixture::with(|config| config.unread_timeout = brief).await;
    let mut connection = Connection::bare(&fixture).await;
    connection.send(PREFACE).await;
    let no_window = setting(INITIAL_WINDOW_SIZE, 0);
    connection.send(&frame(SETTINGS, 0, 0, &no_window)).await;
    // Without a token: the refusal has a few words.
    let head = [
        field(":method", "GET"),
        field(":scheme", "https"),
        field(":path", "/"),
        field(":authority", &host(ENDPOINT)),
    ]
    .concat();
    let begin = Instant::now();
    connection
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head))
        .await;
    assert_eq!(connection.verdict().await, Verdict::Answer);
    // It is told, and has a moment left.
    assert!(matches!(connection.verdict().await, Verdict::Goaway(0)));
    assert_eq!(connection.verdict().await, Verdict::Closed);
    assert!(begin.elapsed() >= brief);
}

#[tokio::test]
async fn a_ping_comes_back_and_a_priority_is_ignored() {
    let fixture = Fixture::new().await;
    let mut connection = Connection::new(&fixture).await;
    connection
        .send(&frame(PRIORITY, 0, 7, &[0, 0, 0, 3, 16]))
        .await;
    connection.send(&frame(PING, 0, 0, b"abcdefgh")).await;
    assert_eq!(
        connection.verdict().await,
        Verdict::Pong(b"abcdefgh".to_vec())
    );
    // A goodbye of the client's does not cut short what it has asked for.
    let denied = [request(&fixture, "GET"), field("x-aws-proxy-port", "22")].concat();
    connection.send(&frame(HEADERS, WHOLE, 9, &denied)).await;
    connection.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
    assert_eq!(connection.verdict().await, Verdict::Answer);
}

#[tokio::test]
async fn more_than_the_window_is_not_taken() {
    let fixture = Fixture::asleep().await;
    let mut connection = Connection::new(&fixture).await;
    connection
        .send(&frame(HEADERS, END_HEADERS, 1, &request(&fixture, "POST")))
        .await;
    let chunk = frame(DATA, 0, 1, &[0; 16 << 10]);
    // The stream's window is 1 MiB, and nobody reads.
    for _ in 0..(1 << 20 >> 14) + 2 {
        connection.send(&chunk).await;
    }
    let verdict = connection.verdict().await;
    assert!(
        matches!(
            verdict,
            Verdict::Reset(FLOW_CONTROL_ERROR) | Verdict::Goaway(FLOW_CONTROL_ERROR)
        ),
        "{verdict:?}"
    );
    until(|| fixture.waiting() == 0).await;
}
