//! Ending the connections that a snapshot remembers but nobody else does.
//!
//! Their peers talk to the VM that the snapshot was made of, or to nobody. An app that finds them dead at
//! once connects anew; one that finds them silent waits for minutes.

use crate::netlink::Netlink;
use dormouse_core::guest::{AGENT_PORT, GUEST_ADDR};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const DUMP_BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const FAMILIES: [u8; 2] = [2, 10];
const TCP: u8 = 6;
/// Bits of the states of `TCP_ESTABLISHED`, `SYN_SENT`, `SYN_RECV`, `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`,
/// `LAST_ACK` and `CLOSING`: every state in which there is a peer to wait for.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Length of `struct inet_diag_sockid`.
const ID_LEN: usize = 48;
/// Where it starts in `struct inet_diag_msg`.
const ID_OFFSET: usize = 4;

/// Aborts every TCP connection that leaves the VM, but those of the agent with the host.
pub(crate) fn abort_outbound() -> io::Result<()> {
    let mut netlink = Netlink::open(Some(rustix::net::netlink::SOCK_DIAG))?;
    for family in FAMILIES {
        let mut stale = Vec::new();
        let all = request(family, &[0; ID_LEN]);
        netlink.dump(DUMP_BY_FAMILY, &all, |entry| {
            stale.extend(SocketId::parse(family, entry).filter(SocketId::leaves_the_vm));
        })?;
        for id in stale {
            match netlink.request(DESTROY, 0, &request(family, &id.raw)) {
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
fn request(family: u8, id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut payload = vec![family, TCP, 0, 0];
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

    fn leaves_the_vm(&self) -> bool {
        let is_own = self.peer.is_loopback() || self.peer == IpAddr::V4(GUEST_ADDR);
        !is_own && self.local_port != AGENT_PORT
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
    fn only_connections_that_leave_the_vm_are_stale() {
        let mapped = |octets: [u8; 4]| Ipv4Addr::from(octets).to_ipv6_mapped().octets();
        for (family, port, peer, leaves) in [
            (2, 40_000, &[93, 184, 1, 1][..], true),
            (2, 40_000, &[169, 254, 53, 53], true),
            (2, 40_000, &[127, 0, 0, 1], false),
            (2, 40_000, &[10, 0, 0, 2], false),
            (2, AGENT_PORT, &[10, 0, 0, 1], false),
            (2, 8080, &[10, 0, 0, 1], true),
            (10, 8080, &mapped([127, 0, 0, 1]), false),
            (10, 8080, &mapped([93, 184, 1, 1]), true),
            (10, 8080, &Ipv6Addr::LOCALHOST.octets(), false),
        ] {
            let id = SocketId::parse(family, &entry(port, peer)).expect("long enough");
            assert_eq!(id.leaves_the_vm(), leaves, "{port} {peer:?}");
        }
        assert!(SocketId::parse(2, &[0; 20]).is_none());
    }
}
