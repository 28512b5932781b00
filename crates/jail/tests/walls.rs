//! What a program in a jail can still see and do. This test runs itself in one and tries; the list below fails when it
//! grows. As root, as jails are built.

use dormouse_jail::{Shown, Spec, tree};
use expect_test::expect;
use std::ffi::{CString, OsString};
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const UID: u32 = 1_999_999_999;
const FILE_BYTES_MAX: u64 = 1 << 20;
const INSIDE: &str = "--inside";

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(INSIDE) => print!(
            "{}",
            attempts(Path::new(&arguments.next().expect("a folder")))
        ),
        // The runner asks for a list of tests first, and for those that it should leave out.
        Some("--list") if arguments.any(|argument| argument == "--ignored") => {}
        Some("--list") => println!("walls: test"),
        _ => walls(),
    }
}

/// A folder with what the jail is made of.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let site = Self { dir };
        for folder in ["tree", "root", "shown"] {
            fs::create_dir(site.path(folder)).expect("a folder");
        }
        open(&site.path("shown"), 0o711);
        for (name, mode) in [("lent", 0o600), ("readable", 0o644), ("secret", 0o600)] {
            fs::write(site.path("shown").join(name), "1234").expect("a file");
            open(&site.path("shown").join(name), mode);
        }
        chown(site.path("shown/lent"), Some(UID), Some(UID)).expect("lent");
        fs::write(site.path("not-shown"), "1234").expect("a file");
        site.copy_program();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// This program with its libraries.
    fn copy_program(&self) {
        let program = std::env::current_exe().expect("a program");
        let libraries = tree::libraries(&program).expect("libraries");
        tree::plant(&libraries, &self.path("tree")).expect("a tree");
        let bin = self.path("tree/usr/bin");
        fs::create_dir_all(&bin).expect("a folder");
        fs::copy(program, bin.join("attempts")).expect("copied");
    }

    fn spec(&self) -> Spec {
        Spec {
            uid: UID,
            cgroups: Vec::new(),
            tree: self.path("tree"),
            mount_point: self.path("root"),
            shown: vec![
                Shown {
                    path: self.path("shown"),
                    writable: true,
                },
                Shown {
                    path: self.path("shown/readable"),
                    writable: false,
                },
            ],
            file_bytes_max: FILE_BYTES_MAX,
            kvm: false,
            descriptors: Vec::new(),
            program: "/usr/bin/attempts".into(),
            arguments: vec![INSIDE.into(), OsString::from(self.path("shown"))],
        }
    }

    /// Runs the program in a jail and answers with what it printed.
    fn run(&self) -> String {
        let log = self.path("log");
        let jail = Command::new(env!("CARGO_BIN_EXE_dormouse-jail"))
            .arg(serde_json::to_string(&self.spec()).expect("JSON"))
            .env("SECRET", "of the daemon")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log"))
            .spawn();
        let jail = jail.expect("a jail").wait_with_output().expect("a jail");
        let read = || fs::read_to_string(&log).expect("a log");
        assert!(jail.status.success(), "{}", read());
        let pid = String::from_utf8(jail.stdout).expect("a process id");
        // It is nobody's child here any more: it is over when it is gone.
        while Path::new("/proc").join(pid.trim()).exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        read()
    }
}

fn open(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}

fn walls() {
    let site = Site::new();
    let before = fs::read_dir(site.path("shown")).expect("a folder").count();
    expect![[r#"
        process 1, parent 0, user 1999999999
        capabilities within reach: 0
        environment: 0 variables
        descriptors: 0 1 2
        core dumps: 0 bytes
        of the host's folders: 0
        read what it is shown: allowed
        read what is root's there: refused
        list the folder: refused
        write what it was lent: allowed
        write more than a file may hold: refused
        write what is read-only: refused
        make a file there: refused
        make a file in /: refused
        read a neighbour's file: refused
        read /etc/passwd: refused
        read /proc/self/status: refused
        read /sys/kernel/uevent_seqnum: refused
        read /dev/kvm: refused
        read /dev/null: refused
        socket AF_INET: refused
        socket AF_UNIX: refused
        socket AF_NETLINK: refused
        socket AF_VSOCK: refused
        new user namespace: refused
        thread in a new namespace: refused
        enter a namespace: refused
        mount: refused
        chroot: refused
        pivot_root: refused
        ptrace: refused
        process_vm_readv: refused
        kill: refused
        setuid: refused
        capset: refused
        bpf: refused
        io_uring_setup: refused
        userfaultfd: refused
        perf_event_open: refused
        keyctl: refused
        add_key: refused
        init_module: refused
        kexec_load: refused
        reboot: refused
        mknod: refused
        chmod: refused
        link: refused
        symlink: refused
        rename: refused
        open_by_handle_at: refused
        clock_settime: refused
        sethostname: refused
        sched_setaffinity: refused
        shmget: refused
        msgget: refused
        mbind: refused
        personality: refused
        setrlimit: refused
        clone3: refused
        a call of a later kernel: refused
    "#]]
    .assert_eq(&site.run());
    let after = fs::read_dir(site.path("shown")).expect("a folder").count();
    assert_eq!(after, before, "nothing was made in the folder");
    assert_eq!(
        fs::read(site.path("shown/readable")).expect("read"),
        b"1234"
    );
    assert_eq!(fs::read(site.path("shown/lent")).expect("read"), b"mine");
    println!("walls: ok");
}

fn attempts(shown: &Path) -> String {
    let mut said = String::new();
    let mut say = |line: std::fmt::Arguments<'_>| writeln!(said, "{line}").expect("a string");
    let (pid, parent) = (std::process::id(), std::os::unix::process::parent_id());
    say(format_args!(
        "process {pid}, parent {parent}, user {}",
        call(libc::SYS_getuid, [0; 3])
    ));
    let reach = (0..64).filter(|cap| bounded(*cap)).count();
    say(format_args!("capabilities within reach: {reach}"));
    say(format_args!(
        "environment: {} variables",
        std::env::vars_os().count()
    ));
    let open: Vec<_> = (0..1024)
        .filter(|fd| is_open(*fd))
        .map(|fd| fd.to_string())
        .collect();
    say(format_args!("descriptors: {}", open.join(" ")));
    say(format_args!("core dumps: {} bytes", core_limit()));
    let usual = [
        "bin", "boot", "dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "sbin", "srv",
        "sys", "var",
    ];
    let there = usual
        .iter()
        .filter(|name| Path::new("/").join(name).exists());
    say(format_args!("of the host's folders: {}", there.count()));

    let mut attempt = |what: &str, done: io::Result<()>| {
        // Which wall it was that refused depends on the kernel.
        let outcome = if done.is_ok() { "allowed" } else { "refused" };
        say(format_args!("{what}: {outcome}"));
    };
    attempt("read what it is shown", read(&shown.join("readable")));
    attempt("read what is root's there", read(&shown.join("secret")));
    attempt("list the folder", fs::read_dir(shown).map(drop));
    attempt(
        "write what it was lent",
        fs::write(shown.join("lent"), "mine"),
    );
    attempt(
        "write more than a file may hold",
        write_at(&shown.join("lent"), FILE_BYTES_MAX),
    );
    attempt(
        "write what is read-only",
        fs::write(shown.join("readable"), "mine"),
    );
    attempt(
        "make a file there",
        File::create_new(shown.join("new")).map(drop),
    );
    attempt("make a file in /", File::create_new("/new").map(drop));
    attempt(
        "read a neighbour's file",
        read(&shown.with_file_name("not-shown")),
    );
    for path in [
        "/etc/passwd",
        "/proc/self/status",
        "/sys/kernel/uevent_seqnum",
        "/dev/kvm",
        "/dev/null",
    ] {
        attempt(&format!("read {path}"), read(Path::new(path)));
    }
    for (name, family) in [
        ("AF_INET", libc::AF_INET),
        ("AF_UNIX", libc::AF_UNIX),
        ("AF_NETLINK", libc::AF_NETLINK),
        ("AF_VSOCK", libc::AF_VSOCK),
    ] {
        let arguments = [i64::from(family), i64::from(libc::SOCK_STREAM), 0];
        attempt(
            &format!("socket {name}"),
            answer(call(libc::SYS_socket, arguments)),
        );
    }
    let root = CString::new("/").expect("a path");
    let root = root.as_ptr() as i64;
    let user = i64::from(libc::CLONE_NEWUSER);
    for (name, number, arguments) in [
        ("new user namespace", libc::SYS_unshare, [user, 0, 0]),
        ("thread in a new namespace", libc::SYS_clone, [user, 0, 0]),
        ("enter a namespace", libc::SYS_setns, [0, 0, 0]),
        ("mount", libc::SYS_mount, [root, root, root]),
        ("chroot", libc::SYS_chroot, [root, 0, 0]),
        ("pivot_root", libc::SYS_pivot_root, [root, root, 0]),
        ("ptrace", libc::SYS_ptrace, [0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
        ("kill", libc::SYS_kill, [-1, 0, 0]),
        ("setuid", libc::SYS_setuid, [0, 0, 0]),
        ("capset", libc::SYS_capset, [0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0, 0, 0]),
        ("add_key", libc::SYS_add_key, [0, 0, 0]),
        ("init_module", libc::SYS_init_module, [0, 0, 0]),
        ("kexec_load", libc::SYS_kexec_load, [0, 0, 0]),
        ("reboot", libc::SYS_reboot, [0, 0, 0]),
        ("mknod", libc::SYS_mknod, [root, 0, 0]),
        ("chmod", libc::SYS_chmod, [root, 0, 0]),
        ("link", libc::SYS_link, [root, root, 0]),
        ("symlink", libc::SYS_symlink, [root, root, 0]),
        ("rename", libc::SYS_rename, [root, root, 0]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [0, 0, 0]),
        ("clock_settime", libc::SYS_clock_settime, [0, 0, 0]),
        ("sethostname", libc::SYS_sethostname, [root, 1, 0]),
        ("sched_setaffinity", libc::SYS_sched_setaffinity, [0, 0, 0]),
        ("shmget", libc::SYS_shmget, [0, 1, 0]),
        ("msgget", libc::SYS_msgget, [0, 0, 0]),
        ("mbind", libc::SYS_mbind, [0, 0, 0]),
        ("personality", libc::SYS_personality, [0, 0, 0]),
        ("setrlimit", libc::SYS_setrlimit, [0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0]),
        ("a call of a later kernel", 999, [0, 0, 0]),
    ] {
        attempt(name, answer(call(number, arguments)));
    }
    said
}

fn read(path: &Path) -> io::Result<()> {
    File::open(path)?.read_exact(&mut [0])
}

fn write_at(path: &Path, offset: u64) -> io::Result<()> {
    File::options()
        .write(true)
        .open(path)?
        .write_all_at(b"1", offset)
}

fn call(number: libc::c_long, arguments: [i64; 3]) -> i64 {
    // SAFETY: the calls are made to be refused; where one is not, its arguments are null or name the root folder, and
    // this process has nothing to lose.
    unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], 0, 0, 0) }
}

fn answer(returned: i64) -> io::Result<()> {
    match returned {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn bounded(capability: i64) -> bool {
    call(
        libc::SYS_prctl,
        [i64::from(libc::PR_CAPBSET_READ), capability, 0],
    ) == 1
}

fn is_open(fd: i64) -> bool {
    call(libc::SYS_fcntl, [fd, i64::from(libc::F_GETFD), 0]) >= 0
}

fn core_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 1,
        rlim_max: 1,
    };
    // SAFETY: the kernel writes one such structure.
    unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) };
    limit.rlim_cur
}
