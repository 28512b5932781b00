//! What joins a shell and the agent: a terminal, or three pipes.

use crate::terminal::Terminal;
use dormouse_core::guest::{FRAME_PAYLOAD_MAX, FrameKind, TerminalSize};
use rustix::pipe::{PipeFlags, pipe_with};
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

const READ_BYTES: usize = 16 * 1024;
const _: () = assert!(READ_BYTES <= FRAME_PAYLOAD_MAX);

/// Where what is typed goes.
#[derive(Debug)]
pub(super) enum Input {
    Terminal(Arc<Terminal>),
    /// None once it has ended.
    Pipe(Option<pipe::Sender>),
}

/// Where what is printed comes from.
#[derive(Debug)]
pub(super) struct Output {
    source: Source,
    bytes: Box<[u8; READ_BYTES]>,
}

#[derive(Debug)]
enum Source {
    Terminal(Arc<Terminal>),
    /// Standard output and standard error, each none once it has ended.
    Pipes([Option<pipe::Receiver>; 2]),
}

/// The shell's ends of its pipes.
pub(super) struct PipeEnds {
    pub(super) stdin: Stdio,
    /// Standard output and standard error.
    pub(super) outputs: [OwnedFd; 2],
}

/// Both directions of a terminal.
pub(super) fn of_terminal(terminal: Terminal) -> (Input, Output) {
    let terminal = Arc::new(terminal);
    let output = Output::of(Source::Terminal(Arc::clone(&terminal)));
    (Input::Terminal(terminal), output)
}

/// Three new pipes.
pub(super) fn pipes() -> io::Result<(Input, Output, PipeEnds)> {
    let (stdin, typed) = pipe_with(PipeFlags::CLOEXEC)?;
    let (printed, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (complained, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let input = Input::Pipe(Some(pipe::Sender::from_owned_fd(typed)?));
    let outputs = [printed, complained].map(pipe::Receiver::from_owned_fd);
    let [printed, complained] = outputs;
    let output = Output::of(Source::Pipes([Some(printed?), Some(complained?)]));
    let ends = PipeEnds {
        stdin: stdin.into(),
        outputs: [stdout, stderr],
    };
    Ok((input, output, ends))
}

impl Input {
    /// Waits while nobody takes the bytes.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Terminal(terminal) => terminal.write_all(bytes).await,
            Self::Pipe(Some(pipe)) => pipe.write_all(bytes).await,
            Self::Pipe(None) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends the input; a terminal's has no end.
    pub(super) fn end(&mut self) {
        if let Self::Pipe(pipe) = self {
            *pipe = None;
        }
    }

    /// Sets the size of a terminal. One that has gone has none.
    pub(super) fn resize(&self, size: TerminalSize) {
        if let Self::Terminal(terminal) = self {
            let _ = terminal.resize(size);
        }
    }
}

impl Output {
    fn of(source: Source) -> Self {
        Self {
            source,
            bytes: Box::new([0; READ_BYTES]),
        }
    }

    /// What is printed next, and where; none once no program can print any more.
    pub(super) async fn read(&mut self) -> io::Result<Option<(FrameKind, &[u8])>> {
        let (kind, len) = match &mut self.source {
            Source::Terminal(terminal) => {
                let len = terminal.read(&mut *self.bytes).await?;
                (FrameKind::Stdout, len)
            }
            Source::Pipes(pipes) => read_either(pipes, &mut *self.bytes).await?,
        };
        Ok((len > 0).then_some((kind, &self.bytes[..len])))
    }
}

/// Reads from whichever pipe has something; 0 bytes once both have ended.
async fn read_either(
    [stdout, stderr]: &mut [Option<pipe::Receiver>; 2],
    bytes: &mut [u8],
) -> io::Result<(FrameKind, usize)> {
    loop {
        let kind = tokio::select! {
            ready = readable(stdout), if stdout.is_some() => ready.map(|()| FrameKind::Stdout),
            ready = readable(stderr), if stderr.is_some() => ready.map(|()| FrameKind::Stderr),
            else => return Ok((FrameKind::Stdout, 0)),
        }?;
        let pipe = match kind {
            FrameKind::Stdout => &mut *stdout,
            _ => &mut *stderr,
        };
        if let Some(open) = pipe {
            match open.try_read(bytes) {
                Ok(0) => *pipe = None,
                Ok(len) => return Ok((kind, len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

async fn readable(pipe: &Option<pipe::Receiver>) -> io::Result<()> {
    match pipe {
        Some(pipe) => pipe.readable().await,
        None => std::future::pending().await,
    }
}
