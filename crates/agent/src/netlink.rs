//! Just enough netlink to set up one link and to end sockets.

use rustix::fd::OwnedFd;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use std::io;
use std::time::Duration;

/// Create what does not exist yet.
pub(crate) const CREATE: u16 = 0x400;
/// Replace what exists.
pub(crate) const REPLACE: u16 = 0x100;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const HEADER_LEN: usize = 16;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
/// The kernel sends a dump in parts of at most this many bytes.
const RECEIVE_BYTES: usize = 32 * 1024;
/// The kernel answers at once; waiting longer means that it never will.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One netlink socket. Its calls block, but only for the kernel.
#[derive(Debug)]
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket of a protocol; none for routes and links.
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        set_socket_timeout(&fd, Timeout::Recv, Some(TIMEOUT))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request and waits for the kernel's verdict.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK | flags, payload)?;
        self.receive(|_| {})
    }

    /// Asks for a list and gives each entry's payload to `entry`.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        payload: &[u8],
        entry: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.send(kind, REQUEST | DUMP, payload)?;
        self.receive(entry)
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let len = u32::try_from(HEADER_LEN + payload.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut message = Vec::with_capacity(HEADER_LEN + payload.len());
        message.extend(len.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(payload);
        send(&self.fd, &message, SendFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self, mut entry: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let (len, _) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            for message in Messages(&buffer[..len]) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    // What breaks a list off is told at its end.
                    TYPE_DONE | TYPE_ERROR => return verdict(message.payload),
                    _ => entry(message.payload),
                }
            }
        }
    }
}

/// An error message and the end of a list carry zero for success and a negative error number otherwise.
fn verdict(payload: &[u8]) -> io::Result<()> {
    match payload
        .first_chunk()
        .map(|bytes| i32::from_ne_bytes(*bytes))
    {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Adds an attribute to a message's payload.
pub(crate) fn push_attribute(payload: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    const LEN: u16 = 8;
    payload.extend(LEN.to_ne_bytes());
    payload.extend(kind.to_ne_bytes());
    payload.extend(value);
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The messages in one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; HEADER_LEN] = self.0.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = self.0.get(HEADER_LEN..len)?;
        // Messages start at multiples of four bytes.
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER_LEN + payload.len()).expect("short");
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_split_at_their_padded_length() {
        let mut bytes = message(20, 7, b"abcde");
        bytes.extend(message(TYPE_DONE, 7, b""));
        let seen: Vec<_> = Messages(&bytes)
            .map(|message| (message.kind, message.sequence, message.payload.to_vec()))
            .collect();
        assert_eq!(
            seen,
            [(20, 7, b"abcde".to_vec()), (TYPE_DONE, 7, Vec::new())]
        );
    }

    #[test]
    fn a_message_that_claims_more_than_there_is_ends_the_list() {
        let mut bytes = message(20, 1, b"abcd");
        bytes[0] = 200;
        assert_eq!(Messages(&bytes).count(), 0);
        bytes[0] = 3;
        assert_eq!(Messages(&bytes).count(), 0);
    }

    #[test]
    fn a_list_that_the_kernel_cannot_give_is_an_error() {
        const DUMP_BY_FAMILY: u16 = 20;
        // `struct inet_diag_req_v2` for a protocol that nobody has.
        let mut unknown = [0; 56];
        unknown[..2].copy_from_slice(&[2, 254]);
        let mut netlink = Netlink::open(Some(rustix::net::netlink::SOCK_DIAG)).expect("a socket");
        let error = netlink.dump(DUMP_BY_FAMILY, &unknown, |_| {});
        assert_eq!(
            error.expect_err("no such list").kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn an_error_number_becomes_an_error() {
        assert!(verdict(&0_i32.to_ne_bytes()).is_ok());
        let error = verdict(&(-1_i32).to_ne_bytes()).expect_err("EPERM");
        assert_eq!(error.raw_os_error(), Some(1));
        assert!(verdict(b"").is_err());
    }
}
