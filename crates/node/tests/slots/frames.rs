//! Frames as a guest that has no scruples makes them.

use dormouse_core::guest::{GUEST_ADDR, GUEST_MAC, HOST_ADDR};
use std::net::Ipv4Addr;

/// The tap's Ethernet address, which the guest's packets go to.
const GATEWAY: [u8; 6] = [0x02, 0xd0, 0xe0, 0, 0, 1];
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
const UDP: u8 = 17;

fn own_mac() -> [u8; 6] {
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(GUEST_MAC.split(':')) {
        *byte = u8::from_str_radix(text, 16).unwrap();
    }
    mac
}

/// An Ethernet frame from the guest.
pub(crate) fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    ethernet_from(own_mac(), GATEWAY, kind, payload)
}

pub(crate) fn ethernet_from(from: [u8; 6], to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet with a header that is right but for what the test makes of it.
pub(crate) struct Ip {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: u8,
    /// Flags and offset.
    pub(crate) fragment: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Ip {
    /// A datagram that says `what` to a port.
    pub(crate) fn udp(to: Ipv4Addr, port: u16, what: &str) -> Self {
        let len = (8 + what.len()) as u16;
        let head = [4321, port, len, 0].map(u16::to_be_bytes).concat();
        Self {
            from: GUEST_ADDR,
            to,
            protocol: UDP,
            fragment: 0,
            options: Vec::new(),
            payload: [&head, what.as_bytes()].concat(),
        }
    }

    pub(crate) fn packet(&self) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let mut head = vec![0x40 | words as u8, 0];
        head.extend(((words * 4 + self.payload.len()) as u16).to_be_bytes());
        head.extend([0, 7]);
        head.extend(self.fragment.to_be_bytes());
        head.extend([64, self.protocol, 0, 0]);
        head.extend(self.from.octets());
        head.extend(self.to.octets());
        head.extend(&self.options);
        let sum = checksum(&head);
        head[10..12].copy_from_slice(&sum.to_be_bytes());
        head.extend(&self.payload);
        head
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        ethernet(0x0800, &self.packet())
    }
}

/// An ARP answer that claims an address.
pub(crate) fn arp(mac: [u8; 6], addr: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 2];
    body.extend(mac);
    body.extend(addr.octets());
    body.extend(GATEWAY);
    body.extend(HOST_ADDR.octets());
    body
}

pub(crate) fn own_arp() -> Vec<u8> {
    arp(own_mac(), GUEST_ADDR)
}

pub(crate) fn forged_arps() -> [Vec<u8>; 3] {
    [
        // It is the gateway; it is somebody else; somebody else is it.
        arp(own_mac(), HOST_ADDR),
        arp(own_mac(), Ipv4Addr::new(10, 0, 0, 77)),
        arp(GATEWAY, GUEST_ADDR),
    ]
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
