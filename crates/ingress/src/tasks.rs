//! The tasks of one listener: counted, so that a graceful stop can wait for them, and ended
//! together when the wait is over.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns the tasks of one listener; clones share them. Each request makes some, and to clone the token alone takes a
/// lock.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    tracker: TaskTracker,
    kill: CancellationToken,
}

impl Tasks {
    /// Runs `task` until it ends or [`Tasks::finish`] ends it.
    pub(crate) fn spawn<F>(&self, task: F) -> AbortHandle
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let kill = self.0.kill.clone();
        // A future that wraps another keeps it two or three times, and a connection's is large.
        let task = Box::pin(task);
        let task = self.0.tracker.spawn(async move {
            kill.run_until_cancelled_owned(task).await;
        });
        task.abort_handle()
    }

    /// A part of these tasks, which can be ended by itself.
    pub(crate) fn part(&self) -> Self {
        let Shared { tracker, kill } = &*self.0;
        Self(Arc::new(Shared {
            tracker: tracker.clone(),
            kill: kill.child_token(),
        }))
    }

    /// Ends those that run.
    pub(crate) fn end(&self) {
        self.0.kill.cancel();
    }

    /// Waits for the tasks to end by themselves, then ends those that still run.
    pub(crate) async fn finish(self, patience: Duration) {
        let Shared { tracker, kill } = &*self.0;
        tracker.close();
        if tokio::time::timeout(patience, tracker.wait())
            .await
            .is_err()
        {
            tracing::info!(tasks = tracker.len(), "cutting off what is in flight");
            kill.cancel();
            tracker.wait().await;
        }
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
