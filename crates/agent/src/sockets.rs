//! Ending the connections that a snapshot remembers but nobody else does.
//!
//! Their peers talk to the VM that the snapshot was made of, or to nobody. An app that finds them dead at
//! once connects anew; one that finds them silent waits for minutes. And two clones that went on with one of them would
//! encrypt different things with the same keys and numbers.
//!
//! Only the network namespace that the app starts in is looked through. What an app with all capabilities has in others is
//! not reached, nor are sessions that it keeps itself, over a UDP socket without a peer.

use crate::console;
use crate::netlink::Netlink;
use dormouse_core::guest::{AGENT_PORT, GUEST_ADDR};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const DUMP_BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const FAMILIES: [u8; 2] = [2, 10];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bits of the states of `TCP_ESTABLISHED`, `SYN_SENT`, `SYN_RECV`, `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`,
/// `LAST_ACK` and `CLOSING`: every state in which there is a peer to wait for. The first is also that of a UDP socket with a peer.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Length of `struct inet_diag_sockid`.
const ID_LEN: usize = 48;
/// Where it starts in `struct inet_diag_msg`.
const ID_OFFSET: usize = 4;

/// Aborts every TCP connection that leaves the VM, but those of the agent with the host.
pub(crate) fn abort_tcp() -> io::Result<()> {
    abort(TCP, |id| id.leaves_the_vm() && !id.is_the_agents())
}

/// Takes its peer from every UDP socket that has one outside of the VM. A kernel that cannot list them keeps them.
pub(crate) fn abort_udp() -> io::Result<()> {
    match abort(UDP, SocketId::leaves_the_vm) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            console::say(format_args!("this kernel lists no UDP sockets"));
            Ok(())
        }
        aborted => aborted,
    }
}

fn abort(protocol: u8, is_stale: impl Fn(&SocketId) -> bool) -> io::Result<()> {
    let mut netlink = Netlink::open(Some(rustix::net::netlink::SOCK_DIAG))?;
    for family in FAMILIES {
        let mut stale = Vec::new();
        let all = request(family, protocol, &[0; ID_LEN]);
        netlink.dump(DUMP_BY_FAMILY, &all, |entry| {
            stale.extend(SocketId::parse(family, entry).filter(&is_stale));
        })?;
        for id in stale {
            match netlink.request(DESTROY, 0, &request(family, protocol, &id.raw)) {
                Ok(()) => {}
                // It ended by itself meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// `struct inet_diag_req_v2`
fn request(family: u8, protocol: u8, id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut payload = vec![family, protocol, 0, 0];
    payload.extend(STATES.to_ne_bytes());
    payload.extend(id);
    payload
}

/// `struct inet_diag_sockid`: ports and addresses of both ends.
#[derive(Debug)]
struct SocketId {
    raw: [u8; ID_LEN],
    local_port: u16,
    peer: IpAddr,
}

impl SocketId {
    fn parse(family: u8, entry: &[u8]) -> Option<Self> {
        let raw: [u8; ID_LEN] = *entry.get(ID_OFFSET..)?.first_chunk()?;
        let address: [u8; 16] = *raw[20..].first_chunk()?;
        let peer = if family == FAMILIES[0] {
            let [a, b, c, d, ..] = address;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
        };
        Some(Self {
            local_port: u16::from_be_bytes([raw[0], raw[1]]),
            peer,
            raw,
        })
    }

    fn is_the_agents(&self) -> bool {
        self.local_port == AGENT_PORT
    }

    fn leaves_the_vm(&self) -> bool {
        !self.peer.is_loopback() && self.peer != IpAddr::V4(GUEST_ADDR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(local_port: u16, peer: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; 72];
        entry[ID_OFFSET..ID_OFFSET + 2].copy_from_slice(&local_port.to_be_bytes());
        entry[ID_OFFSET + 20..ID_OFFSET + 20 + peer.len()].copy_from_slice(peer);
        entry
    }

    #[test]
    fn only_the_agents_own_connections_are_the_hosts() {
        for (port, agents) in [(AGENT_PORT, true), (8080, false)] {
            let id = SocketId::parse(2, &entry(port, &[10, 0, 0, 1])).expect("long enough");
            assert_eq!(id.is_the_agents(), agents);
        }
    }

    #[test]
    fn only_connections_that_leave_the_vm_are_stale() {
        let mapped = |octets: [u8; 4]| Ipv4Addr::from(octets).to_ipv6_mapped().octets();
        for (family, peer, leaves) in [
            (2, &[93, 184, 1, 1][..], true),
            (2, &[169, 254, 53, 53], true),
            (2, &[127, 0, 0, 1], false),
            (2, &[10, 0, 0, 2], false),
            (2, &[10, 0, 0, 1], true),
            (10, &mapped([127, 0, 0, 1]), false),
            (10, &mapped([93, 184, 1, 1]), true),
            (10, &Ipv6Addr::LOCALHOST.octets(), false),
        ] {
            let id = SocketId::parse(family, &entry(8080, peer)).expect("long enough");
            assert_eq!(id.leaves_the_vm(), leaves, "{peer:?}");
        }
        assert!(SocketId::parse(2, &[0; 20]).is_none());
    }
}
