//! Shells over WebSocket, to a stub of the agent.

use dormouse_core::guest::{FRAME_PAYLOAD_MAX, FrameKind, TerminalSize};
use dormouse_core::limits;
use dormouse_ingress::OpenError;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::client::{host, raw, read_to_close};
use crate::fixture::{ENDPOINT, Fixture, Shell, read_until, soon, until};

type Client = WebSocketStream<TlsStream<TcpStream>>;

/// An opening handshake as a browser makes it.
fn handshake(target: &str, token: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: lambda-microvms, lambda-microvms.authentication.{token}, \
         lambda-microvms.port.8022\r\n\r\n",
        host(ENDPOINT)
    )
}

/// A shell with its first message read.
async fn open(fixture: &Fixture, target: &str) -> (Client, Shell) {
    let mut stream = raw(fixture).await;
    let ask = handshake(target, &fixture.shell_token());
    stream.write_all(ask.as_bytes()).await.expect("write");
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    for line in [
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
        "sec-websocket-protocol: lambda-microvms\r\n",
        "upgrade: websocket\r\n",
        "x-amzn-requestid: ",
    ] {
        assert!(answer.contains(line), "{answer}");
    }
    let mut client = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let first = next(&mut client).await.into_text().expect("text");
    let id = first
        .strip_prefix(r#"{"type":"session_init","session_id":""#)
        .and_then(|rest| rest.strip_suffix(r#""}"#));
    assert_eq!(id.expect("a session id").len(), 36);
    (client, fixture.shell().await)
}

async fn next(client: &mut Client) -> Message {
    let message = soon(client.next()).await.expect("a message");
    message.expect("whole")
}

async fn say(client: &mut Client, message: Message) {
    soon(client.send(message)).await.expect("sent");
}

/// Reads up to the close: its code and reason.
async fn closed(client: &mut Client) -> (u16, String) {
    loop {
        if let Message::Close(frame) = next(client).await {
            let frame = frame.expect("a reason");
            return (frame.code.into(), frame.reason.to_string());
        }
    }
}

#[tokio::test]
async fn a_session_is_as_on_aws() {
    let fixture = Fixture::new().await;
    for path in ["/", "/shell", "/any/thing?session=1"] {
        let (mut client, mut shell) = open(&fixture, path).await;
        assert_eq!(shell.spec.terminal, Some(TerminalSize::default()));
        assert_eq!(shell.spec.command, None);
        shell.send(FrameKind::Stdout, "λ $ ".as_bytes()).await;
        let shown = next(&mut client).await;
        assert_eq!(shown, Message::binary("λ $ ".as_bytes().to_vec()));
        let size = r#"{"type":"resize","cols":120,"rows":40}"#;
        say(&mut client, Message::text(size)).await;
        let typed = [
            Message::text("echo hi\n"),
            Message::binary(b"\x03\xff".to_vec()),
            Message::text(r#"{"type":"resize","cols":120}"#),
            Message::text(r#"{"type":"other"}"#),
            Message::text(r#"{"type":"eof"}"#),
        ];
        for message in typed.clone() {
            say(&mut client, message).await;
        }
        let (kind, size) = shell.frame().await.expect("a size");
        assert_eq!(kind, FrameKind::Resize);
        assert_eq!(size, br#"{"cols":120,"rows":40}"#);
        for message in typed {
            let bytes = message.into_data().to_vec();
            assert_eq!(shell.frame().await, Some((FrameKind::Stdin, bytes)));
        }
        shell.send(FrameKind::Exit, br#"{"code":3}"#).await;
        let end = closed(&mut client).await;
        assert_eq!(end, (1000, "shell exited".to_owned()));
        assert_eq!(shell.frame().await, None);
    }
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_client_that_asks_learns_the_exit_code_and_names_command_and_size() {
    let fixture = Fixture::new().await;
    let target = "/?dormouse-exit-code=true&dormouse-command=ls%20-l&dormouse-size=132x43";
    let (mut client, mut shell) = open(&fixture, target).await;
    assert_eq!(shell.spec.command.as_deref(), Some("ls -l"));
    let size = TerminalSize {
        cols: 132,
        rows: 43,
    };
    assert_eq!(shell.spec.terminal, Some(size));
    shell.send(FrameKind::Exit, br#"{"code":137}"#).await;
    let end = closed(&mut client).await;
    assert_eq!(end, (1000, "shell exited: 137".to_owned()));
}

#[tokio::test]
async fn without_a_terminal_input_ends_and_errors_come_apart() {
    let fixture = Fixture::new().await;
    let (mut client, mut shell) = open(&fixture, "/?dormouse-terminal=false").await;
    assert_eq!(shell.spec.terminal, None);
    say(&mut client, Message::binary(vec![4])).await;
    say(&mut client, Message::text(r#"{"type":"eof"}"#)).await;
    assert_eq!(shell.frame().await, Some((FrameKind::Stdin, vec![4])));
    assert_eq!(shell.frame().await, Some((FrameKind::Stdin, vec![])));
    shell.send(FrameKind::Stderr, b"oops").await;
    shell.send(FrameKind::Stdout, b"fine").await;
    for message in [
        Message::text(r#"{"type":"stderr"}"#),
        Message::binary(b"oops".to_vec()),
        Message::binary(b"fine".to_vec()),
    ] {
        assert_eq!(next(&mut client).await, message);
    }
    shell.send(FrameKind::Exit, br#"{"code":0}"#).await;
    let end = closed(&mut client).await;
    assert_eq!(end, (1000, "shell exited".to_owned()));
}

#[tokio::test]
async fn a_client_that_leaves_hangs_up() {
    let fixture = Fixture::new().await;
    let (client, mut shell) = open(&fixture, "/").await;
    drop(client);
    assert_eq!(shell.frame().await, None);
    let (mut client, mut shell) = open(&fixture, "/").await;
    say(&mut client, Message::Close(None)).await;
    assert_eq!(shell.frame().await, None);
    // The close is answered.
    assert!(matches!(next(&mut client).await, Message::Close(_)));
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_microvm_that_goes_away_is_told() {
    let fixture = Fixture::new().await;
    let (mut client, shell) = open(&fixture, "/").await;
    drop(shell);
    let end = closed(&mut client).await;
    assert_eq!(end, (1012, "the MicroVM went away".to_owned()));
}

#[tokio::test]
async fn an_agent_that_makes_no_sense_is_cut_off() {
    let fixture = Fixture::new().await;
    for nonsense in [
        &b"\x09\0\0\0\0"[..],
        b"\x01\xff\xff\xff\xff",
        b"\x03\0\0\0\x02[]",
        b"\x04\0\0\0\0",
        b"\x02\0\0\0\x01x",
    ] {
        let (mut client, mut shell) = open(&fixture, "/").await;
        shell.stream.write_all(nonsense).await.expect("write");
        let end = closed(&mut client).await;
        assert_eq!(end, (1011, "the shell broke".to_owned()), "{nonsense:?}");
        assert_eq!(shell.frame().await, None);
    }
}

#[tokio::test]
async fn messages_are_bounded_and_large_ones_come_in_pieces() {
    let fixture = Fixture::new().await;
    let (mut client, mut shell) = open(&fixture, "/").await;
    let paste: Vec<u8> = (0..limits::SHELL_MESSAGE_BYTES_MAX)
        .map(|n| n as u8)
        .collect();
    let send = say(&mut client, Message::binary(paste.clone()));
    let take = async {
        let mut taken = Vec::new();
        while taken.len() < paste.len() {
            let (kind, piece) = shell.frame().await.expect("a piece");
            assert_eq!(kind, FrameKind::Stdin);
            assert!(piece.len() <= FRAME_PAYLOAD_MAX);
            taken.extend(piece);
        }
        taken
    };
    let ((), taken) = tokio::join!(send, take);
    assert!(taken == paste);
    let long = vec![b'x'; limits::SHELL_MESSAGE_BYTES_MAX + 1];
    say(&mut client, Message::binary(long)).await;
    let end = closed(&mut client).await;
    assert_eq!(end, (1009, "message too long".to_owned()));
    assert_eq!(shell.frame().await, None);
}

#[tokio::test]
async fn a_flooded_client_can_still_interrupt() {
    let fixture = Fixture::new().await;
    let (mut client, mut shell) = open(&fixture, "/").await;
    // More than all the buffers on the way hold, and the client reads nothing.
    let (mut from_client, mut to_client) = tokio::io::split(&mut shell.stream);
    let flood = async {
        let frame = [&b"\x01\0\x01\0\0"[..], &[b'y'; FRAME_PAYLOAD_MAX]].concat();
        for _ in 0..2000 {
            to_client.write_all(&frame).await.expect("write");
        }
        panic!("everything was taken");
    };
    let interrupt = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        say(&mut client, Message::binary(vec![3])).await;
        let mut typed = [0; 6];
        let read = tokio::io::AsyncReadExt::read_exact(&mut from_client, &mut typed);
        soon(read).await.expect("the interrupt");
        assert_eq!(&typed, b"\x04\0\0\0\x01\x03");
    };
    tokio::select! {
        () = flood => {}
        () = interrupt => {}
    }
}

#[tokio::test]
async fn a_shell_waits_for_its_microvm_to_wake() {
    let fixture = Fixture::asleep().await;
    let mut stream = raw(&fixture).await;
    let ask = handshake("/", &fixture.shell_token());
    stream.write_all(ask.as_bytes()).await.expect("write");
    until(|| fixture.waiting() == 1).await;
    fixture.wake();
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
}

/// What a client gets that sends these bytes.
async fn refused(fixture: &Fixture, ask: &str) -> (String, String) {
    let mut stream = raw(fixture).await;
    stream.write_all(ask.as_bytes()).await.expect("write");
    let head = read_until(&mut stream, "\r\n\r\n").await;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.expect("a length").parse().expect("a number");
    let mut body = vec![0; length];
    let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut body);
    soon(read).await.expect("the body");
    let status = head.split(' ').nth(1).expect("a status").to_owned();
    (status, String::from_utf8(body).expect("text"))
}

#[tokio::test]
async fn who_cannot_have_a_shell_is_told_before_the_switch() {
    let fixture = Fixture::new().await;
    let ask = handshake("/", &fixture.shell_token());
    for (error, status, text) in [
        (OpenError::Ended, "502", ""),
        (OpenError::Asleep, "502", ""),
        (OpenError::Overloaded, "429", ""),
        (OpenError::NoShell, "501", "No shell starts in this MicroVM"),
        (
            OpenError::AgentTooOld,
            "501",
            "The image of this MicroVM was built before there were shells: build it again",
        ),
    ] {
        fixture.refuse(error);
        let told = refused(&fixture, &ask).await;
        assert_eq!(told, (status.to_owned(), text.to_owned()), "{error:?}");
    }
    let opens = fixture.opens();
    let token = fixture.shell_token();
    let plain = format!(
        "GET / HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {token}\r\n\r\n",
        host(ENDPOINT)
    );
    assert_eq!(refused(&fixture, &plain).await, ("502".into(), "".into()));
    let bad = ("400".to_owned(), "Invalid WebSocket handshake".to_owned());
    for (header, other) in [
        ("sec-websocket-version: 13", "sec-websocket-version: 8"),
        ("sec-websocket-key", "x-key"),
    ] {
        assert_eq!(refused(&fixture, &ask.replace(header, other)).await, bad);
    }
    let ask = handshake("/?dormouse-size=x", &token);
    let bad = ("400".to_owned(), "Invalid shell parameters".to_owned());
    assert_eq!(refused(&fixture, &ask).await, bad);
    assert_eq!(fixture.opens(), opens);
}

#[tokio::test]
async fn a_stop_ends_shells_too() {
    let patience = std::time::Duration::from_millis(200);
    let mut fixture = Fixture::with(|config| config.drain_timeout = patience).await;
    let (client, mut shell) = open(&fixture, "/").await;
    fixture.stop.cancel();
    soon(&mut fixture.served).await.expect("served");
    assert_eq!(shell.frame().await, None);
    let mut stream = client.into_inner();
    read_to_close(&mut stream).await;
}
