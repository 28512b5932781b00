//! The VM's two links: loopback and `eth0`, whose addresses are the same in every VM.

use crate::netlink::{CREATE, Netlink, REPLACE, push_attribute};
use dormouse_core::guest::{GUEST_ADDR, HOST_ADDR, LINK_PREFIX_LEN};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use std::io;

/// Name of the link to the host.
pub(crate) const LINK: &str = "eth0";

const SET_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const FAMILY_IPV4: u8 = 2;

/// Brings up both links, with the default route through the host.
pub(crate) fn bring_up() -> io::Result<()> {
    let names = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut netlink = Netlink::open(None)?;
    netlink.request(SET_LINK, 0, &link_up(name_to_index(&names, "lo")?))?;
    let index = name_to_index(&names, LINK)?;
    netlink.request(SET_LINK, 0, &link_up(index))?;
    netlink.request(NEW_ADDRESS, CREATE | REPLACE, &guest_address(index))?;
    netlink.request(NEW_ROUTE, CREATE | REPLACE, &default_route(index))
}

/// Brings up loopback in the network namespace of the calling thread.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    let names = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut netlink = Netlink::open(None)?;
    netlink.request(SET_LINK, 0, &link_up(name_to_index(&names, "lo")?))
}

/// `struct ifinfomsg` that sets the flag "up" and no other.
fn link_up(index: u32) -> Vec<u8> {
    const UP: u32 = 1;
    let mut payload = vec![0; 4];
    payload.extend(index.to_ne_bytes());
    payload.extend(UP.to_ne_bytes());
    payload.extend(UP.to_ne_bytes());
    payload
}

/// `struct ifaddrmsg` with the guest's address.
fn guest_address(index: u32) -> Vec<u8> {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    let mut payload = vec![FAMILY_IPV4, LINK_PREFIX_LEN, 0, 0];
    payload.extend(index.to_ne_bytes());
    push_attribute(&mut payload, LOCAL, GUEST_ADDR.octets());
    push_attribute(&mut payload, ADDRESS, GUEST_ADDR.octets());
    payload
}

/// `struct rtmsg` with the route to everywhere.
fn default_route(index: u32) -> Vec<u8> {
    const TABLE_MAIN: u8 = 254;
    const PROTOCOL_BOOT: u8 = 3;
    const SCOPE_UNIVERSE: u8 = 0;
    const UNICAST: u8 = 1;
    const OUT_LINK: u16 = 4;
    const GATEWAY: u16 = 5;
    let mut payload = vec![FAMILY_IPV4, 0, 0, 0];
    payload.extend([TABLE_MAIN, PROTOCOL_BOOT, SCOPE_UNIVERSE, UNICAST]);
    payload.extend([0; 4]);
    push_attribute(&mut payload, OUT_LINK, index.to_ne_bytes());
    push_attribute(&mut payload, GATEWAY, HOST_ADDR.octets());
    payload
}
