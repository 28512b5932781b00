//! Thaws of a machine that is the test's own: a root, a name and a network that nobody else sees. Needs root.

use super::*;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;

const MACHINE_ID: &str = "/etc/machine-id";
const OUTSIDE: &str = "192.0.2.7:443";

/// Runs a test in a thread that has left all that a thaw changes, with the freezer of its machine.
fn on_a_machine(test: impl FnOnce(Freezer) + Send + 'static) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    let tested = std::thread::spawn(move || {
        enter(&path);
        test(freezer());
    });
    tested.join().unwrap();
}

fn enter(root: &Path) {
    for folder in ["dev", "etc", "cgroup"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    let random = root.join("dev/urandom");
    fs::write(&random, "").unwrap();
    let own = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWNET;
    // SAFETY: descriptor tables, which alone are dangerous to take apart, are left as they are.
    unsafe { unshare_unsafe(own) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
    mount_bind("/dev/urandom", &random).unwrap();
    crate::network::bring_up_loopback().unwrap();
    let address = ["address", "add", "192.0.2.1/24", "dev", "lo"];
    assert!(Command::new("ip").args(address).status().unwrap().success());
    rustix::process::chroot(root).unwrap();
    rustix::process::chdir("/").unwrap();
    fs::write(MACHINE_ID, "the image's\n").unwrap();
}

/// A freezer whose control group is a folder that says what [`say_frozen`] has written.
fn freezer() -> Freezer {
    fs::write("/cgroup/cgroup.freeze", "1").unwrap();
    say_frozen(false);
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let group = open("/cgroup", flags, Mode::empty()).unwrap();
    Freezer::new(Arc::new(Cgroup::root(group)))
}

fn say_frozen(frozen: bool) {
    let events = format!("populated 1\nfrozen {}\n", u8::from(frozen));
    fs::write("/cgroup/cgroup.events", events).unwrap();
}

fn thaw(freezer: &Freezer, hostname: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let spec = ThawSpec {
        wall_clock_ns: now.as_nanos().try_into().unwrap(),
        entropy_hex: "5a".repeat(64),
        hostname: hostname.to_owned(),
    };
    freezer.thaw(&spec).unwrap();
}

fn kernels_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_str().unwrap().to_owned()
}

#[test]
fn a_clone_gets_another_machine_id_and_a_machine_that_slept_keeps_its_own() {
    on_a_machine(|freezer| {
        let machine_id = || fs::read_to_string(MACHINE_ID).unwrap();
        thaw(&freezer, "one");
        let own = machine_id();
        assert_eq!(own.len(), 33, "{own}");
        fs::write("/etc/hosts", "the app's\n").unwrap();
        rustix::system::sethostname(b"the-apps").unwrap();
        thaw(&freezer, "one");
        assert_eq!(machine_id(), own);
        assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), "the app's\n");
        assert_eq!(kernels_name(), "the-apps");

        thaw(&freezer, "two");
        assert_ne!(machine_id(), own);
        assert_eq!(kernels_name(), "two");
        assert_eq!(fs::read_to_string("/etc/hostname").unwrap(), "two\n");
        let hosts = fs::read_to_string("/etc/hosts").unwrap();
        assert_eq!(hosts, "the app's\n10.0.0.2\ttwo\n");
    });
}

#[test]
fn a_clone_whose_files_cannot_be_written_runs_all_the_same() {
    on_a_machine(|freezer| {
        mount_bind("/etc", "/etc").unwrap();
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount("/etc", flags, c"").unwrap();
        thaw(&freezer, "one");
        assert_eq!(kernels_name(), "one");
        assert_eq!(fs::read_to_string("/cgroup/cgroup.freeze").unwrap(), "0");
    });
}

#[test]
fn a_clone_has_no_udp_socket_with_a_peer_outside() {
    on_a_machine(|freezer| {
        let socket = |own: &str, peer: &str| {
            let socket = UdpSocket::bind(own).unwrap();
            socket.connect(peer).unwrap();
            socket
        };
        let has_peer = |socket: &UdpSocket| socket.peer_addr().is_ok();
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        let inside = socket("127.0.0.1:0", "127.0.0.1:53");
        let outside = [
            socket("0.0.0.0:0", OUTSIDE),
            socket("0.0.0.0:4433", OUTSIDE),
            socket("[::]:0", "[::ffff:192.0.2.7]:443"),
        ];
        thaw(&freezer, "one");
        assert!(has_peer(&inside));
        assert!(!outside.iter().any(has_peer));
        let told = outside[0].recv(&mut [0]).unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::ConnectionAborted);
        server.send_to(b"", OUTSIDE).unwrap();

        outside[0].connect(OUTSIDE).unwrap();
        thaw(&freezer, "one");
        assert!(has_peer(&outside[0]), "it has only slept");
    });
}

#[test]
fn only_an_app_that_was_stopped_loses_its_connections() {
    on_a_machine(|freezer| {
        thaw(&freezer, "one");
        let listener = TcpListener::bind("192.0.2.1:0").unwrap();
        let mut app = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        thaw(&freezer, "one");
        peer.write_all(b"x").unwrap();
        app.read_exact(&mut [0]).unwrap();

        say_frozen(true);
        freezer.freeze_and(|| Ok(())).unwrap();
        say_frozen(false);
        thaw(&freezer, "one");
        let told = app.read(&mut [0]).unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::ConnectionAborted);
    });
}

#[test]
fn a_host_that_waits_for_the_disk_no_longer_has_the_app_run_on() {
    on_a_machine(|freezer| {
        say_frozen(true);
        let frozen = freezer.freeze_and(|| {
            assert!(freezer.is_frozen());
            assert!(freezer.start(|| ()).is_none());
            say_frozen(false);
            thaw(&freezer, "one");
            Ok(())
        });
        assert!(matches!(frozen, Err(FreezeError::Thawed)), "{frozen:?}");
        assert!(freezer.start(|| ()).is_some());
    });
}

#[test]
fn a_freeze_that_is_over_does_not_have_the_app_of_the_next_one_run_on() {
    on_a_machine(|freezer| {
        say_frozen(true);
        let late = freezer.freeze_and(|| {
            say_frozen(false);
            thaw(&freezer, "one");
            say_frozen(true);
            freezer.freeze_and(|| Ok(())).expect("frozen anew");
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(late, Err(FreezeError::Thawed)), "{late:?}");
        assert!(freezer.is_frozen());
    });
}

#[test]
fn an_app_whose_disk_fails_runs_on() {
    on_a_machine(|freezer| {
        say_frozen(true);
        let frozen = freezer.freeze_and(|| {
            say_frozen(false);
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(
            matches!(frozen, Err(FreezeError::Step { .. })),
            "{frozen:?}"
        );
        assert!(!freezer.is_frozen());
    });
}
