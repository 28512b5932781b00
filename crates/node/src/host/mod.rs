//! What the host lends to a machine: network slots with their packet filter and DNS, control groups, and the jail around
//! its VMM.
//!
//! A slot is a network namespace of its own, so every machine can have the same inside address:
//!
//! ```text
//!   guest 10.0.0.2 ── tap0 10.0.0.1 ┐ namespace dmOWNER-N            host
//!                   169.254.53.53   │  filter, masquerade  uplink ── dmOWNER-N ── filter, masquerade ── internet
//!                   DNS forwarder ──┘                                 (veth)
//! ```
//!
//! Invariants:
//! - A packet leaves the namespace only if both walls let it: the rules inside, which no change to the
//!   host's own rules can open, and the host's table `dormouse_OWNER`.
//! - Nothing is routed from one slot to another, or from a slot to an address of the host.
//! - The namespace speaks no IPv6.
//! - Only the threads of `netns` ever change their namespace.
//!
//! A host whose own rules drop forwarded packets by default (Docker's and ufw's do) must accept those of
//! the slots: an accept in one table does not undo a drop in another. With Docker:
//! `iptables -I DOCKER-USER -i dm+ -j ACCEPT; iptables -I DOCKER-USER -o dm+ -j ACCEPT`; with ufw:
//! `ufw route allow in on dm+`. [`check::check`] names the chain that is in the way.
//!
//! The pool turns on the host's IPv4 forwarding and leaves it on: a host with several networks that must
//! not become a router between them needs rules of its own, as with Docker.
//!
//! Guests resolve names through the host's resolvers, so they see the names that the host sees, private
//! ones included; answers are not filtered. What a private name points to stays unreachable.

pub(crate) mod cgroup;
pub mod check;
mod dns;
pub mod jail;
mod netns;
mod plumbing;
mod rules;
pub mod slot;

pub use dormouse_core::cidr;

/// Tells one boot of the host from another.
///
/// # Errors
/// The kernel does not say.
pub fn boot_id() -> std::io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}
