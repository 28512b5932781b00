//! Work inside a network namespace, on threads kept for it.
//!
//! A socket or tap keeps the namespace in which it was made, so only its making happens here; connecting,
//! reading and writing are tokio's as always. A process started here lives in the namespace too.

use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait for one thread.
const QUEUE: usize = 64;

/// A thread that enters namespaces to do short jobs, one after the other.
#[derive(Debug)]
pub(crate) struct NetnsThread {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    netns: Arc<OwnedFd>,
    /// Runs in the namespace, or is told why it could not be entered.
    work: Box<dyn FnOnce(io::Result<()>) + Send>,
}

impl NetnsThread {
    /// Starts the thread. It ends when this is dropped.
    pub(crate) fn spawn(name: &str) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve(queue))?;
        Ok(Self { jobs })
    }

    /// Runs `work` in the namespace and returns what it returns.
    pub(crate) async fn run<T, E>(
        &self,
        netns: &Arc<OwnedFd>,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<io::Error> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let job = Job {
            netns: netns.clone(),
            work: Box::new(move |entered| {
                // The caller may have given up; then nobody wants the result.
                let _ = done.send(entered.map_err(E::from).and_then(|()| work()));
            }),
        };
        let gone = || E::from(io::Error::other("the namespace thread has ended"));
        self.jobs.send(job).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

fn serve(mut queue: mpsc::Receiver<Job>) {
    let home = match File::open("/proc/thread-self/ns/net") {
        Ok(home) => home,
        Err(error) => {
            tracing::error!(%error, "cannot open own network namespace");
            return;
        }
    };
    while let Some(Job { netns, work }) = queue.blocking_recv() {
        work(enter(&*netns));
        // A thread that stayed would keep a deleted namespace alive.
        if let Err(error) = enter(&home) {
            tracing::error!(%error, "cannot return to own network namespace");
            return;
        }
    }
}

fn enter(netns: impl AsFd) -> io::Result<()> {
    Ok(move_into_link_name_space(
        netns.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Runs `work` in a new namespace that vanishes with it, on a thread of its own.
pub(crate) fn in_new_namespace<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new()
        .name("netns-probe".into())
        .spawn(move || {
            // SAFETY: the danger of unshare lies in CLONE_FILES, which is not asked for.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(work())
        })?;
    thread
        .join()
        .map_err(|_| io::Error::other("the namespace thread panicked"))?
}

/// A TCP socket of the calling thread's namespace, ready for tokio.
pub(crate) fn tcp_socket() -> io::Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    Ok(TcpStream::from(socket))
}

/// `struct ifreq` as far as TUNSETIFF reads it, padded to its full size.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<std::ffi::c_int>(b'T', 202);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Attaches to the tap of that name in the calling thread's namespace.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        padding: [0; 22],
    };
    // The kernel wants the name zero-terminated.
    let Some(field) = request.name[..15].get_mut(..name.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    field.copy_from_slice(name.as_bytes());
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `InterfaceRequest` is in layout and size.
    unsafe { ioctl(&device, Setter::<TUNSETIFF, _>::new(request)) }?;
    Ok(device.into())
}
