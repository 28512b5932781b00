//! Commands that the host runs beside the app, each in a control group of its own. Their output goes to
//! the host as frames while they run; when the host hangs up, they are killed.

use crate::cgroup::Cgroup;
use crate::console;
use crate::isolation::Leftovers;
use crate::process::{Plan, StartError, Started};
use crate::reaper::Reaper;
use bytes::{Bytes, BytesMut};
use dormouse_core::guest::{Exit, FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, FrameKind, put_frame};
use hyper::body::{Body, Frame};
use rustix::pipe::{PipeFlags, pipe_with};
use std::convert::Infallible;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Frames that wait for the host; a full queue holds the command up.
const FRAMES_QUEUED: usize = 8;
const READ_BYTES: usize = 32 * 1024;
const _: () = assert!(READ_BYTES <= FRAME_PAYLOAD_MAX);
/// Output that is still in the pipes when a command ends is read for at most this long.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer's body: frames, the last of which is the exit.
#[derive(Debug)]
pub(crate) struct Frames(mpsc::Receiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(cx);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Starts a command in the group `name` below `guest`. Dropping the frames kills it.
pub(crate) fn start(
    plan: Plan,
    reaper: &Reaper,
    guest: Arc<Cgroup>,
    name: String,
    leftovers: Leftovers,
) -> Result<Frames, StartError> {
    let cgroup = guest
        .child(&name)
        .map_err(StartError::host("make a control group"))?;
    let pipes = || -> std::io::Result<_> {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((pipe::Receiver::from_owned_fd(output)?, input))
    };
    let make = StartError::host("make a pipe for the output");
    let (stdout, stdout_end) = pipes().map_err(make)?;
    let make = StartError::host("make a pipe for the errors");
    let (stderr, stderr_end) = pipes().map_err(make)?;
    let started = match plan.start(reaper, &cgroup, Stdio::null(), [stdout_end, stderr_end]) {
        Ok(started) => started,
        Err(error) => {
            // The failed child may not be out of it yet; an empty group that stays costs little.
            let _ = guest.remove_child(&name);
            return Err(error);
        }
    };
    let (frames, receiver) = mpsc::channel(FRAMES_QUEUED);
    let readers = [
        tokio::spawn(forward(stdout, FrameKind::Stdout, frames.clone())),
        tokio::spawn(forward(stderr, FrameKind::Stderr, frames.clone())),
    ];
    tokio::spawn(async move {
        supervise(started, &cgroup, readers, leftovers, frames).await;
        guest.remove_child_once_empty(&cgroup, &name).await;
    });
    Ok(Frames(receiver))
}

async fn supervise(
    started: Started,
    cgroup: &Cgroup,
    readers: [JoinHandle<()>; 2],
    leftovers: Leftovers,
    frames: mpsc::Sender<Bytes>,
) {
    let exit = started.finish(cgroup, frames.closed()).await;
    for reader in readers {
        let abort = reader.abort_handle();
        if tokio::time::timeout(LAST_OUTPUT_TIMEOUT, reader)
            .await
            .is_err()
        {
            abort.abort();
        }
    }
    // The host cuts the disk off once it knows of the end.
    let cleared = tokio::task::spawn_blocking(move || leftovers.clear()).await;
    if let Ok(Err(error)) = cleared {
        console::say(format_args!("cannot clear away after a command: {error}"));
    }
    // The host may have hung up: nobody to tell.
    let _ = frames.send(exit_frame(exit)).await;
}

async fn forward(mut output: pipe::Receiver, kind: FrameKind, frames: mpsc::Sender<Bytes>) {
    let mut bytes = vec![0; READ_BYTES];
    while let Ok(len @ 1..) = output.read(&mut bytes).await {
        if frames.send(frame(kind, &bytes[..len])).await.is_err() {
            return;
        }
    }
}

fn exit_frame(exit: Exit) -> Bytes {
    let json = serde_json::to_vec(&exit).expect("an exit has only plain fields");
    frame(FrameKind::Exit, &json)
}

fn frame(kind: FrameKind, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(FRAME_HEADER_LEN + payload.len());
    put_frame(&mut bytes, kind, payload);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_frame_tells_the_exit() {
        let exit = Exit {
            code: 137,
            timed_out: true,
        };
        let bytes = exit_frame(exit);
        assert_eq!(bytes[0], 3);
        let told: Exit = serde_json::from_slice(&bytes[FRAME_HEADER_LEN..]).expect("JSON");
        assert_eq!(told, exit);
    }
}
