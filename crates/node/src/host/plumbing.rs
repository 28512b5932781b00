//! The kernel's side of a slot: namespace, links, addresses and rules, made with `ip` and `nft`.
//!
//! Two names matter. `dmOWNER-N` is the namespace and the host's end of its uplink; the alternative name
//! `dormouse-slot-N` on that link claims the number for all daemons of the host, since the kernel lets
//! no two links share one. Both go when the link goes, so a claim cannot outlive its slot.

use super::cgroup::{Cgroups, Share};
use super::cidr::Cidr;
use super::netns::NetnsThread;
use super::rules::{Policy, host_table};
use super::slot::SlotError;
use dormouse_core::egress::Egress;
use dormouse_core::{guest, limits};
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The guest's tap, inside each slot.
pub(crate) const TAP: &str = "tap0";
/// The slot's end of the link to the host.
pub(crate) const UPLINK: &str = "uplink";
/// The tap's Ethernet address. Snapshots remember it as their gateway's, so it is alike in every slot.
const TAP_MAC: &str = "02:d0:e0:00:00:01";
/// Where `ip netns` keeps namespaces by name.
const NETNS_DIR: &str = "/run/netns";
const LINKS_DIR: &str = "/sys/class/net";
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Makes and deletes the slots of one owner.
#[derive(Debug)]
pub(crate) struct Plumbing {
    owner: String,
    network: Cidr,
    policy: Policy,
    cgroups: Arc<Cgroups>,
    /// Does what takes milliseconds inside namespaces, apart from the thread that connections wait for.
    maker: NetnsThread,
    /// Counts up, so that a number just freed rests while the kernel takes its slot down.
    next: AtomicU32,
}

impl Plumbing {
    pub(crate) fn new(owner: String, network: Cidr, policy: Policy) -> Result<Self, SlotError> {
        let cgroups = Cgroups::open(&owner).map_err(SlotError::io("make control groups"))?;
        Ok(Self {
            cgroups: Arc::new(cgroups),
            owner,
            network,
            policy,
            maker: NetnsThread::spawn("netns-maker").map_err(SlotError::io("start thread"))?,
            next: AtomicU32::new(0),
        })
    }

    /// Turns on the host's IPv4 forwarding where it is off.
    pub(crate) async fn enable_forwarding(&self) -> Result<(), SlotError> {
        blocking(|| {
            let action = || SlotError::io(format!("turn on {IP_FORWARD}"));
            if fs::read_to_string(IP_FORWARD).map_err(action())?.trim() == "1" {
                return Ok(());
            }
            fs::write(IP_FORWARD, "1").map_err(action())?;
            tracing::info!("turned on the host's ipv4 forwarding");
            Ok(())
        })
        .await
    }

    /// Installs or replaces the host's rules.
    pub(crate) async fn install_host_rules(&self) -> Result<(), SlotError> {
        let rules = self.policy.host_rules(&self.owner);
        blocking(move || run("nft", &["-f", "-"], &rules)).await
    }

    /// Installs the host's rules if they are gone; true when they were.
    pub(crate) async fn restore_host_rules(&self) -> Result<bool, SlotError> {
        let table = host_table(&self.owner);
        let listed = blocking(move || run("nft", &["list", "table", "inet", &table], "")).await;
        match listed {
            Ok(()) => Ok(false),
            Err(_) => self.install_host_rules().await.map(|()| true),
        }
    }

    /// Removes the host's rules and the owner's control group when no slot of this owner is left.
    pub(crate) async fn leave_host_if_unused(&self) -> Result<(), SlotError> {
        if !self.names().await?.is_empty() {
            return Ok(());
        }
        self.cgroups.close();
        let table = host_table(&self.owner);
        let rules = format!("add table inet {table}\ndelete table inet {table}\n");
        blocking(move || run("nft", &["-f", "-"], &rules)).await
    }

    /// How many slots the host's numbers allow.
    pub(crate) fn capacity(&self) -> u32 {
        let pairs = u32::try_from(self.network.addresses() / 2).unwrap_or(u32::MAX);
        pairs.min(u32::from(limits::SLOTS_MAX))
    }

    /// The number to try next.
    pub(crate) fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed) % self.capacity()
    }

    /// The name of this owner's slot of that number.
    pub(crate) fn name(&self, number: u32) -> String {
        format!("dm{}-{number}", self.owner)
    }

    /// Whether a name is one that [`Self::name`] makes.
    pub(crate) fn owns(&self, name: &str) -> bool {
        parse_name(name).is_some_and(|(owner, number)| {
            owner == self.owner && self.name(number) == name && number < self.capacity()
        })
    }

    /// Names of this owner's slots, whole or in part.
    pub(crate) async fn names(&self) -> Result<BTreeSet<String>, SlotError> {
        let cgroups = self.cgroups.clone();
        let mut names = blocking(move || {
            let mut names = all_names()?;
            names.extend(
                cgroups
                    .slots()
                    .map_err(SlotError::io("list control groups"))?,
            );
            Ok(names)
        })
        .await?;
        names.retain(|name| self.owns(name));
        Ok(names)
    }

    /// Numbers that slots of any owner seem to have; [`Self::claim`] settles it.
    pub(crate) async fn taken_numbers(&self) -> Result<HashSet<u32>, SlotError> {
        let names = blocking(all_names).await?;
        Ok(names
            .iter()
            .filter_map(|name| parse_name(name))
            .map(|(_, number)| number)
            .collect())
    }

    /// Makes the namespace and its link to the host, unless the number is taken: then false, and nothing
    /// is left behind.
    pub(crate) async fn claim(&self, number: u32) -> Result<bool, SlotError> {
        let name = self.name(number);
        let (host_addr, _) = self.link_addresses(number)?;
        blocking(move || {
            if !unless_taken(run("ip", &["netns", "add", &name], ""))? {
                return Ok(false);
            }
            let link = format!(
                "link add {name} type veth peer name {UPLINK} netns {name}\n\
                 link property add dev {name} altname dormouse-slot-{number}\n\
                 addr add {host_addr}/31 dev {name}\n\
                 link set {name} up\n"
            );
            let linked = unless_taken(run("ip", &["-batch", "-"], &link));
            if !matches!(linked, Ok(true)) {
                delete(&name)?;
                return linked;
            }
            let ipv6 = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            set_if_present(Path::new(&ipv6), "1")?;
            Ok(true)
        })
        .await
    }

    /// Fills a claimed slot: settings, tap, addresses, routes and rules.
    pub(crate) async fn furnish(&self, number: u32) -> Result<(), SlotError> {
        let (host_addr, uplink_addr) = self.link_addresses(number)?;
        let links = format!(
            "link set lo up\n\
             link set {UPLINK} up\n\
             addr add {uplink_addr}/31 dev {UPLINK}\n\
             route add default via {host_addr}\n\
             tuntap add dev {TAP} mode tap vnet_hdr\n\
             link set {TAP} address {TAP_MAC} up\n\
             addr add {tap_addr}/{prefix} dev {TAP}\n\
             addr add {dns_addr}/32 dev {TAP}\n\
             neigh add {guest_addr} lladdr {guest_mac} dev {TAP} nud permanent\n",
            tap_addr = guest::HOST_ADDR,
            prefix = guest::LINK_PREFIX_LEN,
            dns_addr = guest::DNS_ADDR,
            guest_addr = guest::GUEST_ADDR,
            guest_mac = guest::GUEST_MAC,
        );
        let rules = self.policy.slot_rules(&Egress::internet());
        let netns = open_netns(&self.name(number)).await?;
        self.maker
            .run(&netns, move || {
                set_sysctls()?;
                run("ip", &["-batch", "-"], &links)?;
                // The rules name the tap, so they come after it; nothing reads or writes it before them.
                run("nft", &["-f", "-"], &rules)
            })
            .await
    }

    /// Replaces the rules inside a slot by today's for this egress.
    pub(crate) async fn install_slot_rules(
        &self,
        name: &str,
        egress: &Egress,
    ) -> Result<(), SlotError> {
        let rules = self.policy.slot_rules(egress);
        let netns = open_netns(name).await?;
        self.maker
            .run(&netns, move || run("nft", &["-f", "-"], &rules))
            .await
    }

    /// Ends what runs in a slot, and deletes what there is of it; false when there was nothing.
    pub(crate) async fn delete(&self, name: &str) -> Result<bool, SlotError> {
        self.end_processes(name).await?;
        let name = name.to_owned();
        blocking(move || delete(&name)).await
    }

    /// Gives a slot's control group this share; the answer is its folders.
    pub(crate) async fn confine(
        &self,
        name: &str,
        share: Share,
    ) -> Result<Vec<PathBuf>, SlotError> {
        let (name, cgroups) = (name.to_owned(), self.cgroups.clone());
        blocking(move || {
            cgroups
                .confine(&name, &share)
                .map_err(SlotError::io(format!("make control group {name}")))
        })
        .await
    }

    /// Ends what runs in a slot's control group, and deletes the group.
    pub(crate) async fn end_processes(&self, name: &str) -> Result<(), SlotError> {
        let (name, cgroups) = (name.to_owned(), self.cgroups.clone());
        blocking(move || {
            cgroups
                .remove(&name)
                .map_err(SlotError::io(format!("delete control group {name}")))
        })
        .await
    }

    /// The two ends of a slot's link: the host's and the slot's.
    fn link_addresses(&self, number: u32) -> Result<(Ipv4Addr, Ipv4Addr), SlotError> {
        let ends = (
            self.network.nth(2 * number),
            self.network.nth(2 * number + 1),
        );
        match ends {
            (Some(host), Some(slot)) => Ok((host, slot)),
            _ => Err(SlotError::Full),
        }
    }
}

/// Opens a slot's namespace.
pub(crate) async fn open_netns(name: &str) -> Result<Arc<OwnedFd>, SlotError> {
    let path = netns_path(name);
    blocking(move || {
        let file = File::open(&path).map_err(SlotError::io(format!("open {}", path.display())))?;
        Ok(Arc::new(file.into()))
    })
    .await
}

/// Whether both halves of a slot are there.
pub(crate) fn is_complete(name: &str) -> bool {
    link_path(name).exists() && netns_path(name).exists()
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn output(tool: &'static str, args: &[&str], input: &str) -> Result<String, SlotError> {
    let action = || SlotError::io(format!("run {tool}"));
    // A daemon's search path often lacks the system folders in which these tools are.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(tool)
        .args(args)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(action())?;
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(input.as_bytes())
    {
        // A program that fails early closes its input; its own words say more than that.
        tracing::debug!(tool, %error, "input not taken");
    }
    let output = child.wait_with_output().map_err(action())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(SlotError::Tool {
        tool,
        message: message.trim().replace('\n', "; "),
    })
}

/// Runs a program to its end.
pub(crate) fn run(tool: &'static str, args: &[&str], input: &str) -> Result<(), SlotError> {
    output(tool, args, input).map(|_| ())
}

/// False when a tool failed because something of that name exists.
fn unless_taken(result: Result<(), SlotError>) -> Result<bool, SlotError> {
    match result {
        Ok(()) => Ok(true),
        Err(SlotError::Tool { message, .. }) if message.contains("File exists") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes what there is of a slot; false when there was nothing.
fn delete(name: &str) -> Result<bool, SlotError> {
    // First, for the kernel takes its time over the links of a deleted namespace.
    let link = delete_if_present(&link_path(name), &["link", "del", "dev", name])?;
    let netns = delete_if_present(&netns_path(name), &["netns", "del", name])?;
    Ok(link || netns)
}

fn delete_if_present(path: &Path, args: &[&str]) -> Result<bool, SlotError> {
    if !path.exists() {
        return Ok(false);
    }
    match run("ip", args, "") {
        // Somebody else was quicker, or the kernel itself.
        Err(_) if !path.exists() => Ok(false),
        result => result.map(|()| true),
    }
}

fn set_sysctls() -> Result<(), SlotError> {
    let sysctl = Path::new("/proc/sys/net");
    for name in ["all", "default"] {
        let path = sysctl.join(format!("ipv6/conf/{name}/disable_ipv6"));
        set_if_present(&path, "1")?;
    }
    for (name, value) in [
        ("ip_forward", "1"),
        ("conf/all/rp_filter", "1"),
        // Each address is answered for on its own link only.
        ("conf/all/arp_ignore", "1"),
        // A connection to a silent guest fails after some 15 seconds, not two minutes.
        ("tcp_syn_retries", "3"),
    ] {
        let path = sysctl.join("ipv4").join(name);
        fs::write(&path, value).map_err(SlotError::io(format!("set {}", path.display())))?;
    }
    Ok(())
}

/// Sets an IPv6 setting; a kernel without IPv6 has none.
fn set_if_present(path: &Path, value: &str) -> Result<(), SlotError> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(SlotError::io(format!("set {}", path.display()))),
    }
}

fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

fn link_path(name: &str) -> PathBuf {
    Path::new(LINKS_DIR).join(name)
}

/// Names of namespaces and links that look like a slot's.
fn all_names() -> Result<BTreeSet<String>, SlotError> {
    let mut names = BTreeSet::new();
    for dir in [NETNS_DIR, LINKS_DIR] {
        let entries = match fs::read_dir(dir) {
            // There is no folder before the first namespace.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(SlotError::io(format!("list {dir}")))?,
        };
        for entry in entries {
            let entry = entry.map_err(SlotError::io(format!("list {dir}")))?;
            names.extend(entry.file_name().into_string());
        }
    }
    names.retain(|name| parse_name(name).is_some());
    Ok(names)
}

/// Owner and number of a slot's name.
pub(crate) fn parse_name(name: &str) -> Option<(&str, u32)> {
    let (owner, number) = name.strip_prefix("dm")?.split_once('-')?;
    Some((owner, number.parse().ok()?))
}

/// Runs what waits for processes or files off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SlotError> + Send + 'static,
) -> Result<T, SlotError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SlotError::io("run blocking task")(io::Error::other(error)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_own_owner_are_owned() {
        let network = Cidr::literal([198, 18, 0, 0], 28);
        let policy = Policy::new(network, vec![], vec![], vec![]);
        let plumbing = Plumbing::new("a1".into(), network, policy).unwrap();
        assert_eq!(plumbing.capacity(), 8);
        assert!(plumbing.owns("dma1-0") && plumbing.owns("dma1-7"));
        for other in [
            "dma1-8",
            "dma1-07",
            "dma1-+7",
            "dma1-",
            "dma-1",
            "dma1-1/../x",
            "dmb1-1",
            "eth0",
            "",
        ] {
            assert!(!plumbing.owns(other), "{other}");
        }
    }

    #[test]
    fn each_number_has_its_own_pair_of_addresses() {
        let network = Cidr::literal([198, 18, 0, 0], 28);
        let plumbing = Plumbing::new(
            "a1".into(),
            network,
            Policy::new(network, vec![], vec![], vec![]),
        )
        .unwrap();
        let (host, slot) = plumbing.link_addresses(7).unwrap();
        assert_eq!(
            (host.to_string(), slot.to_string()),
            ("198.18.0.14".into(), "198.18.0.15".into())
        );
        assert!(plumbing.link_addresses(8).is_err());
    }
}
