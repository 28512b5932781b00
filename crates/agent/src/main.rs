//! The guest agent: PID 1 of every microVM.
//!
//! It boots the VM from an initramfs that holds nothing but itself and a few kernel modules, starts the
//! customer's app as a container would, and does what the host asks over HTTP (the protocol is
//! `dormouse_core::guest`). Its one promise: while it says that the app is frozen, none of the customer's
//! code runs, and it runs on only after clock, entropy and identity are the VM's own.
//!
//! The runtime has one thread. Whatever may wait for the disk runs on the blocking pool, so that the
//! agent answers even while its own file system is frozen.

mod account;
mod affinity;
mod app;
mod archive;
mod body_reader;
mod boot;
mod cgroup;
mod console;
mod copy;
mod disk;
mod etc;
mod exec;
mod freezer;
mod isolation;
mod log_ring;
mod netlink;
mod network;
mod power;
mod privilege;
mod process;
mod program;
mod random;
mod reaper;
mod refusal;
mod routes;
mod server;
mod shell;
mod sockets;
mod terminal;
mod timers;
mod tree_copy;
mod trees;
mod trust;
mod tunnel;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

/// Threads for blocking work: one for each connection, so that a stuck one never keeps out a thaw.
const BLOCKING_THREADS_MAX: usize = server::CONNECTIONS_MAX + 16;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "dormouse-agent {} runs as PID 1 of a microVM only",
            env!("CARGO_PKG_VERSION")
        );
        return ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|panic| {
        console::say(format_args!("panic: {panic}"));
        power::off_now();
    }));
    if let Err(error) = run() {
        console::say(format_args!("fatal: {}", refusal::causes(error.as_ref())));
    }
    power::off_now();
    ExitCode::FAILURE
}

fn run() -> Result<(), Box<dyn Error>> {
    let cgroup = boot::boot()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        // One that is there can freeze and thaw an app which leaves room for no more: without any the runtime panics.
        .thread_keep_alive(Duration::MAX)
        .build()?;
    runtime.block_on(server::serve(cgroup))?;
    Ok(())
}
