//! The text of both packet filters: inside each slot, and on the host as a second wall.
//!
//! What a guest may do, by the inside rules: ask [`guest::DNS_ADDR`] for names, answer connections that
//! the host opened, and open connections to addresses that are not [`BLOCKED`]; or, where its egress says
//! so, to some ranges alone, or to nothing and without names. Connections to anything else are
//! reset, so that programs fail fast; all else is dropped. No ICMP says so, for the kernel limits its rate
//! for all slots together. The host's rules block the same again, and the host's own addresses too,
//! before any other rule of the host can rewrite a destination; they are alike for all slots, so that what
//! one slot's egress opens is kept from the others by the inside rules alone.

use super::cidr::Cidr;
use super::plumbing::{TAP, UPLINK};
use dormouse_core::egress::Egress;
use dormouse_core::{guest, limits};
use std::fmt::Write;

/// What no guest reaches, on any host.
pub(crate) use dormouse_core::egress::NOT_PUBLIC as BLOCKED;

/// Which destinations are blocked, and which are let through all the same.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    blocked: Vec<Cidr>,
    allowed: Vec<Cidr>,
    /// What a slot may be given beside that.
    reachable: Vec<Cidr>,
}

impl Policy {
    /// The constant ranges, the slots' own network and what the configuration adds.
    pub(crate) fn new(
        network: Cidr,
        block: Vec<Cidr>,
        allowed: Vec<Cidr>,
        reachable: Vec<Cidr>,
    ) -> Self {
        let mut blocked = BLOCKED.to_vec();
        blocked.push(network);
        blocked.extend(block);
        blocked.sort_unstable();
        blocked.dedup();
        Self {
            blocked,
            allowed,
            reachable,
        }
    }

    /// The sets that both rule texts refer to.
    fn sets(&self, allowed: &[Cidr]) -> String {
        let mut text = String::new();
        for (name, ranges) in [("allowed", allowed), ("blocked", &self.blocked)] {
            let _ = writeln!(text, "  set {name} {{");
            let _ = writeln!(text, "    type ipv4_addr; flags interval; auto-merge");
            // nft takes an empty set, but no empty list of elements.
            if !ranges.is_empty() {
                let ranges: Vec<String> = ranges.iter().map(Cidr::to_string).collect();
                let _ = writeln!(text, "    elements = {{ {} }}", ranges.join(", "));
            }
            let _ = writeln!(text, "  }}");
        }
        text
    }

    /// The rules inside a slot with this egress. Loading them again replaces them at once.
    pub(crate) fn slot_rules(&self, egress: &Egress) -> String {
        let (allowed, otherwise) = if egress.internet {
            let allowed = [&self.allowed[..], &egress.ranges].concat();
            (allowed, "ip daddr @blocked goto refuse\n    goto open")
        } else {
            (egress.ranges.clone(), "goto refuse")
        };
        // A name that is asked for can carry data out, too.
        let names = if egress.is_none() {
            String::new()
        } else {
            let dns = guest::DNS_ADDR;
            format!(
                "    iifname \"{TAP}\" ip daddr {dns} meta l4proto {{ tcp, udp }} th dport 53 goto names\n"
            )
        };
        format!(
            r#"add table netdev dormouse
delete table netdev dormouse
table netdev dormouse {{
  counter spoofed {{ }}
  chain guest {{
    type filter hook ingress device "{TAP}" priority filter; policy drop;
    ether saddr != {mac} counter name spoofed drop
    ether type ip ip saddr {guest} accept
    arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether {mac} arp saddr ip {guest} accept
    counter name spoofed drop
  }}
}}
add table inet dormouse
delete table inet dormouse
table inet dormouse {{
  counter invalid {{ }}
  counter refused {{ }}
  counter excess {{ }}
{sets}  chain input {{
    type filter hook input priority filter; policy drop;
    ct state invalid counter name invalid drop
    iifname "{TAP}" ct state established,related accept
{names}    iifname "{TAP}" counter name refused drop
  }}
  chain names {{
    ct state new ct count over {name_flows} counter name excess drop
    accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid counter name invalid drop
    ct state established,related accept
    iifname "{TAP}" oifname "{UPLINK}" goto outbound
  }}
  chain outbound {{
    ip daddr @allowed goto open
    {otherwise}
  }}
  chain refuse {{
    counter name refused
    meta l4proto tcp reject with tcp reset
    drop
  }}
  chain open {{
    ct state new ct count over {connections} counter name excess drop
    accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{UPLINK}" masquerade
  }}
}}
"#,
            mac = guest::GUEST_MAC,
            guest = guest::GUEST_ADDR,
            sets = self.sets(&allowed),
            name_flows = limits::SLOT_NAME_FLOWS_MAX,
            connections = limits::SLOT_CONNECTIONS_MAX,
        )
    }

    /// The host's rules for the slots of one owner. Loading them again replaces them at once.
    pub(crate) fn host_rules(&self, owner: &str) -> String {
        let table = host_table(owner);
        let allowed = [&self.allowed[..], &self.reachable].concat();
        format!(
            r#"add table inet {table}
delete table inet {table}
table inet {table} {{
{sets}  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "dm{owner}-*" accept
    meta nfproto != ipv4 drop
    fib saddr . iif oif missing drop
    fib daddr type != unicast drop
    ip daddr @allowed accept
    ip daddr @blocked drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "dm{owner}-*" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "dm{owner}-*" oifname "dm{owner}-*" drop
    oifname "dm{owner}-*" ct state != {{ established, related }} drop
    iifname "dm{owner}-*" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    oifname "dm{owner}-*" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname "dm{owner}-*" masquerade
  }}
}}
"#,
            sets = self.sets(&allowed),
        )
    }
}

/// Name of the host's table for an owner's slots.
pub(crate) fn host_table(owner: &str) -> String {
    format!("dormouse_{owner}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn policy() -> Policy {
        let network = Cidr::literal([198, 18, 0, 0], 15);
        Policy::new(
            network,
            vec![Cidr::literal([203, 0, 113, 8], 29)],
            vec![],
            vec![],
        )
    }

    #[test]
    fn rules_inside_a_slot() {
        expect![[r#"
            add table netdev dormouse
            delete table netdev dormouse
            table netdev dormouse {
              counter spoofed { }
              chain guest {
                type filter hook ingress device "tap0" priority filter; policy drop;
                ether saddr != 02:d0:e0:00:00:02 counter name spoofed drop
                ether type ip ip saddr 10.0.0.2 accept
                arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether 02:d0:e0:00:00:02 arp saddr ip 10.0.0.2 accept
                counter name spoofed drop
              }
            }
            add table inet dormouse
            delete table inet dormouse
            table inet dormouse {
              counter invalid { }
              counter refused { }
              counter excess { }
              set allowed {
                type ipv4_addr; flags interval; auto-merge
              }
              set blocked {
                type ipv4_addr; flags interval; auto-merge
                elements = { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16/32, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 203.0.113.8/29, 224.0.0.0/4, 240.0.0.0/4 }
              }
              chain input {
                type filter hook input priority filter; policy drop;
                ct state invalid counter name invalid drop
                iifname "tap0" ct state established,related accept
                iifname "tap0" ip daddr 169.254.53.53 meta l4proto { tcp, udp } th dport 53 goto names
                iifname "tap0" counter name refused drop
              }
              chain names {
                ct state new ct count over 2048 counter name excess drop
                accept
              }
              chain forward {
                type filter hook forward priority filter; policy drop;
                ct state invalid counter name invalid drop
                ct state established,related accept
                iifname "tap0" oifname "uplink" goto outbound
              }
              chain outbound {
                ip daddr @allowed goto open
                ip daddr @blocked goto refuse
                goto open
              }
              chain refuse {
                counter name refused
                meta l4proto tcp reject with tcp reset
                drop
              }
              chain open {
                ct state new ct count over 4096 counter name excess drop
                accept
              }
              chain postrouting {
                type nat hook postrouting priority srcnat; policy accept;
                oifname "uplink" masquerade
              }
            }
        "#]].assert_eq(&policy().slot_rules(&Egress::internet()));
    }

    #[test]
    fn rules_on_the_host() {
        expect![[r#"
            add table inet dormouse_a1
            delete table inet dormouse_a1
            table inet dormouse_a1 {
              set allowed {
                type ipv4_addr; flags interval; auto-merge
              }
              set blocked {
                type ipv4_addr; flags interval; auto-merge
                elements = { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16/32, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 203.0.113.8/29, 224.0.0.0/4, 240.0.0.0/4 }
              }
              chain prerouting {
                type filter hook prerouting priority raw; policy accept;
                iifname != "dma1-*" accept
                meta nfproto != ipv4 drop
                fib saddr . iif oif missing drop
                fib daddr type != unicast drop
                ip daddr @allowed accept
                ip daddr @blocked drop
              }
              chain input {
                type filter hook input priority filter; policy accept;
                iifname "dma1-*" drop
              }
              chain forward {
                type filter hook forward priority filter; policy accept;
                iifname "dma1-*" oifname "dma1-*" drop
                oifname "dma1-*" ct state != { established, related } drop
                iifname "dma1-*" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
                oifname "dma1-*" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
              }
              chain postrouting {
                type nat hook postrouting priority srcnat; policy accept;
                iifname "dma1-*" masquerade
              }
            }
        "#]].assert_eq(&policy().host_rules("a1"));
    }

    #[test]
    fn allowed_ranges_go_before_blocked_ones() {
        let policy = Policy::new(
            Cidr::literal([198, 18, 0, 0], 15),
            vec![],
            vec![Cidr::literal([10, 1, 2, 0], 24)],
            vec![],
        );
        let rules = policy.slot_rules(&Egress::internet());
        assert!(rules.contains("elements = { 10.1.2.0/24 }"), "{rules}");
        let allowed = rules.find("ip daddr @allowed").unwrap();
        assert!(
            allowed < rules.find("ip daddr @blocked").unwrap(),
            "{rules}"
        );
    }

    /// The rules of the chain that decides on new connections, and whether names may be asked for.
    fn outbound(egress: &Egress) -> (String, bool) {
        let rules = policy().slot_rules(egress);
        let (_, chain) = rules.split_once("chain outbound {\n").unwrap();
        let (chain, _) = chain.split_once("\n  }").unwrap();
        (chain.to_owned(), rules.contains("th dport 53 goto names"))
    }

    #[test]
    fn a_slot_without_egress_opens_nothing() {
        let (chain, names) = outbound(&Egress::NONE);
        assert_eq!(chain, "    ip daddr @allowed goto open\n    goto refuse");
        assert!(!names);
        let rules = policy().slot_rules(&Egress::NONE);
        let set = "set allowed {\n    type ipv4_addr; flags interval; auto-merge\n  }";
        assert!(rules.contains(set), "{rules}");
    }

    #[test]
    fn a_slots_own_ranges_are_all_that_it_reaches_or_come_on_top() {
        let ranges = vec![Cidr::literal([10, 1, 0, 0], 16)];
        let alone = Egress {
            internet: false,
            ranges: ranges.clone(),
        };
        let (chain, names) = outbound(&alone);
        assert!(chain.ends_with("goto refuse"), "{chain}");
        assert!(names);
        let rules = policy().slot_rules(&alone);
        assert!(rules.contains("elements = { 10.1.0.0/16 }"), "{rules}");
        let both = Egress {
            internet: true,
            ranges,
        };
        assert_eq!(outbound(&both), outbound(&Egress::internet()));
        let rules = policy().slot_rules(&both);
        assert!(rules.contains("elements = { 10.1.0.0/16 }"), "{rules}");
    }

    #[test]
    fn the_host_lets_through_what_some_slot_may_be_given() {
        let network = Cidr::literal([198, 18, 0, 0], 15);
        let given = vec![Cidr::literal([10, 1, 0, 0], 16)];
        let policy = Policy::new(network, vec![], vec![], given);
        let host = policy.host_rules("a1");
        assert!(host.contains("elements = { 10.1.0.0/16 }"), "{host}");
        let slot = policy.slot_rules(&Egress::internet());
        assert!(!slot.contains("10.1.0.0/16"), "{slot}");
    }

    #[test]
    fn documentation_ranges_are_not_blocked() {
        for range in ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"] {
            let range: Cidr = range.parse().unwrap();
            assert!(
                BLOCKED.iter().all(|blocked| !blocked.overlaps(range)),
                "{range}"
            );
        }
    }
}
