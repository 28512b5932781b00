//! Request bodies that stand still.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client's connection or its HTTP broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The client stopped sending.
    #[error("the request body stands still")]
    Stalled,
}

/// Notices that a body stands still. The timer is set once in a while, not for each piece.
#[derive(Debug)]
pub struct Stall {
    limit: Duration,
    wanted_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// For a body that has to go on within `limit` while it is wanted.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            wanted_since: None,
            timer: None,
        }
    }

    /// The same for another body.
    pub(crate) fn anew(&self) -> Self {
        Self::new(self.limit)
    }

    /// A piece has come.
    pub fn moves(&mut self) {
        self.wanted_since = None;
    }

    /// Asked when a piece is wanted and not there: ready once none has come for the limit.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let deadline = *self.wanted_since.get_or_insert_with(Instant::now) + self.limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep(self.limit)));
        while Instant::now() < deadline {
            ready!(timer.as_mut().poll(context));
            // It was set for an earlier wait.
            timer.as_mut().reset(deadline);
        }
        Poll::Ready(())
    }
}
