//! Connections to apps that wait for the next request.
//!
//! A connection is lent to one request at a time, HTTP/2 as well: no request waits behind another's stream.
//! It is kept for a moment only ([`Config::upstream_keep`]). That is all that busy clients need, and it harms
//! nobody: an app that serves one connection at a time has it back soon, and an app that closes idle
//! connections does so later than we do, so that no request meets one that is being closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_core::{EndpointId, limits};
use tokio::time::{Instant, sleep};

use crate::Config;
use crate::tasks::Tasks;
use crate::upstream::{Connection, Protocol};

/// What a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) endpoint: EndpointId,
    /// The run of the machine: a connection into one that is gone leads nowhere.
    pub(crate) run: u64,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

/// The idle connections of one listener; clones share them.
#[derive(Clone)]
pub(crate) struct Pool {
    idle: Arc<Mutex<Idle>>,
    keep: Duration,
    /// How long an app that has answered may take nothing of the rest of a request.
    patience: Duration,
    tasks: Tasks,
}

#[derive(Default)]
struct Idle {
    /// The connection that came last stands last.
    by_target: HashMap<Target, Vec<(Instant, Connection)>>,
    count: usize,
    /// Whether a task looks after them.
    swept: bool,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(config: &Config, tasks: Tasks) -> Self {
        Self {
            idle: Arc::default(),
            keep: config.upstream_keep,
            patience: config.unread_body_timeout,
            tasks,
        }
    }

    /// The idle connection that was used last.
    pub(crate) fn take(&self, target: &Target) -> Option<Connection> {
        let mut idle = self.idle();
        let waiting = idle.by_target.get_mut(target)?;
        let mut taken = 0;
        let connection = loop {
            let Some((since, mut connection)) = waiting.pop() else {
                break None;
            };
            taken += 1;
            if connection.is_ready() && since.elapsed() < self.keep {
                break Some(connection);
            }
        };
        idle.count -= taken;
        connection
    }

    /// Takes back a connection whose exchange has ended.
    pub(crate) fn give_back(&self, target: Target, mut connection: Connection) {
        if connection.is_ready() {
            return self.put(target, connection);
        }
        // The app's answer may end before it has taken the whole request. It may go on to take the rest, or never.
        let pool = self.clone();
        self.tasks.spawn(async move {
            if connection.ready(pool.patience).await {
                pool.put(target, connection);
            }
        });
    }

    /// Closes what is idle; nothing is kept from now on.
    pub(crate) fn close(&self) {
        let mut idle = self.idle();
        idle.closed = true;
        idle.count = 0;
        idle.by_target.clear();
    }

    fn put(&self, target: Target, connection: Connection) {
        let mut idle = self.idle();
        if self.keep.is_zero() || idle.closed || idle.count >= limits::UPSTREAM_IDLE_MAX {
            return;
        }
        idle.count += 1;
        let waiting = idle.by_target.entry(target).or_default();
        waiting.push((Instant::now(), connection));
        if !std::mem::replace(&mut idle.swept, true) {
            self.tasks.spawn(sweep(self.clone()));
        }
    }

    /// Closes what has waited too long; false when nothing is left to look after.
    fn expire(&self) -> bool {
        let mut idle = self.idle();
        let keep = self.keep;
        idle.by_target.retain(|_, waiting| {
            waiting
                .retain_mut(|(since, connection)| since.elapsed() < keep && connection.is_ready());
            !waiting.is_empty()
        });
        idle.count = idle.by_target.values().map(Vec::len).sum();
        idle.swept = idle.count > 0;
        idle.swept
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // Whole after each statement, so a panic elsewhere cannot have torn it.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sweep(pool: Pool) {
    loop {
        sleep(pool.keep / 2).await;
        if !pool.expire() {
            return;
        }
    }
}
