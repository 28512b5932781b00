//! The MicroVMs of this host: finds the driver of each and lets requests in.

use crate::driver::{Command, CommandError, Driver, Means};
use crate::gate::{Gate, GatedStream, Lease, Phase};
use crate::guest::{Guest, GuestError};
use crate::vmm::Stream;
use dormouse_core::guest::ShellSpec;
use dormouse_core::microvm::{Denied, Event, Record, State};
use dormouse_core::{EndpointId, MicrovmId, limits};
use dormouse_store::{Query, StoreError, Versioned};
use http::StatusCode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// The MicroVMs of this host.
#[derive(Debug)]
pub struct Node {
    means: Arc<Means>,
    vms: Mutex<Vms>,
    drivers: TaskTracker,
}

#[derive(Debug, Default)]
struct Vms {
    by_id: HashMap<MicrovmId, Arc<Vm>>,
    by_endpoint: HashMap<EndpointId, Arc<Vm>>,
}

/// What others hold of a MicroVM: its gate, and the way to its driver.
#[derive(Debug)]
struct Vm {
    id: MicrovmId,
    memory_mib: u32,
    gate: Arc<Gate>,
    commands: mpsc::Sender<Command>,
    waiters: Semaphore,
}

/// What there is to know of a MicroVM before a request is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// Its name in the API.
    pub id: MicrovmId,
    /// Baseline memory in MiB.
    pub memory_mib: u32,
    /// Whether a request would be let in now, without a wait.
    pub is_open: bool,
}

/// Why a request could not be let in.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The MicroVM is over, or never was.
    #[error("microvm has ended")]
    Ended,
    /// It sleeps, and traffic may not wake it.
    #[error("microvm sleeps and does not resume automatically")]
    Asleep,
    /// It could not be woken.
    #[error("microvm did not wake")]
    WakeFailed,
    /// Nothing listens on the port.
    #[error("nothing listens on the port")]
    NotListening,
    /// It went to sleep before the stream stood: the app has seen nothing, and one may enter again.
    #[error("microvm's machine is gone")]
    Gone,
    /// It runs, and yet its agent does not answer.
    #[error("microvm does not answer")]
    Unreachable(#[source] GuestError),
    /// Too many requests wait for it already, or too many shells are open.
    #[error("too many requests wait for the microvm")]
    Overloaded,
    /// No shell can start in it.
    #[error("no shell starts in the microvm")]
    NoShell(#[source] GuestError),
    /// Its image was built before there were shells.
    #[error("the agent in the microvm's image is older than shells")]
    AgentTooOld,
}

impl Node {
    /// Takes charge of every MicroVM in the store that is not over.
    pub async fn start(means: Arc<Means>) -> Result<Arc<Self>, StoreError> {
        let node = Arc::new(Self {
            means,
            vms: Mutex::default(),
            drivers: TaskTracker::new(),
        });
        let mut query = Query::default();
        loop {
            let page = node.means.store.list::<Record>(&query).await?;
            let Some(last) = page.last() else {
                return Ok(node);
            };
            query.after = Some(last.seq);
            for row in page {
                if row.value.state != State::Terminated {
                    node.take(row);
                }
            }
        }
    }

    /// Starts the driver of a stored MicroVM, which does at once what its state demands.
    pub fn take(self: &Arc<Self>, row: Versioned<Record>) {
        let (commands, inbox) = mpsc::channel(limits::DRIVER_QUEUE);
        let gate = Arc::new(Gate::new(Phase::Hold));
        let id = row.value.id.clone();
        let endpoint = row.value.endpoint;
        let vm = Arc::new(Vm {
            id: id.clone(),
            memory_mib: row.value.memory_mib,
            gate: Arc::clone(&gate),
            commands,
            waiters: Semaphore::new(limits::WAKE_WAITERS_MAX),
        });
        {
            let mut vms = self.vms();
            vms.by_id.insert(id.clone(), Arc::clone(&vm));
            vms.by_endpoint.insert(endpoint, vm);
        }
        let driver = Driver::new(Arc::clone(&self.means), gate, row, inbox);
        let node = Arc::clone(self);
        self.drivers.spawn(async move {
            driver.run().await;
            let mut vms = node.vms();
            vms.by_id.remove(&id);
            vms.by_endpoint.remove(&endpoint);
        });
    }

    /// Whether a MicroVM runs, sleeps, or is on its way there; one that is being terminated does not. Once
    /// the daemon stops nobody knows, and each counts as live.
    #[must_use]
    pub fn is_live(&self, id: &MicrovmId) -> bool {
        let vm = self.vms().by_id.get(id).map(Arc::clone);
        self.means.stop.is_cancelled() || vm.is_some_and(|vm| !vm.gate.is_over())
    }

    /// Puts a wish to a MicroVM; answers once it is persisted. One that is over denies all but a terminate.
    pub async fn command(&self, id: &MicrovmId, event: Event) -> Result<(), CommandError> {
        let vm = self.vms().by_id.get(id).map(Arc::clone);
        let over = match event {
            Event::TerminateRequested => Ok(()),
            _ => Err(CommandError::Denied(Denied::Terminated)),
        };
        let Some(vm) = vm else { return over };
        match vm.put(event).await {
            // The driver ended between the look-up and the wish.
            Err(CommandError::Stopping) if !self.means.stop.is_cancelled() => over,
            answer => answer,
        }
    }

    /// What there is to know of the MicroVM behind `endpoint` now; none when it is over.
    #[must_use]
    pub fn glance(&self, endpoint: &EndpointId) -> Option<Glance> {
        let vm = self.vms().by_endpoint.get(endpoint).map(Arc::clone)?;
        Some(Glance {
            id: vm.id.clone(),
            memory_mib: vm.memory_mib,
            is_open: vm.gate.is_open(),
        })
    }

    /// Lets a request in to the MicroVM behind `endpoint`, waking it if it may be woken.
    pub async fn enter(&self, endpoint: &EndpointId) -> Result<Lease, OpenError> {
        let vm = self.vms().by_endpoint.get(endpoint).map(Arc::clone);
        let vm = vm.ok_or(OpenError::Ended)?;
        match vm.gate.enter() {
            Ok(lease) => Ok(lease),
            Err(_) => vm.wait_for_entry().await,
        }
    }

    /// Lets transitions under way end, then ends the drivers. MicroVMs run on.
    pub async fn stop(&self) {
        self.means.stop.cancel();
        self.drivers.close();
        if timeout(limits::STOP_TIMEOUT, self.drivers.wait())
            .await
            .is_err()
        {
            tracing::warn!("transitions under way did not end; the next start takes them up again");
        }
    }

    fn vms(&self) -> std::sync::MutexGuard<'_, Vms> {
        // The maps are whole after each statement, so a panic elsewhere cannot have torn them.
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_tunnel(error: GuestError) -> OpenError {
    match error.refusal() {
        Some(StatusCode::BAD_GATEWAY) => OpenError::NotListening,
        _ => OpenError::Unreachable(error),
    }
}

fn no_shell(error: GuestError) -> OpenError {
    match error.refusal() {
        Some(StatusCode::NOT_FOUND) => OpenError::AgentTooOld,
        Some(StatusCode::TOO_MANY_REQUESTS) => OpenError::Overloaded,
        Some(StatusCode::BAD_REQUEST) => OpenError::NoShell(error),
        _ => OpenError::Unreachable(error),
    }
}

impl Vm {
    async fn put(&self, event: Event) -> Result<(), CommandError> {
        let (reply, answer) = oneshot::channel();
        let command = Command { event, reply };
        self.commands
            .send(command)
            .await
            .map_err(|_| CommandError::Stopping)?;
        answer.await.unwrap_or(Err(CommandError::Stopping))
    }

    /// Waits until the gate opens, waking the MicroVM once if it sleeps.
    async fn wait_for_entry(&self) -> Result<Lease, OpenError> {
        let _place = self
            .waiters
            .try_acquire()
            .map_err(|_| OpenError::Overloaded)?;
        let entry = async {
            let mut changes = self.gate.changes();
            let mut woken = false;
            loop {
                changes.forget();
                match self.gate.enter() {
                    Ok(lease) => return Ok(lease),
                    Err(Phase::Ended) => return Err(OpenError::Ended),
                    Err(Phase::Asleep {
                        auto_resume: false, ..
                    }) => return Err(OpenError::Asleep),
                    Err(Phase::Asleep {
                        wake_failed: true, ..
                    }) if woken => {
                        return Err(OpenError::WakeFailed);
                    }
                    Err(Phase::Asleep { .. }) => match self.put(Event::Wake).await {
                        Ok(()) => {
                            woken = true;
                            continue;
                        }
                        // The state has just changed: the next look tells.
                        Err(CommandError::Denied(_)) => continue,
                        Err(_) => return Err(OpenError::WakeFailed),
                    },
                    Err(Phase::Hold | Phase::Open(_)) => {}
                }
                if !changes.next().await {
                    return Err(OpenError::Ended);
                }
            }
        };
        timeout(limits::WAKE_TIMEOUT, entry)
            .await
            .unwrap_or(Err(OpenError::WakeFailed))
    }
}

impl Lease {
    /// Opens a stream to `port` of the MicroVM.
    pub async fn connect(&self, port: u16) -> Result<GatedStream<Box<dyn Stream>>, OpenError> {
        let guest = Guest::new(self.machine());
        self.open(guest.tunnel(port), no_tunnel).await
    }

    /// Opens a shell in the MicroVM. The stream carries the guest protocol's frames.
    pub async fn shell(&self, spec: &ShellSpec) -> Result<GatedStream<Box<dyn Stream>>, OpenError> {
        let guest = Guest::new(self.machine());
        self.open(guest.shell(spec), no_shell).await
    }

    async fn open(
        &self,
        opening: impl Future<Output = Result<Box<dyn Stream>, GuestError>>,
        refused: fn(GuestError) -> OpenError,
    ) -> Result<GatedStream<Box<dyn Stream>>, OpenError> {
        tokio::select! {
            biased;
            () = self.broken() => Err(OpenError::Gone),
            stream = opening => Ok(self.watch(stream.map_err(refused)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_shell_says_why() {
        let refused = |status| {
            no_shell(GuestError::Refused {
                status,
                message: String::new(),
            })
        };
        assert!(matches!(
            refused(StatusCode::NOT_FOUND),
            OpenError::AgentTooOld
        ));
        assert!(matches!(
            refused(StatusCode::TOO_MANY_REQUESTS),
            OpenError::Overloaded
        ));
        assert!(matches!(
            refused(StatusCode::BAD_REQUEST),
            OpenError::NoShell(_)
        ));
        assert!(matches!(
            refused(StatusCode::CONFLICT),
            OpenError::Unreachable(_)
        ));
        let silent = no_shell(GuestError::TimedOut("shell"));
        assert!(matches!(silent, OpenError::Unreachable(_)));
    }
}
