//! The DNS answerer: authoritative for the endpoint domain, where every name has the same addresses.
//!
//! For hosts whose resolver is pointed at it, and for zones that are delegated to it. It knows nothing else,
//! asks nobody, and answers each packet by itself.

use crate::config::DnsConfig;
use dormouse_core::limits;
use dormouse_ingress::Challenges;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Seconds that an answer may be kept for.
const TTL_S: u32 = 60;
const HEADER_BYTES: usize = 12;
/// Largest answer by UDP to a client that says nothing about what it takes, in bytes.
const UDP_BYTES: u16 = 512;
/// Largest answer by UDP to any client, in bytes: what passes everywhere in one piece.
const UDP_BYTES_MAX: u16 = 1232;
/// Pause after a socket failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Where queries come in.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Listens by UDP and TCP on one address.
    pub(crate) async fn bind(addr: SocketAddr) -> io::Result<Self> {
        let tcp = TcpListener::bind(addr).await?;
        let udp = UdpSocket::bind(tcp.local_addr()?).await?;
        Ok(Self { udp, tcp })
    }
}

/// What is answered.
#[derive(Debug)]
pub(crate) struct Zone {
    domain: Name,
    challenge: Name,
    addresses: Vec<IpAddr>,
    challenges: Arc<Challenges>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

impl Zone {
    /// The zone of `domain`, a checked domain name.
    pub(crate) fn new(domain: &str, config: &DnsConfig, challenges: Arc<Challenges>) -> Self {
        let name = |text: String| Name::from_ascii(text).expect("the configuration is checked");
        Self {
            domain: name(format!("{domain}.")),
            challenge: name(format!("_acme-challenge.{domain}.")),
            addresses: config.addresses.clone(),
            challenges,
        }
    }

    /// The answer to a packet; none to what is no query, so that two answerers never talk for ever.
    fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match Message::from_vec(packet) {
            Ok(message) if message.metadata.message_type == MessageType::Query => message,
            Ok(_) => return None,
            Err(_) => return malformed(packet),
        };
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.add_queries(query.queries.iter().cloned());
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            answer.set_edns(edns);
        }
        answer.metadata.response_code = match (query.metadata.op_code, query.queries.as_slice()) {
            (OpCode::Query, [question]) => self.look_up(question, &mut answer),
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        let bytes = answer.to_vec().ok()?;
        let room = query.edns.map_or(UDP_BYTES, |edns| edns.max_payload());
        let room = usize::from(room.clamp(UDP_BYTES, UDP_BYTES_MAX));
        match transport {
            Transport::Udp if bytes.len() > room => answer.truncate().to_vec().ok(),
            _ => Some(bytes),
        }
    }

    fn look_up(&self, question: &Query, answer: &mut Message) -> ResponseCode {
        let name = question.name();
        if question.query_class() != DNSClass::IN || !self.domain.zone_of(name) {
            return ResponseCode::Refused;
        }
        answer.metadata.authoritative = true;
        let record = |data| Record::from_rdata(name.clone(), TTL_S, data);
        answer.add_answers(
            self.data(name, question.query_type())
                .into_iter()
                .map(record),
        );
        if answer.answers.is_empty() {
            answer.add_authority(Record::from_rdata(self.domain.clone(), TTL_S, self.soa()));
        }
        ResponseCode::NoError
    }

    fn data(&self, name: &Name, kind: RecordType) -> Vec<RData> {
        let is_apex = *name == self.domain;
        let addresses = self.addresses.iter();
        match kind {
            RecordType::A => addresses
                .filter_map(|ip| match ip {
                    IpAddr::V4(ip) => Some(RData::A(A(*ip))),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            RecordType::AAAA => addresses
                .filter_map(|ip| match ip {
                    IpAddr::V6(ip) => Some(RData::AAAA(AAAA(*ip))),
                    IpAddr::V4(_) => None,
                })
                .collect(),
            RecordType::SOA if is_apex => vec![self.soa()],
            RecordType::NS if is_apex => vec![RData::NS(NS(self.domain.clone()))],
            RecordType::TXT if *name == self.challenge => {
                let values = self.challenges.values().into_iter();
                values
                    .map(|value| RData::TXT(TXT::new(vec![value])))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn soa(&self) -> RData {
        let (server, mailbox) = (self.domain.clone(), self.domain.clone());
        RData::SOA(SOA::new(server, mailbox, 1, 3600, 600, 86_400, TTL_S))
    }
}

/// Says of a packet that it cannot be read, if it looks like a query at all.
fn malformed(packet: &[u8]) -> Option<Vec<u8>> {
    let is_answer = |flags: u8| flags & 0x80 != 0;
    let [high, low, flags, ..] = *packet else {
        return None;
    };
    if packet.len() < HEADER_BYTES || is_answer(flags) {
        return None;
    }
    let id = u16::from_be_bytes([high, low]);
    let error = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    error.to_vec().ok()
}

/// Answers until `stop`.
pub(crate) async fn serve(sockets: Sockets, zone: Zone, stop: CancellationToken) {
    let zone = Arc::new(zone);
    let both = async { tokio::join!(by_udp(sockets.udp, &zone), by_tcp(sockets.tcp, &zone)) };
    stop.run_until_cancelled(both).await;
}

async fn by_udp(socket: UdpSocket, zone: &Zone) {
    let mut packet = [0; limits::DNS_QUERY_BYTES_MAX];
    loop {
        match socket.recv_from(&mut packet).await {
            Ok((length, client)) => {
                if let Some(answer) = zone.answer(&packet[..length], Transport::Udp)
                    && let Err(error) = socket.send_to(&answer, client).await
                {
                    tracing::debug!(%error, "no answer sent to a DNS query");
                }
            }
            // Mostly a client that is gone, told by ICMP.
            Err(error) => {
                tracing::debug!(%error, "no DNS query received");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn by_tcp(listener: TcpListener, zone: &Arc<Zone>) {
    let places = Arc::new(Semaphore::new(limits::DNS_CONNECTIONS_MAX));
    // Ends its connections when it is dropped with this future.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let zone = Arc::clone(zone);
                connections.spawn(async move {
                    if let Err(error) = converse(stream, &zone).await {
                        tracing::debug!(%error, "a DNS connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "no DNS connection accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers the queries of one connection until it is silent for too long or says what is no query.
async fn converse(mut stream: TcpStream, zone: &Zone) -> io::Result<()> {
    loop {
        let packet = timeout(limits::DNS_TIMEOUT, query(&mut stream)).await??;
        let Some(answer) = zone.answer(&packet, Transport::Tcp) else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        timeout(limits::DNS_TIMEOUT, stream.write_all(&framed)).await??;
    }
}

async fn query(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limits::DNS_QUERY_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DOMAIN: &str = "vm.example.com";

    fn zone(addresses: &[&str]) -> Zone {
        let config = DnsConfig {
            addr: "127.0.0.1:0".parse().unwrap(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        Zone::new(DOMAIN, &config, Arc::default())
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn ask(zone: &Zone, message: &Message) -> Message {
        let answer = zone.answer(&message.to_vec().unwrap(), Transport::Udp);
        Message::from_vec(&answer.expect("an answer")).unwrap()
    }

    #[test]
    fn every_name_of_the_domain_has_its_addresses_and_no_other_name_has_any() {
        let zone = zone(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        let counts = |name: &str, kind| {
            let answer = ask(&zone, &query(name, kind));
            let code = answer.metadata.response_code;
            (code, answer.answers.len(), answer.authorities.len())
        };
        use ResponseCode::{NoError, Refused};
        for name in [
            "vm.example.com.",
            "x.VM.example.com.",
            "a.b.vm.example.com.",
        ] {
            assert_eq!(counts(name, RecordType::A), (NoError, 2, 0), "{name}");
            assert_eq!(counts(name, RecordType::AAAA), (NoError, 1, 0), "{name}");
            assert_eq!(counts(name, RecordType::MX), (NoError, 0, 1), "{name}");
        }
        assert_eq!(counts("vm.example.com.", RecordType::SOA), (NoError, 1, 0));
        assert_eq!(counts("vm.example.com.", RecordType::NS), (NoError, 1, 0));
        assert_eq!(
            counts("x.vm.example.com.", RecordType::SOA),
            (NoError, 0, 1)
        );
        for name in ["example.com.", "xvm.example.com.", "vm.example.org.", "."] {
            assert_eq!(counts(name, RecordType::A), (Refused, 0, 0), "{name}");
        }
        let challenge = "_acme-challenge.vm.example.com.";
        assert_eq!(counts(challenge, RecordType::TXT), (NoError, 0, 1));
    }

    #[test]
    fn what_is_no_plain_question_is_refused_or_ignored() {
        let zone = zone(&["192.0.2.1"]);
        let code = |message: &Message| ask(&zone, message).metadata.response_code;
        let good = query("vm.example.com.", RecordType::A);
        let mut two = good.clone();
        two.add_query(two.queries[0].clone());
        assert_eq!(code(&two), ResponseCode::FormErr);
        let update = Message::new(7, MessageType::Query, OpCode::Update);
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut chaos = good.clone();
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos), ResponseCode::Refused);

        let answer = good.clone().into_response().to_vec().unwrap();
        assert_eq!(zone.answer(&answer, Transport::Udp), None);
        let bytes = good.to_vec().unwrap();
        let cut = zone.answer(&bytes[..bytes.len() - 1], Transport::Udp);
        let cut = Message::from_vec(&cut.unwrap()).unwrap().metadata;
        assert_eq!((cut.id, cut.response_code), (7, ResponseCode::FormErr));
        assert_eq!(
            zone.answer(&bytes[..HEADER_BYTES - 1], Transport::Udp),
            None
        );
    }

    #[test]
    fn an_answer_fits_what_the_client_takes() {
        let most: Vec<String> = (1..=8).map(|n| format!("2001:db8::{n}")).collect();
        let most: Vec<&str> = most.iter().map(String::as_str).collect();
        let zone = zone(&most);
        let long = format!("{0}.{0}.{0}.vm.example.com.", "x".repeat(63));
        let answer = ask(&zone, &query(&long, RecordType::AAAA));
        assert_eq!(
            (answer.answers.len(), answer.metadata.truncation),
            (8, false)
        );
    }

    proptest! {
        #[test]
        fn whatever_packet_comes_nothing_breaks(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            let zone = zone(&["192.0.2.1"]);
            if let Some(answer) = zone.answer(&packet, Transport::Udp) {
                prop_assert!(answer.len() <= usize::from(UDP_BYTES_MAX));
                prop_assert_eq!(&answer[..2], &packet[..2]);
            }
        }

        #[test]
        fn a_query_with_one_byte_changed_breaks_nothing(position in 0_usize..32, byte: u8) {
            let zone = zone(&["192.0.2.1"]);
            let mut packet = query("x.vm.example.com.", RecordType::A).to_vec().unwrap();
            let position = position % packet.len();
            packet[position] = byte;
            zone.answer(&packet, Transport::Udp);
        }
    }
}
