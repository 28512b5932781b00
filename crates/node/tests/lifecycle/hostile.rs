//! Agents that lie, stall, flood and talk nonsense. A guest that has taken over its own kernel may answer
//! anything: the host is bothered for a limited time, takes a limited number of bytes, and nobody else is harmed.

use crate::lab::Lab;
use async_trait::async_trait;
use dormouse_core::guest::{AppSpec, CopySpec, ExecSpec, ProcessSpec, ShellSpec, ThawSpec};
use dormouse_core::guest::{FrameKind, TreeCopySpec, put_frame};
use dormouse_core::limits;
use dormouse_core::microvm::Event;
use dormouse_node::guest::{Guest, GuestError};
use dormouse_node::vmm::{DeltaFiles, DeltaStats, ExitReason, Instance, Stream, VmmError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep};

/// What an agent does with each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malice {
    NeverAnswers,
    HangsUp,
    EndlessLine,
    EndlessFields,
    EndlessBody,
    EndlessRefusal,
    ImpossibleLength,
    OneByteASecond,
    EndlessContinues,
    AnswersTwice,
    Noise,
    DeepJson,
    EmptyFrames,
    FrameOfNoKind,
    HostsFrame,
    SwitchesProtocols,
    StatusOfNoMeaning,
}

impl Malice {
    pub(crate) const ALL: [Self; 17] = [
        Self::NeverAnswers,
        Self::HangsUp,
        Self::EndlessLine,
        Self::EndlessFields,
        Self::EndlessBody,
        Self::EndlessRefusal,
        Self::ImpossibleLength,
        Self::OneByteASecond,
        Self::EndlessContinues,
        Self::AnswersTwice,
        Self::Noise,
        Self::DeepJson,
        Self::EmptyFrames,
        Self::FrameOfNoKind,
        Self::HostsFrame,
        Self::SwitchesProtocols,
        Self::StatusOfNoMeaning,
    ];

    /// A connection to an agent like that; `sent` counts the bytes that the host took.
    pub(crate) fn connect(self, sent: Arc<AtomicUsize>) -> DuplexStream {
        let (host, stream) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            // Its end is the host's hanging up.
            let _ = Agent { stream, sent }.answer(self).await;
        });
        host
    }
}

struct Agent {
    stream: DuplexStream,
    sent: Arc<AtomicUsize>,
}

impl Agent {
    async fn answer(mut self, malice: Malice) -> io::Result<()> {
        let mut request = vec![0; 64 << 10];
        let _ = self.stream.read(&mut request).await?;
        let ok = "HTTP/1.1 200 OK\r\n";
        let chunk = chunked(&[b'x'; 4096]);
        match malice {
            Malice::NeverAnswers => while self.stream.read(&mut request).await? > 0 {},
            Malice::HangsUp => {}
            Malice::EndlessLine => self.flood(&format!("{ok}x: "), &[b'x'; 4096]).await?,
            Malice::EndlessFields => self.flood(ok, "a: b\r\n".repeat(500).as_bytes()).await?,
            Malice::EndlessBody => self.chunks(200, &chunk).await?,
            Malice::EndlessRefusal => self.chunks(500, &chunk).await?,
            Malice::ImpossibleLength => {
                let head = format!("{ok}content-length: {}\r\n\r\n", u64::MAX - 1);
                self.flood(&head, &[b'['; 4096]).await?;
            }
            Malice::OneByteASecond => {
                for byte in format!("{ok}a: {}", "b".repeat(100_000)).bytes() {
                    self.send(&[byte]).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Malice::EndlessContinues => loop {
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                sleep(Duration::from_millis(50)).await;
            },
            Malice::AnswersTwice => {
                let answer = format!("{ok}content-length: 2\r\n\r\n{{}}");
                self.send(answer.repeat(2).as_bytes()).await?;
                let _ = self.stream.read(&mut request).await?;
            }
            Malice::Noise => {
                self.flood("", &[0xff, 0x00, 0x0d, 0x0a].repeat(1000))
                    .await?
            }
            Malice::DeepJson => {
                let head = format!("{ok}content-length: {}\r\n\r\n", 1 << 20);
                self.send(head.as_bytes()).await?;
                self.send(&vec![b'['; 1 << 20]).await?;
            }
            Malice::EmptyFrames => {
                let frames = [FrameKind::Stdout as u8, 0, 0, 0, 0].repeat(0x3000 / 5);
                self.send(format!("{ok}transfer-encoding: chunked\r\n\r\n").as_bytes())
                    .await?;
                loop {
                    self.send(&chunked(&frames)).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Malice::FrameOfNoKind => {
                let frames = [9, 0xff, 0xff, 0xff, 0xff].repeat(800);
                self.chunks(200, &chunked(&frames)).await?;
            }
            Malice::HostsFrame => {
                let mut frame = Vec::new();
                put_frame(&mut frame, FrameKind::Stdin, b"ls");
                self.chunks(200, &chunked(&frame.repeat(500))).await?;
            }
            Malice::SwitchesProtocols => {
                let head =
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
                self.flood(head, &[0; 4096]).await?;
            }
            Malice::StatusOfNoMeaning => self.chunks(999, &chunk).await?,
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.sent.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Ends when the host hangs up, or has taken more than it ever should.
    async fn flood(&mut self, head: &str, more: &[u8]) -> io::Result<()> {
        self.send(head.as_bytes()).await?;
        while self.sent.load(Ordering::Relaxed) < 10 * TAKEN_MAX {
            self.send(more).await?;
        }
        Ok(())
    }

    async fn chunks(&mut self, status: u16, chunk: &[u8]) -> io::Result<()> {
        let head = format!("HTTP/1.1 {status} OK\r\ntransfer-encoding: chunked\r\n\r\n");
        self.flood(&head, chunk).await
    }
}

/// Bytes as a chunk of a body.
fn chunked(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// What one request may take in: a body of the largest size, and what lies in buffers on the way.
const TAKEN_MAX: usize = limits::AGENT_BODY_BYTES_MAX + (1 << 20);

/// A machine whose agent is like that.
#[derive(Debug)]
struct Machine {
    malice: Malice,
    /// Bytes that the host took, for each connection.
    sent: Mutex<Vec<Arc<AtomicUsize>>>,
}

#[async_trait]
impl Instance for Machine {
    fn pid(&self) -> Option<u32> {
        None
    }

    async fn resume(&self) -> Result<(), VmmError> {
        Ok(())
    }

    async fn pause(&self) -> Result<(), VmmError> {
        Ok(())
    }

    async fn snapshot_golden(&self, _: &Path) -> Result<(), VmmError> {
        unreachable!("nobody snapshots it")
    }

    async fn snapshot_delta(&self, _: &DeltaFiles) -> Result<DeltaStats, VmmError> {
        unreachable!("nobody snapshots it")
    }

    async fn touched_pages(&self) -> Result<Vec<Range<u64>>, VmmError> {
        unreachable!("nobody asks")
    }

    async fn switch_disk(&self, _: &Path) -> Result<(), VmmError> {
        unreachable!("nobody builds with it")
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, VmmError> {
        let sent = Arc::new(AtomicUsize::new(0));
        self.sent.lock().unwrap().push(Arc::clone(&sent));
        Ok(Box::new(self.malice.connect(sent)))
    }

    async fn exited(&self) -> ExitReason {
        std::future::pending().await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        Ok(())
    }
}

type Answer<'a> = BoxFuture<'a, Result<(), GuestError>>;

/// One kind of request: its name, the time that it may take, and how it is made.
type Ask = (&'static str, Duration, fn(Guest<'_>) -> Answer<'_>);

const SHORT: Duration = limits::AGENT_REQUEST_TIMEOUT;
const STEP: Duration = Duration::from_secs(limits::BUILD_STEP_TIMEOUT_S);
const EXEC: Duration = SHORT.saturating_add(Duration::from_secs(60));

/// All that is ever asked, but for `wait_app`, which waits for as long as the machine lives.
const ASKED: [Ask; 19] = [
    ("hello", Duration::from_secs(6), |guest| {
        async move { guest.hello(Duration::from_secs(5)).await.map(drop) }.boxed()
    }),
    ("start_app", SHORT, |guest| {
        async move { guest.start_app(&app()).await.map(drop) }.boxed()
    }),
    ("app", SHORT, |guest| {
        async move { guest.app().await.map(drop) }.boxed()
    }),
    ("app_logs", SHORT.saturating_mul(2), |guest| {
        async move { guest.app_logs(0).await.map(drop) }.boxed()
    }),
    ("exec", EXEC, |guest| {
        async move {
            let spec = ExecSpec {
                process: app().process,
                mounts: Vec::new(),
                offline: false,
            };
            guest.exec(&spec, drop).await.map(drop)
        }
        .boxed()
    }),
    ("copy", STEP, |guest| {
        async move { guest.copy(&copy(), tar()).await }.boxed()
    }),
    ("unpack", STEP, |guest| {
        async move { guest.unpack(&copy(), tar()).await.map(drop) }.boxed()
    }),
    ("put_tree", STEP, |guest| {
        async move { guest.put_tree("t", tar()).await }.boxed()
    }),
    ("delete_tree", SHORT, |guest| {
        async move { guest.delete_tree("t").await }.boxed()
    }),
    ("copy_tree", STEP, |guest| {
        async move {
            let spec = TreeCopySpec {
                sources: vec!["/".to_owned()],
                dest: "/".to_owned(),
                owner: String::new(),
                mode: None,
                parents: false,
                excludes: Vec::new(),
            };
            guest.copy_tree("t", &spec).await
        }
        .boxed()
    }),
    ("lend_trust", SHORT, |guest| {
        async move { guest.lend_trust("").await.map(drop) }.boxed()
    }),
    ("take_trust_back", SHORT, |guest| {
        async move { guest.take_trust_back().await }.boxed()
    }),
    ("freeze_disk", SHORT, |guest| {
        async move { guest.freeze_disk().await }.boxed()
    }),
    ("freeze", limits::SUSPEND_TIMEOUT, |guest| {
        async move { guest.freeze().await }.boxed()
    }),
    ("thaw", SHORT, |guest| {
        async move { guest.thaw(&thaw()).await }.boxed()
    }),
    ("thaw_restored", SHORT.saturating_mul(2), |guest| {
        async move { guest.thaw_restored(SHORT, thaw).await }.boxed()
    }),
    ("power_off", SHORT, |guest| {
        async move { guest.power_off().await }.boxed()
    }),
    ("tunnel", SHORT, |guest| {
        async move { guest.tunnel(8080).await.map(drop) }.boxed()
    }),
    ("shell", SHORT, |guest| {
        async move {
            let spec = ShellSpec {
                terminal: None,
                command: None,
            };
            guest.shell(&spec).await.map(drop)
        }
        .boxed()
    }),
];

fn app() -> AppSpec {
    AppSpec::from(ProcessSpec {
        argv: vec!["true".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: String::new(),
        timeout_s: Some(60),
    })
}

fn copy() -> CopySpec {
    CopySpec {
        dest: "/".to_owned(),
        as_file: false,
        owner: String::new(),
    }
}

/// More than fits into the buffers on the way.
fn tar() -> io::Cursor<Vec<u8>> {
    io::Cursor::new(vec![0; 4 << 20])
}

fn thaw() -> ThawSpec {
    ThawSpec {
        wall_clock_ns: 0,
        entropy_hex: String::new(),
        hostname: "vm".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_ends_in_time_and_takes_little_whatever_the_agent_does() {
    for malice in Malice::ALL {
        for (name, limit, ask) in ASKED {
            let machine = Machine {
                malice,
                sent: Mutex::default(),
            };
            let began = Instant::now();
            let answer = ask(Guest::new(&machine)).await;
            let took = began.elapsed();
            assert!(
                took <= limit + Duration::from_secs(1),
                "{name}, {malice:?}: {took:?}"
            );
            // The host has hung up: an agent that goes on sends into the void.
            sleep(Duration::from_secs(2)).await;
            for sent in &*machine.sent.lock().unwrap() {
                let sent = sent.load(Ordering::Relaxed);
                assert!(sent <= TAKEN_MAX, "{name}, {malice:?}: {sent} bytes");
            }
            if let Err(error) = answer {
                let text = dormouse_core::chain(&error).to_string();
                assert!(text.len() < 2 * limits::AGENT_MESSAGE_BYTES_MAX, "{text}");
                assert!(!text.contains(char::is_control), "{text:?}");
            }
        }
    }
}

/// More of them than there are turns.
const CROWD: usize = 2 * limits::TRANSITIONS_AT_ONCE;

#[test]
fn agents_that_are_silent_hold_up_nobody_elses_launch_suspend_or_wake() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let honest = daemon.running(daemon.record()).await;
        let mut silent = Vec::new();
        for _ in 0..CROWD {
            let vm = daemon.running(daemon.record()).await;
            daemon
                .stage
                .turn(daemon.dir(&vm).path(), Malice::NeverAnswers);
            daemon.command(&vm, Event::SuspendRequested).await.unwrap();
            silent.push(vm);
        }
        for _ in 0..CROWD {
            let vm = daemon.suspended(daemon.record(), 0).await;
            daemon
                .stage
                .turn(daemon.dir(&vm).path(), Malice::NeverAnswers);
            daemon.command(&vm, Event::ResumeRequested).await.unwrap();
            silent.push(vm);
        }
        for _ in 0..CROWD {
            let vm = daemon.record();
            daemon
                .stage
                .turn(daemon.dir(&vm).path(), Malice::NeverAnswers);
            silent.push(daemon.launch(vm).await);
        }
        let began = Instant::now();
        daemon.running(daemon.record()).await;
        daemon.suspend(&honest).await;
        assert_eq!(daemon.count(&honest).await, 0);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "took {took:?}");
        for vm in silent {
            daemon.terminate(&vm).await;
        }
        daemon.assert_at_rest().await;
    });
}

#[test]
fn an_agent_that_turns_hostile_harms_its_own_microvm_and_no_other() {
    for malice in Malice::ALL {
        let lab = Lab::new();
        lab.day(async |daemon| {
            let neighbour = daemon.running(daemon.record()).await;
            daemon.ask(&neighbour, "POST /count").await.unwrap();
            let vm = daemon.running(daemon.record()).await;
            daemon.stage.turn(daemon.dir(&vm).path(), malice);
            // Whatever comes of it: a request, a suspend, the end.
            let _ = daemon.knock(&vm).await;
            daemon.ask(&neighbour, "POST /count").await.unwrap();
            let _ = daemon.command(&vm, Event::SuspendRequested).await;
            daemon.ask(&neighbour, "POST /count").await.unwrap();
            // It may be asleep by now, or be asked again and again to run on.
            sleep(2 * limits::SUSPEND_TIMEOUT).await;
            daemon.terminate(&vm).await;
            assert_eq!(daemon.count(&neighbour).await, 3, "{malice:?}");
            daemon.at_rest().await;
            daemon.assert_at_rest().await;
        });
    }
}
