//! One shell, from its first message to its end.

use super::connection::WebSocket;
use super::escape::{Escape, Typed};
use super::terminal::Terminal;
use anyhow::{Context, Result, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::io::{self, Read};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal as on_signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

const READ_BYTES: usize = 16 * 1024;
/// Reads of standard input that may wait for the network.
const READS_QUEUED: usize = 4;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const STDERR: &str = r#"{"type":"stderr"}"#;
const EOF: &str = r#"{"type":"eof"}"#;
/// What ends us, and must not leave the terminal raw.
const DEADLY: [SignalKind; 4] = [
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::terminate(),
];

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The shell ended, with this exit code.
    Exited(i32),
    /// The MicroVM went away.
    Slept,
    /// The person left.
    Disconnected,
    /// A signal wants us to end.
    Signal(u8),
}

/// Standard input, which several sessions may read from in turn.
#[derive(Debug)]
pub(super) struct Input {
    reads: mpsc::Receiver<Vec<u8>>,
    escape: Option<Escape>,
}

/// A session that has just begun.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) websocket: WebSocket,
    pub(super) input: &'a mut Input,
    pub(super) terminal: Option<&'a Terminal>,
}

impl Input {
    /// Begins to read. A terminal's input may hold an escape.
    pub(super) fn start(is_terminal: bool) -> Result<Self> {
        let (sender, reads) = mpsc::channel(READS_QUEUED);
        // A thread of its own: the runtime waits at its end for its own blocking reads.
        let read = move || {
            let mut stdin = std::io::stdin().lock();
            let mut bytes = vec![0; READ_BYTES];
            while let Ok(len @ 1..) = stdin.read(&mut bytes) {
                if sender.blocking_send(bytes[..len].to_vec()).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("stdin".to_owned());
        thread.spawn(read).context("read standard input")?;
        Ok(Self {
            reads,
            escape: is_terminal.then(Escape::new),
        })
    }

    /// What was read next; none at the end.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        self.reads.recv().await
    }
}

impl Session<'_> {
    /// Joins standard streams and shell until either ends.
    pub(super) async fn run(self) -> Result<End> {
        let (mut to_shell, mut from_shell) = self.websocket.split();
        let end = tokio::select! {
            end = show(&mut from_shell) => end?,
            end = send(&mut to_shell, self.input, self.terminal) => end?,
            number = signal() => End::Signal(number?),
        };
        if matches!(end, End::Disconnected | End::Signal(_)) {
            let _ = timeout(CLOSE_TIMEOUT, to_shell.close()).await;
        }
        Ok(end)
    }
}

/// Shows what the shell prints, up to its end.
async fn show(shell: &mut SplitStream<WebSocket>) -> Result<End> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let mut is_error = false;
    while let Some(message) = shell.next().await {
        match message.context("the connection broke")? {
            Message::Binary(bytes) => {
                let printed = match std::mem::take(&mut is_error) {
                    true => print(&mut err, &bytes).await,
                    false => print(&mut out, &bytes).await,
                };
                match printed {
                    // Nobody reads us any more, as in `dormouse shell ID -- yes | head`.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        return Ok(End::Signal(number(SignalKind::pipe())));
                    }
                    printed => printed.context("print")?,
                }
            }
            Message::Text(text) => is_error = text.as_str() == STDERR,
            Message::Close(frame) => return end(frame),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
    bail!("the connection broke")
}

async fn print(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes).await?;
    out.flush().await
}

/// What a close means.
fn end(frame: Option<CloseFrame>) -> Result<End> {
    let Some(frame) = frame else {
        bail!("the connection was closed");
    };
    let reason = frame.reason.as_str();
    match u16::from(frame.code) {
        1000 => {
            let code = reason.rsplit(' ').next().and_then(|code| code.parse().ok());
            Ok(End::Exited(code.unwrap_or_default()))
        }
        1012 => Ok(End::Slept),
        code => bail!("the connection was closed: {reason} ({code})"),
    }
}

/// Sends what is typed, and the terminal's size whenever it changes.
async fn send(
    shell: &mut SplitSink<WebSocket, Message>,
    input: &mut Input,
    terminal: Option<&Terminal>,
) -> Result<End> {
    let mut resized = on_signal(SignalKind::window_change()).context("watch the terminal")?;
    let mut has_ended = false;
    // It may have changed before it was watched.
    if let Some(terminal) = terminal {
        shell.send(resize(terminal)).await?;
    }
    loop {
        let message = tokio::select! {
            _ = resized.recv() => match terminal {
                Some(terminal) => resize(terminal),
                None => continue,
            },
            read = input.reads.recv(), if !has_ended => match (read, &mut input.escape) {
                (Some(bytes), Some(escape)) => match escape.take(&bytes) {
                    Typed::Bytes(bytes) => Message::binary(bytes),
                    Typed::Disconnect => return Ok(End::Disconnected),
                },
                (Some(bytes), None) => Message::binary(bytes),
                // The terminal is gone, and we with it.
                (None, Some(_)) => return Ok(End::Disconnected),
                (None, None) => {
                    has_ended = true;
                    Message::text(EOF)
                }
            },
        };
        shell.send(message).await.context("the connection broke")?;
    }
}

fn resize(terminal: &Terminal) -> Message {
    let (cols, rows) = terminal.size();
    Message::text(format!(
        r#"{{"type":"resize","cols":{cols},"rows":{rows}}}"#
    ))
}

/// Waits for a signal that ends us: its number.
pub(super) async fn signal() -> Result<u8> {
    let [mut hangup, mut interrupt, mut quit, mut terminate] = DEADLY.map(on_signal);
    let watched = (&mut hangup, &mut interrupt, &mut quit, &mut terminate);
    let (Ok(hangup), Ok(interrupt), Ok(quit), Ok(terminate)) = watched else {
        bail!("cannot watch signals");
    };
    let kind = tokio::select! {
        _ = hangup.recv() => SignalKind::hangup(),
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = quit.recv() => SignalKind::quit(),
        _ = terminate.recv() => SignalKind::terminate(),
    };
    Ok(number(kind))
}

fn number(kind: SignalKind) -> u8 {
    u8::try_from(kind.as_raw_value()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(code: u16, reason: &str) -> Option<CloseFrame> {
        Some(CloseFrame {
            code: code.into(),
            reason: reason.into(),
        })
    }

    #[test]
    fn the_close_tells_how_the_shell_ended() {
        let exited = end(close(1000, "shell exited: 137"));
        assert!(matches!(exited, Ok(End::Exited(137))), "{exited:?}");
        let exited = end(close(1000, "shell exited"));
        assert!(matches!(exited, Ok(End::Exited(0))), "{exited:?}");
        let slept = end(close(1012, "the MicroVM went away"));
        assert!(matches!(slept, Ok(End::Slept)), "{slept:?}");
        let broken = end(close(1011, "the shell broke")).unwrap_err().to_string();
        assert!(broken.contains("the shell broke"), "{broken}");
        assert!(end(None).is_err());
    }
}
