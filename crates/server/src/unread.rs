//! Answers that wait for their clients: over HTTP/2 one that keeps its window shut takes nothing, and neither TCP nor HTTP
//! ends that.

use crate::s3;
use dormouse_core::limits;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::time::{Instant, sleep};

/// How often is looked within the limit.
const LOOKS: u32 = 10;

/// The answers of one connection that have not been taken whole.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    answers: AtomicUsize,
    /// Pieces that were taken, of all of them.
    taken: AtomicU64,
}

impl Unread {
    /// Counts an answer, and each piece of it that is taken.
    pub(crate) fn count(self: &Arc<Self>, body: s3::Body) -> Answer {
        self.answers.fetch_add(1, Ordering::Relaxed);
        Answer {
            body,
            unread: Arc::clone(self),
        }
    }

    /// Returns once there is an answer, and nothing of any was taken for too long.
    pub(crate) async fn stands_still(&self) {
        let mut last = (0, Instant::now());
        loop {
            sleep(limits::CLIENT_UNREAD_TIMEOUT / LOOKS).await;
            let taken = self.taken.load(Ordering::Relaxed);
            let (before, since) = last;
            if taken != before || self.answers.load(Ordering::Relaxed) == 0 {
                last = (taken, Instant::now());
            } else if since.elapsed() >= limits::CLIENT_UNREAD_TIMEOUT {
                return;
            }
        }
    }
}

/// The body of an answer that is counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Answer {
    body: s3::Body,
    unread: Arc<Unread>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.unread.taken.fetch_add(1, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.unread.answers.fetch_sub(1, Ordering::Relaxed);
    }
}
