//! Network slots: made ahead of need, lent to one machine each, deleted after it.
//!
//! Everything about a slot is in the kernel and can be found again by its name `dmOWNER-N`, so slots
//! outlive the daemon: the next one adopts those in use and deletes the rest.

use super::cgroup::Share;
use super::cidr::Cidr;
use super::dns::{Forwarder, Resolvers};
use super::netns::{self, NetnsThread};
use super::plumbing::{self, Plumbing};
use super::rules::Policy;
use dormouse_core::egress::Egress;
use dormouse_core::{guest, limits};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longest owner tag: with it and a number, names fit the kernel's 15 bytes.
const OWNER_LEN_MAX: usize = 6;
/// Where uplinks get their addresses unless configured otherwise: set aside for benchmarks (RFC 2544),
/// so no real network uses it.
const NETWORK: Cidr = Cidr::literal([198, 18, 0, 0], 15);

/// How slots are made.
#[derive(Debug, Clone)]
pub struct SlotConfig {
    /// Tells the slots of several daemons on one host apart: 1 to 6 of `a-z0-9`, the same at every
    /// start of one data directory.
    pub owner: String,
    /// How many unused slots to keep ready.
    pub warm: usize,
    /// Addresses of the links between host and slots, two for each slot. All daemons of one host should
    /// share it.
    pub network: Cidr,
    /// Ranges to block besides those that always are.
    pub block: Vec<Cidr>,
    /// Ranges to let through although they are blocked; never the host's own addresses or other slots.
    pub allow: Vec<Cidr>,
    /// Ranges that no slot reaches unless its own egress names them.
    pub reachable: Vec<Cidr>,
    /// Resolvers to forward DNS queries to; empty for those of `/etc/resolv.conf`.
    pub resolvers: Vec<SocketAddr>,
}

impl SlotConfig {
    /// The defaults for an owner tag.
    #[must_use]
    pub fn new(owner: impl Into<String>) -> Self {
        Self {
            owner: owner.into(),
            warm: limits::SLOTS_WARM,
            network: NETWORK,
            block: Vec::new(),
            allow: Vec::new(),
            reachable: Vec::new(),
            resolvers: Vec::new(),
        }
    }

    fn validate(&self) -> Result<(), SlotError> {
        let tag = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if !(1..=OWNER_LEN_MAX).contains(&self.owner.len()) || !self.owner.bytes().all(tag) {
            return Err(SlotError::Config(format!(
                "owner {:?} is not 1 to {OWNER_LEN_MAX} of a-z0-9",
                self.owner
            )));
        }
        if self.network.addresses() < 2 {
            return Err(SlotError::Config(format!(
                "network {} has no room for a slot",
                self.network
            )));
        }
        Ok(())
    }
}

/// Why a slot could not be made, used or deleted.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The configuration makes no sense.
    #[error("slot configuration: {0}")]
    Config(String),
    /// A file, socket or process operation failed.
    #[error("{action}")]
    Io {
        /// What was being done, as in `open tap`.
        action: String,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// `ip` or `nft` failed.
    #[error("{tool} failed: {message}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// Its words.
        message: String,
    },
    /// Every slot number of the host is taken.
    #[error("no slot number is free")]
    Full,
    /// The slot is in use in this process.
    #[error("slot {0} is in use")]
    InUse(String),
}

impl SlotError {
    /// Wraps an operating system error with what was being done.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action: action.into(),
            source,
        }
    }
}

impl From<io::Error> for SlotError {
    fn from(source: io::Error) -> Self {
        Self::io("enter network namespace")(source)
    }
}

/// Keeps slots ready and hands them out.
#[derive(Debug)]
pub struct SlotPool {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    stopping: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// What the pool shares with its background task.
#[derive(Debug)]
struct Shared {
    host: Arc<Host>,
    warm: Mutex<VecDeque<Slot>>,
    taken: Notify,
}

/// What all slots of one pool share.
#[derive(Debug)]
struct Host {
    plumbing: Plumbing,
    /// Makes sockets and taps; nothing slow runs here, for connections wait for it.
    sockets: NetnsThread,
    resolvers: Arc<Resolvers>,
    /// Names of slots that this process is making or holds, so that they are not taken for orphans.
    held: Mutex<HashSet<String>>,
}

impl SlotPool {
    /// Checks what slots need, installs the host's packet filter, turns on forwarding and starts making
    /// slots in the background.
    ///
    /// # Errors
    /// A senseless configuration, missing tools or missing permissions.
    pub async fn start(config: SlotConfig) -> Result<Arc<Self>, SlotError> {
        config.validate()?;
        let host = Arc::new(Host {
            sockets: NetnsThread::spawn("netns").map_err(SlotError::io("start thread"))?,
            resolvers: Arc::new(Resolvers::new(config.resolvers)),
            held: Mutex::default(),
            plumbing: Plumbing::new(
                config.owner,
                config.network,
                Policy::new(config.network, config.block, config.allow, config.reachable),
            )?,
        });
        host.plumbing.enable_forwarding().await?;
        host.plumbing.install_host_rules().await?;
        let shared = Arc::new(Shared {
            host,
            warm: Mutex::default(),
            taken: Notify::new(),
        });
        let stopping = CancellationToken::new();
        let keeper = tokio::spawn(keep(shared.clone(), config.warm, stopping.clone()));
        Ok(Arc::new(Self {
            shared,
            keeper: Mutex::new(Some(keeper)),
            _stop_on_drop: stopping.clone().drop_guard(),
            stopping,
        }))
    }

    /// Takes a slot that is ready, or makes one when none is.
    ///
    /// # Errors
    /// The kernel or its tools refuse, or all numbers are taken.
    pub async fn acquire(&self) -> Result<Slot, SlotError> {
        let ready = lock(&self.shared.warm).pop_front();
        self.shared.taken.notify_one();
        match ready {
            Some(slot) => Ok(slot),
            None => self.make_detached().await,
        }
    }

    /// Makes a slot in a task of its own, so that a caller who gives up leaves no half-made slot behind.
    async fn make_detached(&self) -> Result<Slot, SlotError> {
        let host = self.shared.host.clone();
        let (done, made) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(Ok(unwanted)) = done.send(host.make().await)
                && let Err(error) = unwanted.release().await
            {
                tracing::warn!(slot = unwanted.name(), %error, "slot not released");
            }
        });
        made.await
            .map_err(|_| SlotError::io("make slot")(io::Error::other("the task ended")))?
    }

    /// Takes over a slot that an earlier process left for a machine that still runs, and that reaches
    /// `egress`. None when the slot is gone or incomplete; what is left of it is then deleted.
    ///
    /// # Errors
    /// The name is not one of this owner's, the slot is in use here, or the kernel refuses.
    pub async fn adopt(&self, name: &str, egress: &Egress) -> Result<Option<Slot>, SlotError> {
        let host = &self.shared.host;
        let held = self.hold(name)?;
        if !plumbing::is_complete(name) {
            host.plumbing.delete(name).await?;
            return Ok(None);
        }
        host.plumbing.install_slot_rules(name, egress).await?;
        Slot::open(held).await.map(Some)
    }

    /// Deletes a slot that an earlier process left, or what is left of it. None there is fine.
    ///
    /// # Errors
    /// The name is not one of this owner's, the slot is in use here, or the kernel refuses.
    pub async fn delete(&self, name: &str) -> Result<(), SlotError> {
        let held = self.hold(name)?;
        held.host.plumbing.delete(name).await.map(drop)
    }

    fn hold(&self, name: &str) -> Result<Held, SlotError> {
        let host = &self.shared.host;
        if !host.plumbing.owns(name) {
            return Err(SlotError::Config(format!(
                "{name:?} is not a slot of this owner"
            )));
        }
        Held::new(host.clone(), name.to_owned())
    }

    /// Ends what runs in a slot of this owner, whoever started it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) async fn end_processes(&self, name: &str) -> Result<(), SlotError> {
        self.shared.host.plumbing.end_processes(name).await
    }

    /// Deletes this owner's slots, except those named and those that this process holds, and returns how
    /// many they were.
    ///
    /// # Errors
    /// The last failure, after all have been tried.
    pub async fn release_orphans(&self, keep: &HashSet<String>) -> Result<usize, SlotError> {
        let host = &self.shared.host;
        let mut released = 0;
        let mut failure = None;
        for name in host.plumbing.names().await? {
            if keep.contains(&name) {
                continue;
            }
            let Ok(_held) = Held::new(host.clone(), name.clone()) else {
                continue;
            };
            match host.plumbing.delete(&name).await {
                Ok(true) => released += 1,
                // A claim of this process that came to nothing since the names were read.
                Ok(false) => {}
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(released), Err)
    }

    /// Stops making slots and deletes those that no machine uses. The host's packet filter goes with the
    /// last slot.
    pub async fn stop(&self) {
        self.stopping.cancel();
        let keeper = lock(&self.keeper).take();
        if let Some(keeper) = keeper
            && let Err(error) = keeper.await
        {
            tracing::error!(%error, "slot keeper failed");
        }
        let unused = std::mem::take(&mut *lock(&self.shared.warm));
        for slot in unused {
            if let Err(error) = slot.release().await {
                tracing::warn!(slot = slot.name(), %error, "slot not released");
            }
        }
        if let Err(error) = self.shared.host.plumbing.leave_host_if_unused().await {
            tracing::warn!(%error, "packet filter not removed");
        }
    }
}

/// Keeps `warm` slots ready and the host's packet filter in place until told to stop.
async fn keep(shared: Arc<Shared>, warm: usize, stopping: CancellationToken) {
    tokio::join!(
        keep_warm(&shared, warm, &stopping),
        keep_rules(&shared.host, &stopping)
    );
}

/// Pauses between attempts to make a slot, from the first failure on.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(60);

async fn keep_warm(shared: &Shared, warm: usize, stopping: &CancellationToken) {
    let mut pause = RETRY_FIRST;
    while !stopping.is_cancelled() {
        if lock(&shared.warm).len() >= warm {
            tokio::select! {
                () = shared.taken.notified() => {}
                () = stopping.cancelled() => {}
            }
            continue;
        }
        // Not raced against the stop: a slot half made would be left behind.
        match shared.host.make().await {
            Ok(slot) => {
                lock(&shared.warm).push_back(slot);
                pause = RETRY_FIRST;
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, retry_s = pause.as_secs(), "slot not made");
                tokio::select! {
                    () = sleep(pause) => {}
                    () = stopping.cancelled() => {}
                }
                pause = (pause * 2).min(RETRY_LAST);
            }
        }
    }
}

/// Restores the host's table when something flushed the host's rules, as a restart of its firewall does.
async fn keep_rules(host: &Host, stopping: &CancellationToken) {
    let mut tick = interval(limits::SLOT_RULES_CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopping.cancelled() => return,
        }
        match host.plumbing.restore_host_rules().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("packet filter was gone from the host and is back"),
            Err(error) => tracing::error!(%error, "packet filter not restored"),
        }
    }
}

impl Host {
    async fn make(self: &Arc<Self>) -> Result<Slot, SlotError> {
        let started = Instant::now();
        let taken = self.plumbing.taken_numbers().await?;
        for _ in 0..self.plumbing.capacity() {
            let number = self.plumbing.next_number();
            if taken.contains(&number) {
                continue;
            }
            let name = self.plumbing.name(number);
            let Ok(held) = Held::new(self.clone(), name) else {
                continue;
            };
            if !self.plumbing.claim(number).await? {
                continue;
            }
            let made = match self.plumbing.furnish(number).await {
                Ok(()) => Slot::open(held).await,
                Err(error) => Err(error),
            };
            match &made {
                Ok(slot) => tracing::debug!(
                    slot = slot.name(),
                    took_ms = started.elapsed().as_millis(),
                    "slot made"
                ),
                Err(_) => self.delete_unfinished(number).await,
            }
            return made;
        }
        Err(SlotError::Full)
    }

    async fn delete_unfinished(&self, number: u32) {
        let name = self.plumbing.name(number);
        if let Err(error) = self.plumbing.delete(&name).await {
            tracing::warn!(slot = name, %error, "unfinished slot not deleted");
        }
    }
}

/// Marks a slot's name as held by this process until dropped.
#[derive(Debug)]
struct Held {
    host: Arc<Host>,
    name: String,
}

impl Held {
    fn new(host: Arc<Host>, name: String) -> Result<Self, SlotError> {
        if !lock(&host.held).insert(name.clone()) {
            return Err(SlotError::InUse(name));
        }
        Ok(Self { host, name })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.host.held).remove(&self.name);
    }
}

/// A machine's network. Dropping it leaves the slot in place, without its DNS, for a later process to
/// adopt.
pub struct Slot {
    held: Held,
    netns: Arc<OwnedFd>,
    dns: Mutex<Option<Forwarder>>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

impl Slot {
    /// Opens a complete slot: its namespace and its DNS.
    async fn open(held: Held) -> Result<Self, SlotError> {
        let netns = plumbing::open_netns(&held.name).await?;
        let host = &held.host;
        let dns = Forwarder::start(&host.sockets, &netns, host.resolvers.clone())
            .await
            .map_err(SlotError::io("open dns sockets"))?;
        Ok(Self {
            netns,
            dns: Mutex::new(Some(dns)),
            held,
        })
    }

    /// The slot's name: of its namespace and of the host's end of its uplink.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.held.name
    }

    /// The user id that is this slot's alone.
    #[must_use]
    pub(crate) fn uid(&self) -> u32 {
        let number = plumbing::parse_name(self.name()).map_or(0, |(_, number)| number);
        limits::JAIL_FIRST_UID + number
    }

    /// Limits what runs in the slot to a share of the host. Answers with the control groups to join.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) async fn confine(&self, share: Share) -> Result<Vec<PathBuf>, SlotError> {
        self.held.host.plumbing.confine(self.name(), share).await
    }

    /// Lets the slot's machine reach `egress` and no more. A new slot reaches the internet.
    ///
    /// # Errors
    /// The slot is gone, or the kernel refuses; the rules are then as they were.
    pub async fn set_egress(&self, egress: &Egress) -> Result<(), SlotError> {
        if *egress == Egress::internet() {
            return Ok(());
        }
        let plumbing = &self.held.host.plumbing;
        plumbing.install_slot_rules(self.name(), egress).await
    }

    /// Opens the tap, with virtio headers and without packet information. One opener at a time.
    ///
    /// # Errors
    /// The tap is open already, or the slot is gone.
    pub async fn open_tap(&self) -> Result<OwnedFd, SlotError> {
        let sockets = &self.held.host.sockets;
        sockets
            .run(&self.netns, || netns::open_tap(plumbing::TAP))
            .await
            .map_err(SlotError::io(format!("open tap of {}", self.name())))
    }

    /// Connects to a TCP port of the guest, without Nagle's delay. A guest that is silent makes it fail
    /// after some 15 seconds.
    ///
    /// # Errors
    /// As of any connect.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let sockets = &self.held.host.sockets;
        let socket = sockets.run(&self.netns, netns::tcp_socket).await?;
        let socket = TcpSocket::from_std_stream(socket);
        socket.set_nodelay(true)?;
        socket.connect((guest::GUEST_ADDR, port).into()).await
    }

    /// Deletes the slot. Doing it again does nothing: the name is not used again while this exists.
    ///
    /// # Errors
    /// The kernel or its tools refuse; try again, or drop it and leave it to
    /// [`SlotPool::release_orphans`].
    pub async fn release(&self) -> Result<(), SlotError> {
        // A socket left open would keep the namespace alive after its name is gone.
        let dns = lock(&self.dns).take();
        if let Some(dns) = dns {
            dns.stop().await;
        }
        self.held.host.plumbing.delete(self.name()).await.map(drop)
    }
}

/// Locks what only short, panic-free sections touch.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
