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
/// Most stages and images from which one stage of a Dockerfile may take files: each is a disk of its build VM.
pub const BUILD_SOURCES_MAX: usize = 12;
/// Most bytes that all variable expansion in a Dockerfile may produce.
pub const DOCKERFILE_EXPANDED_BYTES_MAX: usize = 16 << 20;
/// Most bytes of environment, build arguments, labels and ports of one image.
pub const IMAGE_CONFIG_BYTES_MAX: usize = 128 << 10;
/// Most characters of an instruction, or of the command that it runs, that logs and reasons show.
pub const INSTRUCTION_SHOWN_CHARS_MAX: usize = 500;
/// Most characters that a build's `stateReason` tells of the cause.
pub const STATE_REASON_CHARS_MAX: usize = 4096;
/// Largest `.dockerignore` or `Dockerfile.dockerignore`, in bytes.
pub const DOCKERIGNORE_BYTES_MAX: u64 = 256 << 10;
/// Steps that matching path patterns against a build context may take.
pub const GLOB_STEPS_MAX: u64 = 1 << 31;
/// Most entries in the layers of a base image, those that describe other entries among them.
pub const ROOTFS_ENTRIES_MAX: usize = 2_000_000;
/// The layers of a base image may unpack to this many times the size of its disk: upper ones replace files.
pub const ROOTFS_UNPACKED_FACTOR: u64 = 2;
/// Most bytes of names, link targets and extended attributes in a base image; they are kept in memory.
pub const ROOTFS_NAMES_BYTES_MAX: usize = 256 << 20;
/// Longest path of a file and longest target of a symbolic link in a base image, in bytes.
pub const ROOTFS_PATH_BYTES_MAX: usize = 4095;
/// How deep folders may lie in a base image.
pub const ROOTFS_DEPTH_MAX: usize = 256;
/// Symbolic links that one path in a layer may lead through, as in Linux.
pub const ROOTFS_LINKS_MAX: usize = 40;
/// Names that all paths in a base image's layers together may lead through.
pub const ROOTFS_LOOKUPS_MAX: u64 = 1 << 26;
/// Largest description of one entry in front of it in a tar, in bytes.
pub const TAR_HEADER_BYTES_MAX: usize = 1 << 20;
/// Most parts of one sparse file in a tar.
pub const TAR_SEGMENTS_MAX: usize = 1 << 16;

/// Most files in an archive of an image, such as `docker save` makes it.
pub const ARCHIVE_MEMBERS_MAX: usize = 4096;
/// Most layers of a base image, as in Docker.
pub const REGISTRY_LAYERS_MAX: usize = 127;
/// Largest manifest, index or image configuration, in bytes.
pub const REGISTRY_DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Largest answer of a token server, and largest error that is read, in bytes.
pub const REGISTRY_ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most bytes that the packed layers of one image may have.
pub const REGISTRY_IMAGE_BYTES_MAX: u64 = 16 << 30;
/// Layers of one image that are fetched at once.
pub const REGISTRY_FETCHES_AT_ONCE: usize = 3;
/// Images that are pulled at once; the others wait in line.
pub const REGISTRY_PULLS_AT_ONCE: usize = 4;
/// A registry must accept a connection within this.
pub const REGISTRY_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A registry may be silent for this long.
pub const REGISTRY_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a request to a registry is tried that fails for reasons that may pass.
pub const REGISTRY_ATTEMPTS: u32 = 5;
/// How often a registry is tried that gives no answer at all.
pub const REGISTRY_CONNECT_ATTEMPTS: u32 = 3;
/// Pause before the second attempt; each further pause is twice as long.
pub const REGISTRY_BACKOFF: Duration = Duration::from_millis(500);
/// Longest pause between two attempts, also when the registry asks for a longer one.
pub const REGISTRY_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// One image must be here within this.
pub const REGISTRY_PULL_TIMEOUT: Duration = Duration::from_secs(2 * 3600);
/// Redirects that one request to a registry may lead through.
pub const REGISTRY_REDIRECTS_MAX: usize = 5;
/// A token that states no life is taken to live this long, as registries say it does.
pub const REGISTRY_TOKEN_TTL: Duration = Duration::from_secs(60);
/// Tokens of registries that are kept at once.
pub const REGISTRY_TOKENS_MAX: usize = 1024;
/// Progress of a pull is told this often at most.
pub const REGISTRY_PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Largest control API request body, in bytes.
pub const API_BODY_BYTES_MAX: usize = 1 << 20;
/// Largest head (request line and headers) of an HTTP/1 request on any listener, in bytes.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;
/// Most headers in one request on any listener. It is hyper's own limit, which hyper holds without an allocation.
pub const HTTP_HEADERS_MAX: usize = 100;
/// A client must finish sending a request's head within this.
pub const HTTP_HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// A client must finish its TLS handshake within this.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest file with a certificate or its key, in bytes.
pub const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;
/// How often the files of a given certificate are looked at.
pub const CERTIFICATE_CHECK: Duration = Duration::from_secs(1);
/// One request to an ACME server must be answered within this.
pub const ACME_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer of an ACME server, in bytes.
pub const ACME_ANSWER_BYTES_MAX: usize = 1 << 20;
/// One order of a certificate must be through within this, the hook included.
pub const ACME_TIMEOUT: Duration = Duration::from_secs(900);
/// The hook must have put a challenge into DNS, or taken it out, within this.
pub const ACME_HOOK_TIMEOUT: Duration = Duration::from_secs(300);
/// What is kept of a failed hook's output, in bytes.
pub const ACME_HOOK_OUTPUT_BYTES_MAX: u64 = 4 << 10;
/// Pause after the first order that failed; each further pause is twice as long.
pub const ACME_PAUSE: Duration = Duration::from_secs(60);
/// Longest pause between two orders that fail.
pub const ACME_PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);
/// How often the wall clock is looked at while a certificate is not due yet.
pub const ACME_CLOCK_CHECK: Duration = Duration::from_secs(3600);
/// Certificates for custom domains that are kept; beyond it each handshake has one issued.
pub const DOMAIN_CERTIFICATES_MAX: usize = 10_000;
/// Most client connections at once on one listener.
pub const CONNECTIONS_MAX: usize = 10_000;

/// Files that the daemon may need to have open at once: of the listeners' connections those to endpoints take two,
/// a MicroVM some eight.
pub const OPEN_FILES: u64 = 1 << 17;
/// Where fewer may be open, a listener's connections are this part of them, one in so many: four full listeners, three
/// of which may take two files for a connection of HTTP/1.1, leave the last part to MicroVMs.
pub const CONNECTION_FILES_SHARE: u64 = 8;

/// Connections that may read metrics at once.
pub const SCRAPES_AT_ONCE: usize = 16;

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
/// How long a connection to an app waits for the next request. Shorter than any server keeps idle ones.
pub const UPSTREAM_KEEP: Duration = Duration::from_secs(1);
/// An answer that breaks off does so by this later than its app: time to send what there is of it.
pub const BROKEN_ANSWER_GRACE: Duration = Duration::from_millis(10);
/// Idle connections to apps at once.
pub const UPSTREAM_IDLE_MAX: usize = 4096;
/// An unwanted request body is still read for this long, so that its sender gets to see the answer; and an app that has
/// answered is sent the rest of the request as long as it takes some within this.
pub const UNREAD_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Ports of apps that are known to speak plaintext or TLS at once.
pub const APP_PORTS_REMEMBERED: usize = 10_000;
/// An app that may speak TLS must finish a handshake within this.
pub const APP_TLS_TIMEOUT: Duration = Duration::from_secs(3);
/// Most of a request that is kept to say it again, should the app turn out to speak TLS, in bytes.
pub const APP_TLS_REPLAY_BYTES_MAX: usize = HTTP_HEAD_BYTES_MAX;
/// The rest of a larger request waits this long for the app to turn it down.
pub const APP_TLS_PATIENCE: Duration = Duration::from_millis(250);
/// A WebSocket client that was told to close, because its MicroVM went away, has this long to do so.
pub const WEBSOCKET_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client connection without a request in flight is closed after this.
pub const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// A client connection that is closed to make room gets this long to take its leave.
pub const SHED_GRACE: Duration = Duration::from_secs(1);
/// A request body of a stated length must go on within this, as long as somebody wants to read it; to the API and S3,
/// any body.
pub const BODY_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A client must take what it is sent within this.
pub const CLIENT_UNREAD_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest path in the access log, in bytes; what comes after is left out.
pub const LOGGED_PATH_BYTES_MAX: usize = 256;

/// Requests of one MicroVM that may wait for their turn under its limits.
pub const TURN_WAITERS_MAX: usize = WAKE_WAITERS_MAX;
/// How long a request to a MicroVM that is awake waits for its turn before it is refused.
pub const TURN_PATIENCE: Duration = Duration::from_secs(1);
/// Bandwidth that is left unused gathers for this long.
pub const BANDWIDTH_BURST: Duration = Duration::from_millis(250);
/// Most bytes that one stream moves at once under a bandwidth limit.
pub const PACED_CHUNK_BYTES_MAX: usize = 64 << 10;
/// Fewest bytes that one stream moves at once under a bandwidth limit.
pub const PACED_CHUNK_BYTES_MIN: usize = 4 << 10;
/// A paced stream moves at most what its MicroVM's bandwidth allows in this time, so that streams take turns.
pub const PACED_CHUNK: Duration = Duration::from_millis(30);

/// For so long a token that has just been opened is not decrypted again. A key that is taken away stays good for it.
pub const TOKEN_TRUST: Duration = Duration::from_secs(1);
/// Longest life of an endpoint token, in minutes.
pub const TOKEN_MINUTES_MAX: i32 = 60;
/// Days that one key signs endpoint tokens, unless configured otherwise.
pub const TOKEN_ROTATE_DAYS: u32 = 30;
/// Most days that one key may sign endpoint tokens.
pub const TOKEN_ROTATE_DAYS_MAX: u32 = 365;
/// A key that signs no more still opens tokens for this long: the longest life of a token, and some time
/// for clocks that differ.
pub const TOKEN_KEY_OVERLAP: Duration = Duration::from_secs((TOKEN_MINUTES_MAX as u64 + 10) * 60);
/// How often the age of the signing key is looked at.
pub const TOKEN_KEY_CHECK: Duration = Duration::from_secs(60);
/// Most keys for endpoint tokens; the oldest goes when there would be more.
pub const TOKEN_KEYS_MAX: usize = 16;
/// Custom domains that one MicroVM may have.
pub const MICROVM_DOMAINS_MAX: usize = 100;
/// How often custom domains of MicroVMs that have ended are taken back.
pub const DOMAINS_SWEEP: Duration = Duration::from_secs(5);
/// Most ports and ranges in one endpoint token: it travels in a header.
pub const TOKEN_GRANTS_MAX: usize = 100;

/// Refusals for want of a right that one address gets a second, and at once after a silence; beyond that it
/// is told to wait.
pub const REFUSALS_PER_SECOND: u32 = 10;
/// See [`REFUSALS_PER_SECOND`].
pub const REFUSALS_BURST: u32 = 100;
/// Addresses whose refusals are counted one by one; beyond that all others share a count.
pub const REFUSED_SOURCES_MAX: usize = 4096;

/// Age beyond which a signed request is refused, either way.
pub const SIGV4_CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);

/// Commands that may wait for one MicroVM's driver.
pub const DRIVER_QUEUE: usize = 64;
/// Requests that may wait for one MicroVM to wake.
pub const WAKE_WAITERS_MAX: usize = 1024;
/// How long a request waits for its MicroVM to wake or to finish starting. A MicroVM that is falling asleep drains
/// first.
pub const WAKE_TIMEOUT: Duration = DRAIN_TIMEOUT.saturating_add(LAUNCH_TIMEOUT);
/// How often a request is let in anew when its MicroVM goes to sleep before the app has seen it.
pub const OPEN_ATTEMPTS: usize = 3;
/// A suspend waits for requests in flight: until no byte has moved for this long ...
pub const DRAIN_QUIET: Duration = Duration::from_secs(5);
/// ... and no longer than this.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// A restore must reach a thawed app within this.
pub const LAUNCH_TIMEOUT: Duration = Duration::from_secs(60);
/// A cold boot must reach a ready agent within this; software emulation is slow.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// A suspend's app must be frozen within this, and then its snapshot on disk.
pub const SUSPEND_TIMEOUT: Duration = Duration::from_secs(300);
/// A MicroVM whose app has ended is still there this long, as on AWS; its endpoint answers 502 meanwhile.
pub const APP_EXIT_GRACE: Duration = Duration::from_secs(15);
/// An orderly power-off gets this long before the VMM is killed.
pub const POWEROFF_TIMEOUT: Duration = Duration::from_secs(10);
/// What must succeed in the end, such as a teardown, is tried again after this ...
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
/// ... and after twice as long each time, up to this.
pub const RETRY_LAST: Duration = Duration::from_secs(30);
/// Launches, suspends and resumes that one host works on at once; the others wait in line, but not for guests.
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
/// What is kept of a QEMU process's standard error, in bytes: the first of it.
pub const VMM_WORDS_BYTES_MAX: usize = 64 << 10;
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
/// Largest answer of the agent that is JSON, in bytes.
pub const AGENT_JSON_BYTES_MAX: usize = 64 << 10;
/// Longest message of the agent that is repeated, in a log or a reason, in bytes.
pub const AGENT_MESSAGE_BYTES_MAX: usize = 1024;
/// Shells that may be open in one MicroVM at once.
pub const SHELLS_MAX: usize = 32;
/// What a shell started gets this long to end by itself once its client has hung up.
pub const SHELL_HANG_UP_GRACE: Duration = Duration::from_secs(1);
/// Longest message that a shell's client may send, in bytes.
pub const SHELL_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Most that waits for a shell's client to read it, in bytes: the answers to its pings, and a message of the shell's.
/// More pings than there is room for have one answer.
pub const SHELL_UNREAD_BYTES_MAX: usize = 256 * 1024;
/// A shell's client that sends nothing is pinged this often, so that nothing on the way forgets it.
pub const SHELL_PING_INTERVAL: Duration = Duration::from_secs(30);
/// Bytes of the app's output that the agent keeps for the host to fetch.
pub const AGENT_LOG_BYTES: usize = 1 << 20;

/// Largest file of extra CA certificates that builds trust, in bytes.
pub const EXTRA_CA_BYTES_MAX: usize = 1 << 20;
/// Largest secret of a build, in bytes, as in Docker.
pub const BUILD_SECRET_BYTES_MAX: usize = 500 << 10;
/// The build cache keeps layers that nothing lies over up to this part of its file system.
pub const CACHE_DISK_SHARE: u64 = 5;
/// The build cache is looked over this often, besides after each build.
pub const CACHE_SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// A pulled base image that nothing lies over is kept for this long after a build has last used it.
pub const BASE_IMAGE_KEEP: Duration = Duration::from_secs(30 * 24 * 3600);
/// `dormouse system prune` spares layers that a build has used within this, unless it is told otherwise.
pub const CACHE_PRUNE_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest that one request for a build's log waits for more of it.
pub const LOG_WAIT_MAX: Duration = Duration::from_secs(20);
/// Most of a build's log in one answer, in bytes.
pub const LOG_CHUNK_BYTES_MAX: usize = 256 << 10;

/// Image builds that run at once; the others wait in line.
pub const BUILDS_AT_ONCE: usize = 2;
/// Most image builds that one host may be told to run at once.
pub const BUILDS_AT_ONCE_MAX: usize = 64;
/// Image builds of all accounts that may wait in line.
pub const BUILD_QUEUE: usize = 4096;
/// Size of the disk of a stage that begins with nothing, in bytes.
pub const BUILD_EMPTY_DISK_BYTES: u64 = 8 << 30;
/// Size of a disk of cache mounts as builds see it, in bytes.
pub const BUILD_CACHE_DISK_BYTES: u64 = 32 << 30;
/// A disk of cache mounts that takes more than this is emptied before its next build, in bytes.
pub const BUILD_CACHE_BYTES_MAX: u64 = 16 << 30;
/// Disks of cache mounts of one account: so many of its builds can have one at a time.
pub const BUILD_CACHE_DISKS_MAX: usize = 16;
/// Largest file that ADD fetches, in bytes.
pub const BUILD_FETCH_BYTES_MAX: u64 = 4 << 30;
/// Redirects that ADD follows for one file.
pub const BUILD_FETCH_REDIRECTS_MAX: usize = 10;
/// A server that ADD fetches from must make progress within this.
pub const BUILD_FETCH_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory of the VM that runs Dockerfile steps, in MiB; what it does not touch costs nothing.
pub const BUILD_VM_MEMORY_MIB: u32 = 4096;
/// A build step that fails while the host has less than this free failed because of it, in bytes.
pub const DISK_FULL_BYTES: u64 = 16 << 20;
/// How often a machine that stopped because the host's disk was full is looked at.
pub const DISK_FULL_POLL: Duration = Duration::from_secs(1);
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
/// Time limit of a ready hook that states none, in seconds. AWS's own papers say 30, measurements 60: the
/// longer one fails no build that the other lets pass.
pub const READY_TIMEOUT_DEFAULT_S: u64 = 60;
/// Time limit of a validate hook that states none, in seconds. AWS's own papers say 30, measurements 1: the
/// longer one fails no build that the other lets pass.
pub const VALIDATE_TIMEOUT_DEFAULT_S: u64 = 30;
/// Time limit of a run, resume, suspend or terminate hook that states none, in seconds.
pub const LIFECYCLE_HOOK_TIMEOUT_DEFAULT_S: u64 = 1;
/// Pause between two polls of a ready or validate hook.
pub const HOOK_POLL: Duration = Duration::from_millis(500);
/// Bytes of a hook's answer that are taken; its status alone counts.
pub const HOOK_BODY_BYTES_MAX: usize = 64 << 10;
/// The body of a hook's answer is waited for no longer than this.
pub const HOOK_BODY_TIMEOUT: Duration = Duration::from_millis(500);
/// Most ranges of memory in the file of a working set.
pub const WORKING_SET_RANGES_MAX: usize = 1 << 20;
/// Most bytes of memory that one launch reads ahead.
pub const PREFETCH_BYTES_MAX: u64 = 4 << 30;

/// Network connectors of one account.
pub const CONNECTORS_MAX: usize = 100;
/// Versions of one network connector; older ones can be deleted.
pub const CONNECTOR_VERSIONS_MAX: usize = 50;
/// Subnets that a host's configuration may name for network connectors.
pub const SUBNETS_MAX: usize = 64;
/// Ranges of one such subnet.
pub const SUBNET_RANGES_MAX: usize = 64;

/// Bytes that must be free on the data directory's file system for a launch or a write to the embedded S3, unless
/// configured otherwise.
pub const HOST_DISK_FREE_MIN_BYTES: u64 = 512 << 20;
/// Bytes of memory that must be available on the host for a launch, unless configured otherwise.
pub const HOST_MEMORY_FREE_MIN_BYTES: u64 = 256 << 20;

/// User id of the VMM in a host's slot 0; each slot has its own, from here on. It lies above the ids that distributions
/// hand out to users, their containers and `systemd-nspawn`.
pub const JAIL_FIRST_UID: u32 = 2_000_000_000;
/// How long a jail may take to be built.
pub const JAIL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest disk of any machine, as its guest sees it.
pub const DISK_BYTES_MAX: u64 = 32 << 30;
/// Disks that may lie over each other.
pub const DISK_CHAIN_MAX: usize = 300;
/// Memory that a VMM may take besides its guest's, in MiB.
pub const VMM_OVERHEAD_MIB: u64 = 256;
/// Memory that software emulation may take for translated code besides that, in MiB.
pub const VMM_TRANSLATION_MIB: u64 = 1024;
/// Bytes that a VMM may write to one file besides twice the size of its guest's disk: a qcow2 file is larger than what is
/// in it, and device states and messages are files, too.
pub const VMM_FILE_SPARE_BYTES: u64 = 1 << 30;
/// Processes and threads of a VMM besides its vCPUs: its input and output has up to 64.
pub const VMM_THREADS: u32 = 80;

/// Network slots that are kept made ahead of need.
pub const SLOTS_WARM: usize = 4;
/// Most network slots on one host.
pub const SLOTS_MAX: u16 = 8192;
/// Outbound connections of one MicroVM that may exist at once: the host's table of them is shared.
pub const SLOT_CONNECTIONS_MAX: u32 = 4096;
/// Flows of one MicroVM to the forwarder of its DNS queries that may exist at once. Each query from a new port is one for
/// half a minute, so that this many allow some seventy in each second.
pub const SLOT_NAME_FLOWS_MAX: u32 = 2048;
/// How often the host's packet filter is checked to be in place.
pub const SLOT_RULES_CHECK: Duration = Duration::from_secs(5);
/// Largest DNS query that is forwarded, in bytes.
pub const DNS_QUERY_BYTES_MAX: usize = 4096;
/// DNS queries of one MicroVM that may be in flight at once.
pub const DNS_IN_FLIGHT_MAX: usize = 64;
/// TCP connections with DNS queries of one MicroVM that are served at once.
pub const DNS_STREAMS_MAX: usize = 8;
/// TCP connections of the DNS answerer at once.
pub const DNS_CONNECTIONS_MAX: usize = 64;
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
/// A file of the embedded S3's that nothing names is spared for this long after the last write: an object may be on its
/// way into it.
pub const S3_LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);
/// How often the embedded S3 is looked over for what is left behind.
pub const S3_SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// Images that one account may have, unless configured otherwise. AWS: 100.
pub const ACCOUNT_IMAGES: usize = 1000;
/// Versions that one image may have, unless configured otherwise. AWS: 50.
pub const IMAGE_VERSIONS: usize = 500;
/// Most versions that an image may be allowed: they are read at once.
pub const IMAGE_VERSIONS_MAX: usize = STORE_PAGE_ROWS_MAX;
/// Builds of one account that may wait or run, unless configured otherwise. AWS: 5 or 10.
pub const ACCOUNT_BUILDS: usize = 64;
/// Baseline memory of one account's MicroVMs that run or sleep, in MiB, unless configured otherwise.
/// AWS: 400 GB, in some regions 1024 GB, of new accounts 4 GB.
pub const ACCOUNT_MEMORY_MIB: u64 = 8 << 20;
/// Calls of each operation that one account may make in a second, unless configured otherwise. AWS: Run 5,
/// Resume 5, Suspend 2, Terminate 10, Get 100, CreateMicrovmAuthToken 50, CreateMicrovmShellAuthToken 5.
pub const CALLS_PER_SECOND: u32 = 1000;
/// Calls of each operation that one account may make at once after a silence, unless configured otherwise.
pub const CALLS_BURST: u32 = 2000;
/// Tags of one resource, as on AWS.
pub const TAGS_MAX: usize = 50;
/// Times that the files of something deleted are tried to be removed before the deletion counts as failed.
pub const DELETE_ATTEMPTS: u32 = 5;
/// Pause between two such tries.
pub const DELETE_RETRY: Duration = Duration::from_secs(1);
/// How often files that MicroVMs still use are looked at again, once their version is deleted.
pub const DELETE_LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Times that a request is decided again because another writer was faster.
pub const WRITE_ATTEMPTS: usize = 10;

/// Access keys that one data directory may have.
pub const ACCESS_KEYS_MAX: usize = 10_000;
/// How often the folder of access keys is looked at.
pub const ACCESS_KEYS_CHECK: Duration = Duration::from_millis(500);

/// Items on one page of a list when the caller names no number, and the most it may name.
pub const PAGE_ITEMS_MAX: u32 = 50;
/// How long a client token answers with the MicroVM or image that it first made.
pub const CLIENT_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Peak vCPUs that a guest of this baseline memory sees, as on AWS.
#[must_use]
pub fn peak_vcpus(baseline_mib: u32) -> u32 {
    (baseline_mib / 512).max(1)
}

/// Requests, streams and switched connections of a MicroVM of this baseline memory that may be in flight at once,
/// unless configured otherwise; as on AWS, which speaks of connections.
#[must_use]
pub fn requests_in_flight(baseline_mib: u32) -> u32 {
    8 * peak_vcpus(baseline_mib)
}

/// Requests a second to a MicroVM of this baseline memory, unless configured otherwise. AWS states 40 for 4 vCPUs and
/// 160 for 16; the sizes between follow.
#[must_use]
pub fn requests_per_second(baseline_mib: u32) -> u32 {
    10 * peak_vcpus(baseline_mib)
}

/// Bytes a second that a MicroVM of this baseline memory may take in and give out together, unless configured
/// otherwise; as on AWS.
#[must_use]
pub fn bandwidth_bytes_per_second(baseline_mib: u32) -> u64 {
    1_000_000 * u64::from(peak_vcpus(baseline_mib))
}

/// Size of a guest's root disk in bytes for this baseline memory, as on AWS.
#[must_use]
pub fn disk_bytes(baseline_mib: u32) -> u64 {
    const GIB: u64 = 1 << 30;
    match baseline_mib {
        0..=2048 => 8 * GIB,
        2049..=4096 => 16 * GIB,
        _ => DISK_BYTES_MAX,
    }
}
