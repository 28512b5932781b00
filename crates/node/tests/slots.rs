//! Network slots with a stand-in guest: a namespace whose tap is wired to the slot's, frame by frame.
//!
//! Needs root, `ip` and `nft`. Each test has an owner tag, an "internet" and guests of its own, so that
//! tests run side by side; traffic never leaves namespaces made here.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod slots {
    pub(crate) mod frames;
    pub(crate) mod lab;
}

use dormouse_core::egress::Egress;
use dormouse_core::{guest, limits};
use dormouse_node::host::check::check;
use dormouse_node::host::cidr::Cidr;
use dormouse_node::host::slot::{Slot, SlotConfig, SlotError, SlotPool};
use slots::frames::{self, BROADCAST, Ip};
use slots::lab::{DnsServer, Guest, Lab, ask, ask_over_tcp, counted, in_netns, names, run};
use std::collections::HashSet;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(5);

async fn pool(lab: &Lab, warm: usize) -> Arc<SlotPool> {
    let config = SlotConfig {
        warm,
        ..SlotConfig::new(lab.owner())
    };
    SlotPool::start(config).await.unwrap()
}

/// What a server of [`Lab::serve`] said to a client in `netns`, or why it could not be reached.
fn fetch(netns: &str, addr: impl Into<SocketAddr>) -> Result<String, ErrorKind> {
    let addr = addr.into();
    in_netns(netns, move || {
        let mut stream = TcpStream::connect_timeout(&addr, SHORT).map_err(|error| error.kind())?;
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut said = String::new();
        stream
            .read_to_string(&mut said)
            .map_err(|error| error.kind())?;
        Ok(said)
    })
}

/// The next datagram, or why there is none.
fn hear(inbox: &UdpSocket) -> Result<String, ErrorKind> {
    let mut datagram = [0; 2048];
    let len = inbox.recv(&mut datagram).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&datagram[..len]).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_pool_keeps_slots_ready_and_hands_them_out() {
    let lab = Lab::new(1);
    let pool = pool(&lab, 3).await;
    lab.wait_for_slots(3).await;

    let ready = lab.slots();
    let slot = pool.acquire().await.unwrap();
    assert!(ready.contains(slot.name()), "it was made in the call");

    // The one taken is made up for.
    lab.wait_for_slots(4).await;
    slot.release().await.unwrap();
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_release_and_stop_leave_nothing() {
    let lab = Lab::new(2);
    let pool = pool(&lab, 1).await;
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    let name = slot.name().to_owned();
    assert!(lab.has_host_table());
    assert!(names("/sys/class/net").contains(&name));

    pool.stop().await;
    assert_eq!(
        lab.slots(),
        HashSet::from([name]),
        "a used slot outlives the pool"
    );
    assert!(lab.has_host_table(), "a used slot keeps its filter");

    drop(guest);
    slot.release().await.unwrap();
    slot.release().await.unwrap();
    assert_eq!(lab.slots(), HashSet::new());
    pool.stop().await;
    assert!(!lab.has_host_table());
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_slots_share_inside_addresses_without_meeting() {
    let lab = Lab::new(3);
    let pool = pool(&lab, 0).await;
    let (one, two) = tokio::try_join!(pool.acquire(), pool.acquire()).unwrap();
    assert_ne!(one.name(), two.name());
    let guest_one = Guest::attach(&lab, &one, 1).await;
    let guest_two = Guest::attach(&lab, &two, 2).await;
    guest_one.serve("one");
    guest_two.serve("two");

    for (slot, own) in [(&one, "one"), (&two, "two")] {
        let mut stream = slot.connect(Lab::PORT).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(
            stream.peer_addr().unwrap().ip(),
            IpAddr::from(guest::GUEST_ADDR)
        );
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, format!("{own} {}", guest::HOST_ADDR));
    }

    // A closed port refuses, as on any host.
    let refused = one.connect(Lab::PORT + 1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    // Neither reaches the other's link.
    lab.serve_in(two.name(), "in slot two");
    let link = lab.link_addresses(two.name());
    for addr in link {
        assert!(
            fetch(guest_one.netns(), (addr, Lab::PORT)).is_err(),
            "{addr}"
        );
    }
    // The host's wall alone keeps even the namespaces themselves apart.
    lab.breach(&one);
    lab.breach(&two);
    let server = (link[1], Lab::PORT);
    assert_eq!(fetch(one.name(), server), Err(ErrorKind::TimedOut));
    // Without it they would meet.
    pool.stop().await;
    run("nft", &["delete", "table", "inet", &lab.host_table()]);
    assert!(fetch(one.name(), server).is_ok());
    release(&pool, [one, two]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_nat_reaches_the_outside_and_nothing_private() {
    let lab = Lab::new(4);
    let pool = pool(&lab, 0).await;
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    lab.serve_outside();

    let said = fetch(guest.netns(), (lab.outside_addr(), Lab::PORT));
    assert_eq!(
        said,
        Ok(format!("outside {}", lab.host_addr())),
        "masqueraded"
    );

    // The private address is the same server's: the host reaches it, the guest does not.
    assert!(TcpStream::connect_timeout(&(lab.private_addr(), Lab::PORT).into(), LONG).is_ok());
    let blocked = [
        lab.private_addr(),
        Ipv4Addr::new(0, 1, 2, 3),
        Ipv4Addr::new(100, 64, 0, 1),
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(172, 16, 0, 1),
        Ipv4Addr::new(192, 168, 0, 1),
        Ipv4Addr::new(198, 19, 255, 255),
    ];
    for addr in blocked {
        let refused = fetch(guest.netns(), (addr, Lab::PORT)).unwrap_err();
        // Refused, not just silent; for 0/8 the guest's own kernel may refuse.
        assert_ne!(refused, ErrorKind::TimedOut, "{addr}");
    }

    // The inner wall stands without the host's, and the host's without the inner.
    run("nft", &["delete", "table", "inet", &lab.host_table()]);
    assert_eq!(
        fetch(guest.netns(), (lab.private_addr(), Lab::PORT)),
        Err(ErrorKind::ConnectionRefused)
    );
    lab.wait_for_host_table().await;
    lab.breach(&slot);
    assert_eq!(fetch(slot.name(), (lab.outside_addr(), Lab::PORT)), said);
    assert_eq!(
        fetch(slot.name(), (lab.private_addr(), Lab::PORT)),
        Err(ErrorKind::TimedOut)
    );
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_configuration_adds_blocked_and_allowed_ranges() {
    let lab = Lab::new(5);
    let range = |addr: Ipv4Addr| addr.to_string().parse::<Cidr>().unwrap();
    let config = SlotConfig {
        warm: 0,
        block: vec![range(lab.outside_addr())],
        allow: vec![range(lab.private_addr()), range(lab.host_addr())],
        ..SlotConfig::new(lab.owner())
    };
    let pool = SlotPool::start(config).await.unwrap();
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    lab.serve_outside();
    lab.serve_on_host();

    let from = guest.netns();
    assert_eq!(
        fetch(from, (lab.outside_addr(), Lab::PORT)),
        Err(ErrorKind::ConnectionRefused)
    );
    assert!(fetch(from, (lab.private_addr(), Lab::PORT)).is_ok());
    let host = fetch(from, (lab.host_addr(), lab.host_port()));
    assert_eq!(
        host,
        Err(ErrorKind::TimedOut),
        "nothing allows the host's own addresses"
    );
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_guest_reaches_no_address_of_the_host() {
    let lab = Lab::new(6);
    let pool = pool(&lab, 0).await;
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    lab.serve_on_host();
    lab.serve_outside();
    lab.serve_in(slot.name(), "slot");
    let uplink = lab.link_addresses(slot.name());
    let mut addrs = lab.all_host_addrs();
    assert!(addrs.contains(&lab.host_addr()) && addrs.contains(&uplink[0]));
    addrs.retain(|addr| !addr.is_loopback());
    for &addr in &addrs {
        let at = (addr, lab.host_port());
        assert!(
            TcpStream::connect_timeout(&at.into(), LONG).is_ok(),
            "{addr} serves"
        );
        assert!(fetch(guest.netns(), at).is_err(), "{addr} from the guest");
    }
    // Nor the host's side of its own namespace, but for DNS.
    for addr in [guest::HOST_ADDR, guest::DNS_ADDR, uplink[1]] {
        assert!(fetch(guest.netns(), (addr, Lab::PORT)).is_err(), "{addr}");
    }
    // The host's wall alone refuses it too, to one who could otherwise reach the outside.
    lab.breach(&slot);
    assert!(fetch(slot.name(), (lab.outside_addr(), Lab::PORT)).is_ok());
    for addr in addrs {
        let at = (addr, lab.host_port());
        assert_eq!(
            fetch(slot.name(), at),
            Err(ErrorKind::TimedOut),
            "{addr} from the slot"
        );
    }
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_outsiders_cannot_open_connections_to_a_guest() {
    let lab = Lab::new(7);
    let pool = pool(&lab, 0).await;
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    guest.serve("guest");
    assert!(slot.connect(Lab::PORT).await.is_ok(), "the host may");

    // A neighbour of the host that routes the slots' network through it.
    let uplink = lab.link_addresses(slot.name())[1];
    lab.serve_in(slot.name(), "slot");
    lab.route_outside_through_host(uplink);
    let refused = Err(ErrorKind::TimedOut);
    assert_eq!(fetch(lab.outside(), (uplink, Lab::PORT)), refused);

    // The host's wall alone refuses it too; without either it works.
    lab.breach(&slot);
    assert_eq!(fetch(lab.outside(), (uplink, Lab::PORT)), refused);
    pool.stop().await;
    run("nft", &["delete", "table", "inet", &lab.host_table()]);
    assert!(fetch(lab.outside(), (uplink, Lab::PORT)).is_ok());
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_spoofed_sources_are_dropped() {
    let lab = Lab::new(8);
    let pool = pool(&lab, 0).await;
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    let inbox = lab.outside_inbox();
    let to = SocketAddr::from((lab.outside_addr(), Lab::PORT));
    let send = |from: Ipv4Addr, what: &'static str| {
        in_netns(guest.netns(), move || {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(what.as_bytes(), to).unwrap();
        });
    };
    let heard = || hear(&inbox);

    send(guest::GUEST_ADDR, "own address");
    assert_eq!(heard(), Ok("own address".into()));

    let forged = Ipv4Addr::new(198, 51, 100, 253);
    guest.ip(&format!("addr add {forged}/32 dev lo"));
    send(forged, "forged address");
    assert_eq!(heard(), Err(ErrorKind::WouldBlock));

    guest.ip("link set tap0 address 02:d0:e0:00:00:99");
    send(guest::GUEST_ADDR, "forged ethernet address");
    assert_eq!(heard(), Err(ErrorKind::WouldBlock));

    guest.ip(&format!("link set tap0 address {}", guest::GUEST_MAC));
    send(guest::GUEST_ADDR, "own again");
    assert_eq!(heard(), Ok("own again".into()));
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_frames_that_no_guest_should_send_are_dropped_and_counted() {
    let lab = Lab::new(18);
    let pool = pool(&lab, 0).await;
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    let inbox = lab.outside_inbox();
    inbox
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let heard = || hear(&inbox);
    let outside = lab.outside_addr();
    let to_outside = |what: &str| Ip::udp(outside, Lab::PORT, what);

    guest.send_raw(&to_outside("plain").frame());
    assert_eq!(heard(), Ok("plain".into()));
    guest.send_raw(&frames::ethernet(0x0806, &frames::own_arp()));
    let before = counted(&slot, "spoofed");

    let packet = to_outside("forged").packet();
    let mut forged = vec![
        frames::ethernet_from([2, 0, 0, 0, 0, 9], BROADCAST, 0x0800, &packet),
        Ip {
            from: Ipv4Addr::new(10, 0, 0, 3),
            ..to_outside("neighbour")
        }
        .frame(),
        Ip {
            from: Ipv4Addr::UNSPECIFIED,
            ..to_outside("nobody")
        }
        .frame(),
        Ip {
            from: Ipv4Addr::LOCALHOST,
            ..to_outside("loopback")
        }
        .frame(),
        Ip {
            from: outside,
            ..to_outside("as the outside")
        }
        .frame(),
        // IPv6, a VLAN within, PPPoE, LLDP, a length in place of a type.
        frames::ethernet(0x86dd, &[0x60; 60]),
        frames::ethernet(0x8100, &[&[0, 5, 8, 0], &packet[..]].concat()),
        frames::ethernet(0x8864, &packet),
        frames::ethernet(0x88cc, &packet),
        frames::ethernet(60, &packet),
    ];
    forged.extend(frames::forged_arps().map(|arp| frames::ethernet(0x0806, &arp)));
    for frame in &forged {
        guest.send_raw(frame);
    }
    assert_eq!(heard(), Err(ErrorKind::WouldBlock));
    // The stand-in's kernel speaks some IPv6 of its own.
    assert!(counted(&slot, "spoofed") >= before + forged.len() as u64);

    // The guest's own address, but packets that no stack sends: they harm nobody and arrive nowhere.
    let source_route = vec![131, 7, 4, 10, 77, 18, 1, 0];
    let mut longer_than_it_is = packet.clone();
    longer_than_it_is[3] = 0xff;
    let mut short_head = packet.clone();
    short_head[0] = 0x41;
    let mut version = packet.clone();
    version[0] = 0x65;
    let tiny = Ip {
        fragment: 0x2000,
        payload: vec![0; 4],
        ..to_outside("")
    };
    let overlapping = Ip {
        fragment: 0x0001,
        ..to_outside("over the head")
    };
    let endless = Ip {
        fragment: 0x3fff,
        ..to_outside("beyond the end")
    };
    for odd in [
        Ip {
            options: source_route,
            ..to_outside("by way of")
        }
        .frame(),
        frames::ethernet(0x0800, &longer_than_it_is),
        frames::ethernet(0x0800, &short_head),
        frames::ethernet(0x0800, &version),
        frames::ethernet(0x0800, &packet[..12]),
        frames::ethernet(0x0800, &[]),
        tiny.frame(),
        overlapping.frame(),
        endless.frame(),
        vec![0; 14],
    ] {
        guest.send_raw(&odd);
    }
    assert_eq!(heard(), Err(ErrorKind::WouldBlock));

    let before = counted(&slot, "refused");
    for private in [
        Ipv4Addr::new(10, 77, 17, 1),
        guest::HOST_ADDR,
        Ipv4Addr::BROADCAST,
    ] {
        guest.send_raw(&Ip::udp(private, Lab::PORT, "private").frame());
    }
    assert!(counted(&slot, "refused") > before, "refusals are counted");
    guest.send_raw(&to_outside("still here").frame());
    assert_eq!(heard(), Ok("still here".into()));
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_guest_has_a_bounded_number_of_connections() {
    let lab = Lab::new(9);
    let pool = pool(&lab, 0).await;
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    lab.serve_outside();
    let addr = lab.outside_addr();
    let flows = limits::SLOT_CONNECTIONS_MAX as usize + 500;
    in_netns(guest.netns(), move || {
        let socket = UdpSocket::bind((guest::GUEST_ADDR, 0)).unwrap();
        for port in 0..flows {
            // Each port is a flow of its own. A full queue loses some: that is what the margin is for.
            let port = 10_000 + u16::try_from(port).unwrap();
            let _ = socket.send_to(b"x", (addr, port));
            if port % 50 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let tracked = tracked_connections(&slot);
    let most = limits::SLOT_CONNECTIONS_MAX;
    assert!(
        (most / 2..=most + 8).contains(&tracked),
        "{tracked} connections"
    );
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_guest_has_a_bounded_number_of_flows_to_its_resolver() {
    let lab = Lab::new(19);
    let pool = pool(&lab, 0).await;
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;
    in_netns(guest.netns(), || {
        for flow in 0..limits::SLOT_NAME_FLOWS_MAX + 500 {
            // No query, so that nothing answers; each port is a flow of its own.
            let port = 10_000 + u16::try_from(flow).unwrap();
            let socket = UdpSocket::bind((guest::GUEST_ADDR, port)).unwrap();
            let _ = socket.send_to(b"x", (guest::DNS_ADDR, 53));
            if port % 50 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let tracked = tracked_connections(&slot);
    let most = limits::SLOT_NAME_FLOWS_MAX;
    assert!((most / 2..=most + 8).contains(&tracked), "{tracked} flows");
    release(&pool, [slot]).await;
}

/// Connections that the kernel keeps track of in a slot.
fn tracked_connections(slot: &Slot) -> u32 {
    let tracked = in_netns(slot.name(), || {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap()
    });
    tracked.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_dns_is_forwarded_over_udp_and_tcp() {
    let lab = Lab::new(10);
    let server = DnsServer::start();
    let config = SlotConfig {
        warm: 0,
        resolvers: vec![server.addr()],
        ..SlotConfig::new(lab.owner())
    };
    let pool = SlotPool::start(config).await.unwrap();
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;

    let answer = ask(guest.netns(), "plain.test").unwrap();
    assert_eq!(answer, DnsServer::answer_to("plain.test"));
    // The server sends a forged answer first: wrong id, then wrong name.
    let answer = ask(guest.netns(), "forged.test").unwrap();
    assert_eq!(answer, DnsServer::answer_to("forged.test"));
    // Too long for a datagram: cut short over UDP, whole over TCP.
    let cut = ask(guest.netns(), "long.test").unwrap();
    assert_eq!(cut[2] & 0x02, 0x02, "truncated");
    let whole = ask_over_tcp(guest.netns(), "long.test").unwrap();
    assert_eq!(whole, DnsServer::answer_to("long.test"));
    assert!(whole.len() > 4096);

    // Ids seen by the resolver are not those of the guest.
    let ids = server.ids_seen();
    assert!(
        ids.iter().filter(|id| **id == slots::lab::QUERY_ID).count() <= 1,
        "{ids:?}"
    );
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_dns_fails_cleanly_and_bounds_what_is_in_flight() {
    let lab = Lab::new(11);
    let server = DnsServer::start();
    let closed = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = SlotConfig {
        warm: 0,
        resolvers: vec![closed, server.addr()],
        ..SlotConfig::new(lab.owner())
    };
    let pool = SlotPool::start(config).await.unwrap();
    let slot = pool.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &slot, 1).await;

    // The second resolver answers for a dead first one.
    assert_eq!(
        ask(guest.netns(), "plain.test").unwrap(),
        DnsServer::answer_to("plain.test")
    );
    // Nobody answers: the guest is told so.
    let failure = ask(guest.netns(), "silent.test").unwrap();
    assert_eq!(failure[3] & 0x0f, 2, "server failure");

    let before = server.ids_seen().len();
    in_netns(guest.netns(), || {
        let socket = UdpSocket::bind((guest::GUEST_ADDR, 0)).unwrap();
        let query = slots::lab::query("silent.test");
        for _ in 0..limits::DNS_IN_FLIGHT_MAX * 3 {
            socket.send_to(&query, (guest::DNS_ADDR, 53)).unwrap();
        }
        // And things that are no queries at all.
        for junk in [&b""[..], b"x", &[0xff; 2000], &[0; 12]] {
            socket.send_to(junk, (guest::DNS_ADDR, 53)).unwrap();
        }
    });
    tokio::time::sleep(SHORT).await;
    assert_eq!(server.ids_seen().len() - before, limits::DNS_IN_FLIGHT_MAX);
    // Once those have run out of time there is room again.
    tokio::time::sleep(limits::DNS_TIMEOUT).await;
    assert_eq!(
        ask(guest.netns(), "plain.test").unwrap(),
        DnsServer::answer_to("plain.test")
    );
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_slots_are_adopted_and_orphans_deleted() {
    let lab = Lab::new(12);
    let server = DnsServer::start();
    let config = SlotConfig {
        warm: 0,
        resolvers: vec![server.addr()],
        ..SlotConfig::new(lab.owner())
    };
    let first = SlotPool::start(config.clone()).await.unwrap();
    let used = first.acquire().await.unwrap();
    let orphan = first.acquire().await.unwrap();
    let guest = Guest::attach(&lab, &used, 1).await;
    guest.serve("still here");
    let name = used.name().to_owned();
    assert!(matches!(
        first.adopt(&name, &Egress::internet()).await,
        Err(SlotError::InUse(_))
    ));
    drop((used, orphan, first));

    let second = SlotPool::start(config).await.unwrap();
    let fresh = second.acquire().await.unwrap();
    let keep = HashSet::from([name.clone()]);
    assert_eq!(second.release_orphans(&keep).await.unwrap(), 1);
    assert_eq!(
        lab.slots(),
        HashSet::from([name.clone(), fresh.name().to_owned()])
    );

    // Someone tampered with the rules; adopting puts them right.
    run("ip", &["netns", "exec", &name, "nft", "flush", "ruleset"]);
    let adopted = second
        .adopt(&name, &Egress::internet())
        .await
        .unwrap()
        .unwrap();
    assert!(adopted.connect(Lab::PORT).await.is_ok());
    assert_eq!(
        ask(guest.netns(), "plain.test").unwrap(),
        DnsServer::answer_to("plain.test")
    );
    assert_eq!(
        fetch(guest.netns(), (Ipv4Addr::new(192, 168, 0, 1), 80)),
        Err(ErrorKind::ConnectionRefused)
    );

    let gone = format!("dm{}-4000", lab.owner());
    assert!(
        second
            .adopt(&gone, &Egress::internet())
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        second
            .adopt("dmother-1", &Egress::internet())
            .await
            .is_err()
    );
    assert!(
        second
            .adopt("../../etc", &Egress::internet())
            .await
            .is_err()
    );

    // Half a slot is deleted, not adopted.
    run("ip", &["netns", "add", &gone]);
    assert!(
        second
            .adopt(&gone, &Egress::internet())
            .await
            .unwrap()
            .is_none()
    );
    assert!(!lab.slots().contains(&gone));

    // One that nobody has is deleted by its name, whole or not.
    assert!(matches!(
        second.delete(&name).await,
        Err(SlotError::InUse(_))
    ));
    drop(adopted);
    run("ip", &["netns", "exec", &name, "ip", "link", "del", "tap0"]);
    second.delete(&name).await.unwrap();
    assert!(!lab.slots().contains(&name));
    second.delete(&name).await.unwrap();
    assert!(second.delete("dmother-1").await.is_err());
    release(&second, [fresh]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_owners_never_share_a_number() {
    let (lab_one, lab_two) = (Lab::new(13), Lab::new(14));
    let one = pool(&lab_one, 2).await;
    let two = pool(&lab_two, 2).await;
    let mut slots = Vec::new();
    for _ in 0..4 {
        let (a, b) = tokio::try_join!(one.acquire(), two.acquire()).unwrap();
        slots.extend([a, b]);
    }
    let numbers: HashSet<&str> = slots
        .iter()
        .map(|slot| slot.name().split_once('-').unwrap().1)
        .collect();
    assert_eq!(numbers.len(), slots.len(), "{slots:?}");

    assert_eq!(
        one.release_orphans(&HashSet::new()).await.unwrap(),
        0,
        "none is an orphan"
    );
    for slot in slots {
        slot.release().await.unwrap();
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_tap_has_one_opener_and_carries_virtio_headers() {
    let lab = Lab::new(15);
    let pool = pool(&lab, 0).await;
    let slot = pool.acquire().await.unwrap();
    let tap = slot.open_tap().await.unwrap();
    let busy = slot.open_tap().await.unwrap_err();
    assert!(matches!(busy, SlotError::Io { .. }), "{busy}");
    drop(tap);
    assert!(slot.open_tap().await.is_ok(), "the tap outlives its opener");
    release(&pool, [slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_caller_that_gives_up_leaves_no_slot() {
    let lab = Lab::new(16);
    let pool = pool(&lab, 0).await;
    let impatient = tokio::time::timeout(Duration::from_millis(1), pool.acquire()).await;
    assert!(impatient.is_err());
    tokio::time::sleep(SHORT).await;
    assert_eq!(lab.slots(), HashSet::new());
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_senseless_configurations_are_refused() {
    for owner in ["", "toolong", "A", "a-b", "ä"] {
        let refused = SlotPool::start(SlotConfig::new(owner)).await;
        assert!(matches!(refused, Err(SlotError::Config(_))), "{owner:?}");
    }
    let config = SlotConfig {
        network: "198.18.0.0/32".parse().unwrap(),
        ..SlotConfig::new("a")
    };
    assert!(matches!(
        SlotPool::start(config).await,
        Err(SlotError::Config(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_pool_that_is_full_says_so() {
    let lab = Lab::new(17);
    // A network of two slots. Other tests' slots may take its numbers; then it is full sooner.
    let config = SlotConfig {
        warm: 0,
        network: "198.19.255.0/30".parse().unwrap(),
        ..SlotConfig::new(lab.owner())
    };
    let pool = SlotPool::start(config).await.unwrap();
    let mut slots = Vec::new();
    let error = loop {
        match pool.acquire().await {
            Ok(slot) => slots.push(slot),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SlotError::Full), "{error}");
    assert!(slots.len() <= 2);
    for slot in slots {
        slot.release().await.unwrap();
    }
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netns_check_finds_this_host_fit() {
    let checks = check().await;
    assert!(checks.len() >= 5);
    for check in checks {
        assert!(check.ok, "{check:?}");
    }
}

async fn release<const N: usize>(pool: &SlotPool, slots: [Slot; N]) {
    for slot in slots {
        slot.release().await.unwrap();
    }
    pool.stop().await;
}
