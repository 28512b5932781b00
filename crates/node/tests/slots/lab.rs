//! The world around a slot under test: an "internet" behind a link of the host, guests, a resolver.

use dormouse_core::guest;
use dormouse_node::host::slot::Slot;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The host's side of one test; everything it made is gone when it is dropped.
pub(crate) struct Lab {
    index: u8,
    owner: String,
    outside: String,
    host_port: OnceLock<u16>,
    /// Held for as long as this test's addresses are in use, against a second run of the suite.
    _lock: File,
}

impl Lab {
    /// Where the lab's servers listen.
    pub(crate) const PORT: u16 = 8000;

    /// A lab with the addresses of that index, below 64, which no other test uses.
    pub(crate) fn new(index: u8) -> Self {
        assert!(rustix::process::geteuid().is_root(), "slot tests need root");
        let lock = File::create(std::env::temp_dir().join(format!("dormouse-slots-{index}.lock")));
        let lock = lock.unwrap();
        lock.lock().unwrap();
        let owner = format!("{}{}", base36(std::process::id()), base36(index.into()));
        let lab = Self {
            index,
            outside: format!("outside-{owner}"),
            owner,
            host_port: OnceLock::new(),
            _lock: lock,
        };
        let (outside, device) = (&lab.outside, format!("o-{}", lab.owner));
        ip(&format!("netns add {outside}"));
        ip(&format!(
            "link add {device} type veth peer name eth0 netns {outside}"
        ));
        ip(&format!("addr add {}/30 dev {device}", lab.host_addr()));
        ip(&format!("addr add 10.77.{index}.1/24 dev {device}"));
        ip(&format!("link set {device} up"));
        ip(&format!(
            "-n {outside} addr add {}/30 dev eth0",
            lab.outside_addr()
        ));
        ip(&format!(
            "-n {outside} addr add {}/24 dev eth0",
            lab.private_addr()
        ));
        ip(&format!("-n {outside} link set eth0 up"));
        lab
    }

    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    pub(crate) fn outside(&self) -> &str {
        &self.outside
    }

    /// The host's own address on the link to the outside.
    pub(crate) fn host_addr(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, 4 * self.index + 1)
    }

    /// A public address outside the host.
    pub(crate) fn outside_addr(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, 4 * self.index + 2)
    }

    /// A private address outside the host, of the same machine.
    pub(crate) fn private_addr(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.index, 2)
    }

    /// Takes down a slot's inner wall, as if a guest had broken out into its namespace.
    pub(crate) fn breach(&self, slot: &Slot) {
        run(
            "ip",
            &["netns", "exec", slot.name(), "nft", "flush", "ruleset"],
        );
    }

    pub(crate) fn serve_outside(&self) {
        serve(&self.outside, "outside");
    }

    pub(crate) fn serve_in(&self, netns: &str, label: &str) {
        serve(netns, label);
    }

    /// Serves on every address of the host, at [`Self::host_port`].
    pub(crate) fn serve_on_host(&self) {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        self.host_port
            .set(listener.local_addr().unwrap().port())
            .unwrap();
        std::thread::spawn(move || answer_all(&listener, "host"));
    }

    pub(crate) fn host_port(&self) -> u16 {
        *self.host_port.get().expect("serve_on_host comes first")
    }

    /// A socket outside that hears datagrams to [`Self::PORT`], and gives up after a second.
    pub(crate) fn outside_inbox(&self) -> UdpSocket {
        let socket = in_netns(&self.outside, || {
            UdpSocket::bind(("0.0.0.0", Self::PORT)).unwrap()
        });
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        socket
    }

    pub(crate) fn route_outside_through_host(&self, addr: Ipv4Addr) {
        let (outside, via) = (&self.outside, self.host_addr());
        ip(&format!("-n {outside} route add {addr}/32 via {via}"));
    }

    /// The host's addresses, but for those on links of other tests.
    pub(crate) fn all_host_addrs(&self) -> Vec<Ipv4Addr> {
        let own = [format!("o-{}", self.owner), format!("dm{}-", self.owner)];
        let foreign = |device: &str| {
            ["o-", "dm"].iter().any(|prefix| device.starts_with(prefix))
                && !own.iter().any(|prefix| device.starts_with(prefix.as_str()))
        };
        ip("-4 -o addr show")
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| !foreign(words[1]))
            .map(|words| words[3].split('/').next().unwrap().parse().unwrap())
            .collect()
    }

    /// The host's and the slot's end of a slot's uplink.
    pub(crate) fn link_addresses(&self, slot: &str) -> [Ipv4Addr; 2] {
        let shown = ip(&format!("-4 -o addr show dev {slot}"));
        let host = shown.split_whitespace().nth(3).unwrap();
        let host: Ipv4Addr = host.split('/').next().unwrap().parse().unwrap();
        [host, Ipv4Addr::from_bits(host.to_bits() ^ 1)]
    }

    /// What there is of this owner's slots.
    pub(crate) fn slots(&self) -> HashSet<String> {
        let mut found = names("/run/netns");
        found.extend(names("/sys/class/net"));
        found.retain(|name| name.starts_with(&format!("dm{}-", self.owner)));
        found
    }

    pub(crate) async fn wait_for_slots(&self, count: usize) {
        until("slots are made", || self.slots().len() >= count).await;
        // The last one is there in name; let it be finished.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(self.slots().len(), count);
    }

    pub(crate) fn host_table(&self) -> String {
        format!("dormouse_{}", self.owner)
    }

    pub(crate) fn has_host_table(&self) -> bool {
        run("nft", &["list", "tables"]).contains(&self.host_table())
    }

    pub(crate) async fn wait_for_host_table(&self) {
        until("the table is back", || self.has_host_table()).await;
    }
}

impl Drop for Lab {
    /// Deletes what a failed test left, too.
    fn drop(&mut self) {
        let attempt = |program: &str, args: &[&str]| {
            let _ = Command::new(program).args(args).output();
        };
        for slot in self.slots() {
            attempt("ip", &["link", "del", "dev", &slot]);
            attempt("ip", &["netns", "del", &slot]);
        }
        attempt("ip", &["link", "del", "dev", &format!("o-{}", self.owner)]);
        attempt("ip", &["netns", "del", &self.outside]);
        if self.has_host_table() {
            attempt("nft", &["delete", "table", "inet", &self.host_table()]);
        }
    }
}

/// A guest: a namespace whose tap is wired to a slot's, so that its kernel plays the guest's.
pub(crate) struct Guest {
    netns: String,
    stop: Arc<AtomicBool>,
    wire: Option<JoinHandle<()>>,
    /// The slot's end of the wire.
    tap: Arc<OwnedFd>,
}

impl Guest {
    pub(crate) async fn attach(lab: &Lab, slot: &Slot, number: u8) -> Self {
        let netns = format!("guest-{}-{number}", lab.owner());
        let tap = Arc::new(slot.open_tap().await.unwrap());
        let slot_tap = tap.clone();
        run("ip", &["netns", "add", &netns]);
        let guest_tap = in_netns(&netns, open_tap);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let wire = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                carry(&slot_tap, &guest_tap);
            }
        });
        let guest = Self {
            netns,
            stop,
            wire: Some(wire),
            tap,
        };
        guest.ip("link set lo up");
        guest.ip(&format!("link set tap0 address {} up", guest::GUEST_MAC));
        let prefix = guest::LINK_PREFIX_LEN;
        guest.ip(&format!("addr add {}/{prefix} dev tap0", guest::GUEST_ADDR));
        guest.ip(&format!("route add default via {}", guest::HOST_ADDR));
        guest
    }

    /// Sends a frame that the guest's kernel has never seen, as a machine that does without one can.
    pub(crate) fn send_raw(&self, frame: &[u8]) {
        const VIRTIO_HEADER: [u8; 10] = [0; 10];
        let frame = [&VIRTIO_HEADER, frame].concat();
        rustix::io::write(&*self.tap, &frame).unwrap();
    }

    pub(crate) fn netns(&self) -> &str {
        &self.netns
    }

    pub(crate) fn ip(&self, command: &str) {
        ip(&format!("-n {} {command}", self.netns));
    }

    pub(crate) fn serve(&self, label: &str) {
        serve(&self.netns, label);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(wire) = self.wire.take() {
            wire.join().unwrap();
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.netns])
            .output();
    }
}

/// How many packets a slot has counted under this name.
pub(crate) fn counted(slot: &Slot, name: &str) -> u64 {
    let netns = slot.name().to_owned();
    let listed = in_netns(&netns, || {
        let output = Command::new("nft").args(["list", "counters"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    });
    let after = listed.split(&format!("counter {name} {{")).nth(1).unwrap();
    let packets = after.split_whitespace().nth(1).unwrap();
    packets.parse().unwrap()
}

/// Carries the frames that are waiting, either way, virtio headers and all.
fn carry(one: &OwnedFd, two: &OwnedFd) {
    let mut ends = [
        PollFd::new(one, PollFlags::IN),
        PollFd::new(two, PollFlags::IN),
    ];
    let wait = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    poll(&mut ends, Some(&wait)).unwrap();
    let ready = [ends[0].revents(), ends[1].revents()];
    let mut frame = vec![0; 1 << 17];
    for (ready, from, to) in [(ready[0], one, two), (ready[1], two, one)] {
        if ready.contains(PollFlags::IN) {
            let len = rustix::io::read(from, &mut frame).unwrap();
            // The other end may be down for now: frames to it are lost, as on a wire.
            let _ = rustix::io::write(to, &frame[..len]);
        }
    }
}

/// Makes and opens `tap0` in the calling thread's namespace.
fn open_tap() -> OwnedFd {
    const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<std::ffi::c_int>(b'T', 202);
    const TAP_WITHOUT_INFO_WITH_VNET_HEADER: u16 = 0x0002 | 0x1000 | 0x4000;
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"tap0");
    request[16..18].copy_from_slice(&TAP_WITHOUT_INFO_WITH_VNET_HEADER.to_ne_bytes());
    let device = File::options().read(true).write(true).open("/dev/net/tun");
    let device = device.unwrap();
    // SAFETY: TUNSETIFF reads a `struct ifreq`: 40 bytes, the name first and the flags at 16.
    unsafe { ioctl(&device, Setter::<TUNSETIFF, _>::new(request)) }.unwrap();
    device.into()
}

/// Runs `work` in a namespace, on a thread of its own.
pub(crate) fn in_netns<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let netns = File::open(format!("/run/netns/{netns}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Tells every client in `netns` the label and the client's own address.
fn serve(netns: &str, label: &str) {
    let listener = in_netns(netns, || TcpListener::bind(("0.0.0.0", Lab::PORT)).unwrap());
    let label = label.to_owned();
    std::thread::spawn(move || answer_all(&listener, &label));
}

fn answer_all(listener: &TcpListener, label: &str) {
    loop {
        let (mut stream, peer) = listener.accept().unwrap();
        let _ = write!(stream, "{label} {}", peer.ip());
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Names in a folder; none when it does not exist.
pub(crate) fn names(dir: &str) -> HashSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Runs a program that must succeed and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(command: &str) -> String {
    run("ip", &command.split(' ').collect::<Vec<_>>())
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).unwrap());
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

/// The id of [`query`].
pub(crate) const QUERY_ID: u16 = 0x1234;

/// A resolver on the host's loopback that knows what to do by the name asked for.
pub(crate) struct DnsServer {
    addr: SocketAddr,
    ids: Arc<Mutex<Vec<u16>>>,
}

impl DnsServer {
    pub(crate) fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let addr = udp.local_addr().unwrap();
        let ids = Arc::new(Mutex::new(Vec::new()));
        let (udp_ids, tcp_ids) = (ids.clone(), ids.clone());
        std::thread::spawn(move || answer_datagrams(&udp, &udp_ids));
        std::thread::spawn(move || answer_streams(&tcp, &tcp_ids));
        Self { addr, ids }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn ids_seen(&self) -> Vec<u16> {
        self.ids.lock().unwrap().clone()
    }

    /// The whole answer to [`query`].
    pub(crate) fn answer_to(name: &str) -> Vec<u8> {
        let records = if name == "long.test" { 300 } else { 1 };
        answer(&query(name), records)
    }
}

fn answer(query: &[u8], records: u16) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&records.to_be_bytes());
    for _ in 0..records {
        message.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc6\x33\x64\x07");
    }
    message
}

fn answer_datagrams(socket: &UdpSocket, ids: &Mutex<Vec<u16>>) {
    let mut datagram = [0; 4096];
    loop {
        let (len, peer) = socket.recv_from(&mut datagram).unwrap();
        let asked = &datagram[..len];
        ids.lock()
            .unwrap()
            .push(u16::from_be_bytes([asked[0], asked[1]]));
        let send = |message: Vec<u8>| {
            let _ = socket.send_to(&message, peer);
        };
        if asked == with_id_of(asked, &query("forged.test")) {
            let mut wrong_id = answer(asked, 2);
            wrong_id[0] ^= 1;
            send(wrong_id);
            send(answer(&with_id_of(asked, &query("forgot.test")), 2));
            send(answer(asked, 1));
        } else if asked == with_id_of(asked, &query("long.test")) {
            let mut cut = answer(asked, 0);
            cut[2] |= 0x02;
            send(cut);
        } else if asked != with_id_of(asked, &query("silent.test")) {
            send(answer(asked, 1));
        }
    }
}

fn answer_streams(listener: &TcpListener, ids: &Mutex<Vec<u16>>) {
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let asked = read_framed(&mut stream).unwrap();
        ids.lock()
            .unwrap()
            .push(u16::from_be_bytes([asked[0], asked[1]]));
        let is_long = asked == with_id_of(&asked, &query("long.test"));
        let message = answer(&asked, if is_long { 300 } else { 1 });
        write_framed(&mut stream, &message).unwrap();
    }
}

fn with_id_of(asked: &[u8], query: &[u8]) -> Vec<u8> {
    [&asked[..2], &query[2..]].concat()
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).unwrap();
    stream.write_all(&[&len.to_be_bytes(), message].concat())
}

/// A query for the address of a name.
pub(crate) fn query(name: &str) -> Vec<u8> {
    let mut message = QUERY_ID.to_be_bytes().to_vec();
    message.extend(b"\x01\0\0\x01\0\0\0\0\0\0");
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend(b"\0\0\x01\0\x01");
    message
}

/// Asks the slot's DNS from within a guest.
pub(crate) fn ask(netns: &str, name: &str) -> io::Result<Vec<u8>> {
    let query = query(name);
    in_netns(netns, move || {
        let socket = UdpSocket::bind((guest::GUEST_ADDR, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.connect((guest::DNS_ADDR, 53))?;
        socket.send(&query)?;
        let mut answer = vec![0; 65_535];
        let len = socket.recv(&mut answer)?;
        answer.truncate(len);
        Ok(answer)
    })
}

/// The same over TCP.
pub(crate) fn ask_over_tcp(netns: &str, name: &str) -> io::Result<Vec<u8>> {
    let query = query(name);
    in_netns(netns, move || {
        let mut stream = TcpStream::connect((guest::DNS_ADDR, 53))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write_framed(&mut stream, &query)?;
        read_framed(&mut stream)
    })
}
