//! Every limit of the product, in one place. Where AWS has the limit, the value is AWS's.

use std::time::Duration;

/// Memory sizes that an image may ask for, in MiB (`resources[0].minimumMemoryInMiB`).
pub const MEMORY_SIZES_MIB: [u32; 5] = [512, 1024, 2048, 4096, 8192];
/// Memory size of an image that asks for none, in MiB.
pub const MEMORY_DEFAULT_MIB: u32 = 2048;
/// A guest sees this many times its baseline memory, as on AWS.
pub const MEMORY_PEAK_FACTOR: u32 = 4;

/// Longest life of a MicroVM and the default, in seconds, suspended time included.
pub const LIFETIME_MAX_S: u64 = 28_800;

/// Largest code artifact (compressed), in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 1 << 30;
/// Most entries in a code artifact.
pub const ARTIFACT_ENTRIES_MAX: usize = 100_000;
/// Largest listing (central directory) of a code artifact, in bytes; it is kept in memory.
pub const ARTIFACT_LISTING_BYTES_MAX: u64 = 32 << 20;
/// Longest path of an entry in a code artifact, in bytes.
pub const ARTIFACT_PATH_BYTES_MAX: usize = 1024;
/// Most bytes that a code artifact may unpack to.
pub const ARTIFACT_UNPACKED_BYTES_MAX: u64 = 4 << 30;
/// Most times larger than its compressed form that an artifact may unpack to, once past
/// [`ARTIFACT_RATIO_FREE_BYTES`].
pub const ARTIFACT_RATIO_MAX: u64 = 200;
/// Bytes that any artifact may unpack to whatever its ratio.
pub const ARTIFACT_RATIO_FREE_BYTES: u64 = 64 << 20;
/// Largest Dockerfile, in bytes.
pub const DOCKERFILE_BYTES_MAX: u64 = 1 << 20;
/// Most instructions in a Dockerfile.
pub const DOCKERFILE_STEPS_MAX: usize = 500;
/// Most bytes that all variable expansion in a Dockerfile may produce.
pub const DOCKERFILE_EXPANDED_BYTES_MAX: usize = 16 << 20;
/// Most bytes of environment, build arguments, labels and ports of one image.
pub const IMAGE_CONFIG_BYTES_MAX: usize = 128 << 10;
/// Largest `.dockerignore`, in bytes.
pub const DOCKERIGNORE_BYTES_MAX: u64 = 256 << 10;
/// Steps that matching path patterns against a build context may take.
pub const GLOB_STEPS_MAX: u64 = 1 << 31;
/// Most files in the root file system of a local image.
pub const ROOTFS_ENTRIES_MAX: usize = 2_000_000;

/// Largest control API request body, in bytes.
pub const API_BODY_BYTES_MAX: usize = 1 << 20;
/// Largest head (request line and headers) of an HTTP/1 request on any listener, in bytes.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;
/// Most headers in one request on any listener.
pub const HTTP_HEADERS_MAX: usize = 128;
/// A client must finish sending a request's head within this.
pub const HTTP_HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// A client must finish its TLS handshake within this.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most client connections at once on one listener.
pub const CONNECTIONS_MAX: usize = 10_000;

/// How long a graceful stop of the ingress waits for requests in flight.
pub const INGRESS_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 streams that one client connection may have open at once.
pub const H2_STREAMS_MAX: u32 = 128;
/// HTTP/2 flow-control window of one stream, in bytes.
pub const H2_STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// HTTP/2 flow-control window of one connection, in bytes.
pub const H2_CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of a response that wait for one HTTP/2 stream's client to make room.
pub const H2_SEND_BUFFER_BYTES: usize = 256 << 10;
/// An HTTP/2 client that is silent this long is asked for a sign of life.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// An HTTP/2 client must answer a ping within this.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// An unwanted request body is still read for this long, so that its sender gets to see the answer.
pub const UNREAD_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of an endpoint token, in minutes.
pub const TOKEN_MINUTES_MAX: i32 = 60;
/// Most ports and ranges in one endpoint token: it travels in a header.
pub const TOKEN_GRANTS_MAX: usize = 100;

/// Age beyond which a signed request is refused, either way.
pub const SIGV4_CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);

/// Commands that may wait for one MicroVM's driver.
pub const DRIVER_QUEUE: usize = 64;
/// Times that a new daemon tries to take over a machine of an earlier one before it gives it up.
pub const ADOPT_ATTEMPTS: u32 = 5;
/// Requests that may wait for one MicroVM to wake.
pub const WAKE_WAITERS_MAX: usize = 1024;
/// How long a request waits for its MicroVM to wake or to finish starting.
pub const WAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a request is let in anew when its MicroVM goes to sleep before the app has seen it.
pub const OPEN_ATTEMPTS: usize = 3;
/// A suspend waits for requests in flight: until no byte has moved for this long ...
pub const DRAIN_QUIET: Duration = Duration::from_secs(1);
/// ... and no longer than this.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// A restore must reach a thawed app within this.
pub const LAUNCH_TIMEOUT: Duration = Duration::from_secs(60);
/// A cold boot must reach a ready agent within this; software emulation is slow.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// A suspend must be on disk within this.
pub const SUSPEND_TIMEOUT: Duration = Duration::from_secs(300);
/// An orderly power-off gets this long before the VMM is killed.
pub const POWEROFF_TIMEOUT: Duration = Duration::from_secs(10);
/// Launches, suspends and resumes that one host carries out at once; the others wait in line.
pub const TRANSITIONS_AT_ONCE: usize = 8;
/// A graceful stop of the daemon waits this long for transitions under way.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// A terminated MicroVM stays visible this long.
pub const TERMINATED_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// QEMU opens its control socket within this, or something is wrong.
pub const VMM_START_TIMEOUT: Duration = Duration::from_secs(30);
/// A VMM answers any command within this, unless it hangs.
pub const VMM_COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// A device state is written or loaded within this; it is small.
pub const VMM_STATE_TIMEOUT: Duration = Duration::from_secs(60);
/// A killed VMM is gone within this, unless the host's kernel is stuck.
pub const VMM_KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The guest that proves KVM must have booted by then; under nested virtualization it takes a third of it.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(45);
/// Longest line that QEMU's control socket may send, in bytes: the console ring, escaped, fits.
pub const QMP_LINE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a guest's console output that are kept; a power of two.
pub const CONSOLE_BYTES: u32 = 64 << 10;
/// Largest device state, in bytes; a machine's is some 10 KiB.
pub const DEVICE_STATE_BYTES_MAX: u64 = 16 << 20;
/// Largest file that goes into the initramfs, in bytes.
pub const INITRAMFS_FILE_BYTES_MAX: u64 = 256 << 20;

/// A plain request to the agent must be answered within this.
pub const AGENT_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer of the agent to a plain request, in bytes.
pub const AGENT_BODY_BYTES_MAX: usize = 2 << 20;
/// Bytes of the app's output that the agent keeps for the host to fetch.
pub const AGENT_LOG_BYTES: usize = 1 << 20;

/// Image builds that run at once; the others wait in line.
pub const BUILDS_AT_ONCE: usize = 2;
/// Image builds that may wait in line.
pub const BUILD_QUEUE: usize = 64;
/// Memory of the VM that runs Dockerfile steps, in MiB; what it does not touch costs nothing.
pub const BUILD_VM_MEMORY_MIB: u32 = 4096;
/// A build step that fails while the host has less than this free failed because of it, in bytes.
pub const DISK_FULL_BYTES: u64 = 16 << 20;
/// One RUN step may take this long, in seconds.
pub const BUILD_STEP_TIMEOUT_S: u64 = 3600;
/// Largest log of one build, in bytes; what comes after is dropped with a note.
pub const BUILD_LOG_BYTES_MAX: u64 = 16 << 20;
/// An app without a ready hook is snapshotted this long after it listens or has come to rest.
pub const SETTLE: Duration = Duration::from_secs(2);
/// An app that listens on no port has come to rest when it has used hardly any CPU for this long ...
pub const SETTLE_QUIET: Duration = Duration::from_secs(3);
/// ... and at the latest after this.
pub const SETTLE_MAX: Duration = Duration::from_secs(60);
/// Time limit of a ready hook that states none, in seconds.
pub const READY_TIMEOUT_DEFAULT_S: u64 = 60;
/// Pause between two polls of a ready hook.
pub const READY_POLL: Duration = Duration::from_millis(500);

/// Network slots that are kept made ahead of need.
pub const SLOTS_WARM: usize = 4;
/// Most network slots on one host.
pub const SLOTS_MAX: u16 = 8192;
/// Outbound connections of one MicroVM that may exist at once: the host's table of them is shared.
pub const SLOT_CONNECTIONS_MAX: u32 = 4096;
/// How often the host's packet filter is checked to be in place.
pub const SLOT_RULES_CHECK: Duration = Duration::from_secs(5);
/// Largest DNS query that is forwarded, in bytes.
pub const DNS_QUERY_BYTES_MAX: usize = 4096;
/// DNS queries of one MicroVM that may be in flight at once.
pub const DNS_IN_FLIGHT_MAX: usize = 64;
/// A DNS query is given up after this.
pub const DNS_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads or writes that may wait for the metadata store.
pub const STORE_QUEUE: usize = 1024;
/// Most rows in one answer of the metadata store.
pub const STORE_PAGE_ROWS_MAX: usize = 1000;
/// How long the metadata store waits for another process that has its database locked.
pub const STORE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest object that one S3 request may write, in bytes.
pub const S3_PUT_BYTES_MAX: u64 = 5 << 30;
/// Largest object in the embedded S3, in bytes.
pub const S3_OBJECT_BYTES_MAX: u64 = 64 << 30;
/// Smallest part of a multipart upload, the last excepted, in bytes.
pub const S3_PART_BYTES_MIN: u64 = 5 << 20;
/// Most parts of a multipart upload.
pub const S3_PARTS_MAX: usize = 10_000;
/// Most objects that one S3 request may delete.
pub const S3_DELETE_OBJECTS_MAX: usize = 1000;
/// Most user metadata of an object in the embedded S3, in bytes.
pub const S3_METADATA_BYTES_MAX: usize = 2 << 10;
/// A connection to an outside S3 must be made within this.
pub const S3_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A multipart upload that is neither completed nor aborted is forgotten after this.
pub const S3_UPLOAD_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// Items on one page of a list when the caller names no number, and the most it may name.
pub const PAGE_ITEMS_MAX: u32 = 50;
/// How long a client token answers with the MicroVM or image that it first made.
pub const CLIENT_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Peak vCPUs that a guest of this baseline memory sees, as on AWS.
#[must_use]
pub fn peak_vcpus(baseline_mib: u32) -> u32 {
    (baseline_mib / 512).max(1)
}

/// Size of a guest's root disk in bytes for this baseline memory, as on AWS.
#[must_use]
pub fn disk_bytes(baseline_mib: u32) -> u64 {
    const GIB: u64 = 1 << 30;
    match baseline_mib {
        0..=2048 => 8 * GIB,
        2049..=4096 => 16 * GIB,
        _ => 32 * GIB,
    }
}
