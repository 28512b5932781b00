//! The shell of a fake machine: it shows what is typed, runs each line, and knows `size` besides the few
//! words that the fake's commands know.

use super::app;
use super::guest::Guest;
use dormouse_core::guest::{
    Exit, FRAME_PAYLOAD_MAX, FrameKind, ShellSpec, TerminalSize, put_frame, whole_frame,
};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const PROMPT: &str = "λ $ ";

/// Serves one shell until it ends, the host hangs up or the machine is gone.
pub(super) async fn serve(
    guest: &Guest,
    spec: &ShellSpec,
    mut host: impl AsyncRead + AsyncWrite + Unpin,
) {
    let session = async {
        let code = match &spec.command {
            Some(command) => {
                execute(guest, command, spec.terminal.unwrap_or_default(), &mut host).await?
            }
            None => read_lines(guest, spec.terminal.unwrap_or_default(), &mut host).await?,
        };
        let exit = Exit {
            code,
            timed_out: false,
        };
        let exit = serde_json::to_vec(&exit)?;
        send(&mut host, FrameKind::Exit, &exit).await
    };
    tokio::select! {
        // How a shell ends is the host's affair.
        _ = session => {}
        _ = guest.exited() => {}
    }
}

/// Runs what is typed; the exit code that the last line asks for.
async fn read_lines(
    guest: &Guest,
    mut size: TerminalSize,
    host: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<i32> {
    let (mut buffer, mut typed) = (Vec::new(), Vec::new());
    send(host, FrameKind::Stdout, PROMPT.as_bytes()).await?;
    loop {
        let found = whole_frame(&buffer).map_err(io::Error::other)?;
        let Some((kind, payload)) = found else {
            if host.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            continue;
        };
        guest.running().await;
        let frame: Vec<u8> = buffer.drain(..payload.end).skip(payload.start).collect();
        if kind == FrameKind::Resize {
            size = serde_json::from_slice(&frame)?;
            continue;
        }
        send(host, FrameKind::Stdout, &frame).await?;
        typed.extend(frame);
        while let Some(end) = typed.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = typed.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let code = execute(guest, line.trim(), size, host).await?;
            if line.trim_start().starts_with("exit") {
                return Ok(code);
            }
            send(host, FrameKind::Stdout, PROMPT.as_bytes()).await?;
        }
    }
}

async fn execute(
    guest: &Guest,
    line: &str,
    size: TerminalSize,
    host: &mut (impl AsyncWrite + Unpin),
) -> io::Result<i32> {
    let (printed, code) = match line {
        "size" => (format!("{} {}\n", size.rows, size.cols), 0),
        line => app::run(guest, &[line.to_owned()]).await,
    };
    send(host, FrameKind::Stdout, printed.as_bytes()).await?;
    Ok(code)
}

async fn send(
    host: &mut (impl AsyncWrite + Unpin),
    kind: FrameKind,
    bytes: &[u8],
) -> io::Result<()> {
    let mut frames = Vec::new();
    for payload in bytes.chunks(FRAME_PAYLOAD_MAX) {
        put_frame(&mut frames, kind, payload);
    }
    host.write_all(&frames).await
}
