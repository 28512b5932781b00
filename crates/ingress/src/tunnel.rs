//! A tunnel through which an answer still comes after the app has stopped listening.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Stream;

/// An app may answer early and hang up on the rest of a request. Writing then fails while the
/// answer waits to be read, and an HTTP client that sees the failure never reads it. So what the app
/// does not take is dropped here, and reading alone tells how the exchange ended.
pub(crate) struct Tunnel {
    stream: Box<dyn Stream>,
    /// Writing has failed.
    deaf: bool,
    taken: Taken,
}

/// How many bytes an app has taken of what it was sent; clones share the count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken(Arc<AtomicU64>);

impl Taken {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Tunnel {
    pub(crate) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            deaf: false,
            taken: Taken::default(),
        }
    }

    pub(crate) fn taken(&self) -> Taken {
        self.taken.clone()
    }

    /// Writes up to `length` bytes, and counts what the app takes of them.
    fn write(
        &mut self,
        length: usize,
        write: impl FnOnce(Pin<&mut dyn Stream>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = self.step(length, write);
        if let Poll::Ready(Ok(length)) = &written
            && !self.deaf
        {
            self.taken.0.fetch_add(*length as u64, Ordering::Relaxed);
        }
        written
    }

    /// Runs one step of writing; from the first failure on there is only success, namely `done`.
    fn step<T>(
        &mut self,
        done: T,
        step: impl FnOnce(Pin<&mut dyn Stream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.deaf {
            return Poll::Ready(Ok(done));
        }
        match step(Pin::new(&mut *self.stream)) {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "the app takes no more of a request");
                self.deaf = true;
                Poll::Ready(Ok(done))
            }
            other => other,
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(bytes.len(), |stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.write(length, |stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.step((), |stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.step((), |stream| stream.poll_shutdown(context))
    }
}
