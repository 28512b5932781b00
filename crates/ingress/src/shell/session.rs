//! One shell over one WebSocket, until either ends.
//!
//! ```text
//! client                                                  agent
//!   <- text   {"type":"session_init","session_id":ID}
//!   <- binary what the terminal shows                  <- stdout
//!   -> binary, text: what is typed                     -> stdin
//!   -> text   {"type":"resize","cols":C,"rows":R}      -> resize
//!   <- close  1000 "shell exited"                      <- exit
//! ```
//!
//! The two directions do not wait for each other: a client that is slow to read can still interrupt what
//! floods it.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use dormouse_core::guest::{
    Exit, FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, FrameKind, TerminalSize, put_frame, whole_frame,
};
use dormouse_core::limits;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use uuid::Uuid;

use crate::Stream;
use crate::tunnel::Tunnel;

const READ_BYTES: usize = 16 * 1024;
/// The next message is of standard error.
const STDERR: &str = r#"{"type":"stderr"}"#;
/// An end of the agent's input.
const EOF: [u8; FRAME_HEADER_LEN] = [FrameKind::Stdin as u8, 0, 0, 0, 0];

/// What is done beyond what AWS does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manners {
    /// Whether the shell has a terminal; if not, its input has an end and its outputs come apart.
    pub(super) terminal: bool,
    /// Whether the close reason tells the exit code.
    pub(super) exit_code: bool,
}

/// Why a session is over.
#[derive(Debug)]
enum End {
    /// The shell has ended.
    Exited(Exit),
    /// The MicroVM sleeps or is gone.
    MicrovmGone,
    /// The agent does not keep to the protocol.
    Nonsense,
    /// The client sent a message longer than allowed.
    TooLong,
    /// The client has closed, or is gone.
    ClientGone,
}

/// Joins a client and a shell. Both are closed when this returns.
pub(super) async fn run<C: AsyncRead + AsyncWrite + Unpin>(
    client: C,
    shell: Box<dyn Stream>,
    manners: Manners,
) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(READ_BYTES)
        .max_write_buffer_size(limits::SHELL_UNREAD_BYTES_MAX)
        .max_message_size(Some(limits::SHELL_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(limits::SHELL_MESSAGE_BYTES_MAX));
    let websocket = WebSocketStream::from_raw_socket(client, Role::Server, Some(config)).await;
    let (mut to_client, mut from_client) = websocket.split();
    // A command may end before its input does: how it ended waits to be read when writing fails.
    let (mut from_shell, mut to_shell) = tokio::io::split(Tunnel::new(shell));
    let end = tokio::select! {
        end = show(&mut from_shell, &mut to_client, manners) => end,
        end = type_in(&mut from_client, &mut to_shell, manners) => end,
    };
    tracing::debug!(?end, "shell closed");
    // What the shell started must not outlive it for want of the client's goodbye.
    drop((from_shell, to_shell));
    let goodbye = async {
        if let Some(frame) = close_frame(&end, manners) {
            tell(&mut to_client, Message::Close(Some(frame))).await?;
        }
        to_client.close().await?;
        // The client answers; what it had sent before is of no use any more.
        while let Some(Ok(_)) = from_client.next().await {}
        Ok::<_, Error>(())
    };
    let _ = timeout(limits::WEBSOCKET_CLOSE_TIMEOUT, goodbye).await;
}

/// Tells the client what the terminal shows, as fast as it takes it.
async fn show<C: AsyncRead + AsyncWrite + Unpin>(
    shell: &mut (impl AsyncRead + Unpin),
    client: &mut SplitSink<WebSocketStream<C>, Message>,
    manners: Manners,
) -> End {
    let session_id = Uuid::new_v4();
    let greeting = format!(r#"{{"type":"session_init","session_id":"{session_id}"}}"#);
    if tell(client, Message::text(greeting)).await.is_err() {
        return End::ClientGone;
    }
    let first_ping = Instant::now() + limits::SHELL_PING_INTERVAL;
    let mut pings = interval_at(first_ping, limits::SHELL_PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut frames = Frames::default();
    loop {
        let message = tokio::select! {
            frame = frames.next(shell) => match frame {
                Ok(Some((FrameKind::Stdout, shown))) => Message::Binary(shown),
                Ok(Some((FrameKind::Stderr, shown))) if !manners.terminal => {
                    if tell(client, Message::text(STDERR)).await.is_err() {
                        return End::ClientGone;
                    }
                    Message::Binary(shown)
                }
                Ok(Some((FrameKind::Exit, exit))) => {
                    return serde_json::from_slice(&exit).map_or(End::Nonsense, End::Exited);
                }
                Ok(Some(_)) => return End::Nonsense,
                Ok(None) => return End::MicrovmGone,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return End::Nonsense,
                Err(_) => return End::MicrovmGone,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if tell(client, message).await.is_err() {
            return End::ClientGone;
        }
    }
}

/// Sends a message as soon as the client has taken what came before. Answers to its pings may have filled the
/// buffer meanwhile, and a message that finds no room there fails.
async fn tell<C: AsyncRead + AsyncWrite + Unpin>(
    client: &mut SplitSink<WebSocketStream<C>, Message>,
    message: Message,
) -> Result<(), Error> {
    client.flush().await?;
    client.send(message).await
}

/// Types what the client sends, as fast as the terminal takes it.
async fn type_in<C: AsyncRead + AsyncWrite + Unpin>(
    client: &mut SplitStream<WebSocketStream<C>>,
    shell: &mut (impl AsyncWrite + Unpin),
    manners: Manners,
) -> End {
    let mut frames = Vec::new();
    while let Some(message) = client.next().await {
        let typed = match message {
            Ok(Message::Text(text)) => match control(&text) {
                Some(Control::Resize(size)) => {
                    let size = serde_json::to_vec(&size).expect("numbers serialize");
                    put_frame(&mut frames, FrameKind::Resize, &size);
                    Bytes::new()
                }
                Some(Control::Eof) if !manners.terminal => {
                    frames.extend(EOF);
                    Bytes::new()
                }
                // Anything that is not quite a control message is text to be typed.
                Some(Control::Eof) | None => Bytes::from(text),
            },
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Ok(Message::Close(_)) => return End::ClientGone,
            Err(Error::Capacity(_)) => return End::TooLong,
            Err(_) => return End::ClientGone,
        };
        for piece in typed.chunks(FRAME_PAYLOAD_MAX) {
            put_frame(&mut frames, FrameKind::Stdin, piece);
        }
        if shell.write_all(&frames).await.is_err() {
            return End::MicrovmGone;
        }
        frames.clear();
    }
    End::ClientGone
}

/// What a client's text may ask for.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Control {
    Resize(TerminalSize),
    Eof,
}

fn control(text: &str) -> Option<Control> {
    // A list would pass for an object with its members in order.
    let is_object = text.trim_start().starts_with('{');
    serde_json::from_str(text).ok().filter(|_| is_object)
}

fn close_frame(end: &End, manners: Manners) -> Option<CloseFrame> {
    let (code, reason) = match end {
        End::Exited(exit) if manners.exit_code => {
            (CloseCode::Normal, format!("shell exited: {}", exit.code))
        }
        End::Exited(_) => (CloseCode::Normal, "shell exited".to_owned()),
        End::MicrovmGone => (CloseCode::Restart, "the MicroVM went away".to_owned()),
        End::Nonsense => (CloseCode::Error, "the shell broke".to_owned()),
        End::TooLong => (CloseCode::Size, "message too long".to_owned()),
        End::ClientGone => return None,
    };
    Some(CloseFrame {
        code,
        reason: reason.into(),
    })
}

/// Takes the agent's frames off a stream, whatever it sends.
#[derive(Default)]
struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// The next frame; none at the end of the stream. What is no frame is [`io::ErrorKind::InvalidData`].
    /// Nothing is lost when the future is dropped.
    async fn next(
        &mut self,
        shell: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<(FrameKind, Bytes)>> {
        loop {
            let found = whole_frame(&self.buffer)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if let Some((kind, payload)) = found {
                let mut frame = self.buffer.split_to(payload.end);
                frame.advance(payload.start);
                return Ok(Some((kind, frame.freeze())));
            }
            self.buffer.reserve(READ_BYTES);
            if shell.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{DuplexStream, duplex, join};
    use tokio::spawn;

    const PIPE_BYTES: usize = 16 * 1024;
    const PLAIN: Manners = Manners {
        terminal: false,
        exit_code: true,
    };

    /// A session of `shell`, and the client's end of it.
    async fn client_of(shell: Box<dyn Stream>) -> WebSocketStream<DuplexStream> {
        let (client, near) = duplex(PIPE_BYTES);
        spawn(run(near, shell, PLAIN));
        WebSocketStream::from_raw_socket(client, Role::Client, None).await
    }

    fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        put_frame(&mut frame, kind, payload);
        frame
    }

    /// Everything that a client gets to read, to the close.
    async fn all(mut client: WebSocketStream<DuplexStream>) -> Vec<Message> {
        let mut all = Vec::new();
        while let Some(message) = client.next().await {
            all.push(message.expect("whole"));
        }
        all
    }

    fn reason(messages: &[Message]) -> &str {
        match messages.last() {
            Some(Message::Close(Some(frame))) => &frame.reason,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_client_that_pings_and_does_not_read_holds_no_more_than_a_buffer() {
        const PINGS: usize = 10_000;
        const OUTPUT: usize = 4 << 20;
        let (shell, mut agent) = duplex(PIPE_BYTES);
        let client = client_of(Box::new(shell)).await;
        let (mut to_client, mut from_client) = client.split();
        for _ in 0..PINGS {
            let ping = Message::Ping(Bytes::from_static(&[b'p'; 125]));
            to_client.send(ping).await.expect("taken");
        }
        // What the shell has to say then waits for its reader like anything else.
        spawn(async move {
            for kind in [FrameKind::Stdout, FrameKind::Stderr] {
                for _ in 0..OUTPUT / 2 / FRAME_PAYLOAD_MAX {
                    let shown = frame(kind, &[b'x'; FRAME_PAYLOAD_MAX]);
                    agent.write_all(&shown).await.expect("taken");
                }
            }
            let exit = frame(FrameKind::Exit, br#"{"code":0}"#);
            agent.write_all(&exit).await.expect("taken");
        });
        let (mut pong_bytes, mut shown, mut last) = (0, 0, None);
        while let Some(message) = from_client.next().await {
            let message = message.expect("whole");
            match &message {
                Message::Pong(bytes) => pong_bytes += bytes.len(),
                Message::Binary(bytes) => shown += bytes.len(),
                _ => {}
            }
            last = Some(message);
        }
        // What was on its way when the reading began comes on top.
        assert!(
            pong_bytes < 2 * limits::SHELL_UNREAD_BYTES_MAX,
            "{pong_bytes}"
        );
        assert_eq!(shown, OUTPUT);
        assert_eq!(reason(last.as_slice()), "shell exited: 0");
    }

    #[tokio::test]
    async fn a_command_that_takes_no_more_input_still_tells_how_it_ended() {
        let (output, mut agent) = duplex(PIPE_BYTES);
        let (input, agents_input) = duplex(PIPE_BYTES);
        drop(agents_input);
        let mut client = client_of(Box::new(join(output, input))).await;
        for _ in 0..3 {
            let typed = Message::binary(vec![b'x'; PIPE_BYTES]);
            client.send(typed).await.expect("taken");
        }
        tokio::task::yield_now().await;
        let words = frame(FrameKind::Stderr, b"not a tar");
        agent.write_all(&words).await.expect("taken");
        let exit = frame(FrameKind::Exit, br#"{"code":2}"#);
        agent.write_all(&exit).await.expect("taken");
        let told = all(client).await;
        assert!(told.contains(&Message::binary(&b"not a tar"[..])));
        assert_eq!(reason(&told), "shell exited: 2");
    }

    #[test]
    fn only_a_whole_control_message_is_one() {
        let size = TerminalSize {
            cols: 120,
            rows: 40,
        };
        for text in [
            r#"{"type":"resize","cols":120,"rows":40}"#,
            r#" { "rows":40, "cols":120, "type":"resize", "more":1 } "#,
        ] {
            assert_eq!(control(text), Some(Control::Resize(size)), "{text}");
        }
        for text in [
            "",
            "resize",
            "{}",
            r#"{"type":"resize"}"#,
            r#"{"type":"resize","cols":120}"#,
            r#"{"type":"resize","cols":-1,"rows":40}"#,
            r#"{"type":"resize","cols":65536,"rows":40}"#,
            r#"{"type":"resize","cols":"120","rows":"40"}"#,
            r#"{"type":"resize","cols":120,"rows":40"#,
            r#"{"type":"other","cols":120,"rows":40}"#,
            r#"["resize",120,40]"#,
        ] {
            assert_eq!(control(text), None, "{text}");
        }
    }

    #[test]
    fn the_reason_is_awss_unless_more_is_asked_for() {
        let exit = Exit {
            code: 137,
            timed_out: false,
        };
        let reason = |exit_code| {
            let manners = Manners {
                terminal: true,
                exit_code,
            };
            let frame = close_frame(&End::Exited(exit), manners).expect("a frame");
            assert_eq!(frame.code, CloseCode::Normal);
            frame.reason.to_string()
        };
        assert_eq!(reason(false), "shell exited");
        assert_eq!(reason(true), "shell exited: 137");
    }

    type Sent = Vec<(u8, Vec<u8>)>;

    /// What comes of bytes that arrive in pieces: the frames, and how it ended.
    fn frames_of(bytes: &[u8], piece: usize) -> (Sent, Result<(), io::ErrorKind>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("runtime").block_on(async {
            let (mut near, mut far) = tokio::io::duplex(piece);
            let send = async {
                let _ = far.write_all(bytes).await;
                drop(far);
            };
            let take = async {
                let (mut frames, mut taken) = (Frames::default(), Vec::new());
                loop {
                    match frames.next(&mut near).await {
                        Ok(Some((kind, payload))) => taken.push((kind as u8, payload.to_vec())),
                        Ok(None) => return (taken, Ok(())),
                        Err(error) => {
                            drop(near);
                            return (taken, Err(error.kind()));
                        }
                    }
                    assert!(frames.buffer.len() <= FRAME_PAYLOAD_MAX + 2 * READ_BYTES);
                }
            };
            tokio::join!(send, take).1
        })
    }

    proptest! {
        #[test]
        fn an_agents_frames_come_whole_however_they_are_cut(
            sent in prop::collection::vec((1u8..=5, prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            piece in 1usize..500,
            cut in any::<prop::sample::Index>(),
        ) {
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for (kind, payload) in &sent {
                let kind = FrameKind::from_byte(*kind).expect("a kind");
                put_frame(&mut bytes, kind, payload);
                ends.push(bytes.len());
            }
            let (taken, ended) = frames_of(&bytes, piece);
            prop_assert_eq!(&taken, &sent);
            prop_assert_eq!(ended, Ok(()));
            // An end amid a frame is no end.
            let cut = cut.index(bytes.len() + 1);
            let (taken, ended) = frames_of(&bytes[..cut], piece);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            prop_assert_eq!(&taken, &sent[..whole]);
            prop_assert_eq!(ended.is_ok(), ends.contains(&cut));
        }

        #[test]
        fn a_hostile_agent_is_refused_at_its_first_bad_header(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            piece in 1usize..100,
        ) {
            let (taken, _) = frames_of(&bytes, piece);
            let carried: usize = taken.iter().map(|(_, payload)| payload.len() + 5).sum();
            prop_assert!(carried <= bytes.len());
        }
    }
}
