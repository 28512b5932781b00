//! What an app prints while its build waits for it, carried into the build log.

use super::{BuildError, BuildLog};
use crate::guest::Guest;
use dormouse_core::guest::AppState;
use std::time::Duration;
use tokio::time::sleep;

/// Pause between two looks at the app.
const POLL: Duration = Duration::from_millis(250);

/// The app of one machine, its output read up to some byte.
pub(super) struct AppLog<'a> {
    guest: Guest<'a>,
    log: &'a BuildLog,
    next: u64,
}

impl<'a> AppLog<'a> {
    /// Begins with the app's output from byte `next` on.
    pub(super) fn new(guest: Guest<'a>, log: &'a BuildLog, next: u64) -> Self {
        Self { guest, log, next }
    }

    /// Waits for `work` while the app's output goes into the log; in vain when the app ends before. Answers
    /// with the byte of the output to begin with next.
    pub(super) async fn follow(
        mut self,
        work: impl Future<Output = Result<(), BuildError>>,
    ) -> Result<u64, BuildError> {
        let done = tokio::select! {
            done = work => done,
            died = self.until_exit() => Err(died),
        };
        self.fetch().await?;
        done.map(|()| self.next)
    }

    async fn fetch(&mut self) -> Result<(), BuildError> {
        let (bytes, next) = self.guest.app_logs(self.next).await?;
        self.next = next;
        self.log.app_output(&bytes);
        Ok(())
    }

    /// Comes back only when the app has ended, or the machine with it.
    async fn until_exit(&mut self) -> BuildError {
        loop {
            let status = match self.guest.app().await {
                Ok(status) => status,
                Err(error) => return error.into(),
            };
            if status.state == AppState::Exited {
                return BuildError::AppExited {
                    code: status.exit.map_or(-1, |exit| exit.code),
                };
            }
            if let Err(error) = self.fetch().await {
                return error;
            }
            sleep(POLL).await;
        }
    }
}
