//! Shells: what opens, wakes and ends them.

use crate::lab::{Daemon, Lab, Opened};
use dormouse_core::guest::{Exit, FrameKind, ShellSpec, TerminalSize, put_frame, whole_frame};
use dormouse_core::microvm::{IdlePolicy, Record, State};
use dormouse_node::node::OpenError;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

const IDLE_S: u64 = 60;
const SLEEPY: IdlePolicy = IdlePolicy {
    max_idle_s: IDLE_S,
    suspended_s: 28_800,
    auto_resume: true,
};

/// One end of a shell.
struct Shell {
    stream: Opened,
    buffer: Vec<u8>,
}

impl Shell {
    async fn open(daemon: &Daemon, vm: &Record, command: Option<&str>) -> Result<Self, OpenError> {
        let spec = ShellSpec {
            terminal: Some(TerminalSize { cols: 80, rows: 24 }),
            command: command.map(str::to_owned),
        };
        let stream = daemon.open_shell(vm, &spec).await?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    async fn send(&mut self, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::new();
        put_frame(&mut frame, kind, payload);
        self.stream.write_all(&frame).await
    }

    async fn frame(&mut self) -> io::Result<(FrameKind, Vec<u8>)> {
        loop {
            if let Some((kind, at)) = whole_frame(&self.buffer).unwrap() {
                let payload = self.buffer[at.clone()].to_vec();
                self.buffer.drain(..at.end);
                return Ok((kind, payload));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads what is shown up to and with `end`.
    async fn until(&mut self, end: &str) -> String {
        let mut shown = Vec::new();
        while !shown.ends_with(end.as_bytes()) {
            let (kind, payload) = self.frame().await.unwrap();
            assert_eq!(kind, FrameKind::Stdout);
            shown.extend(payload);
        }
        String::from_utf8(shown).unwrap()
    }

    async fn exit(&mut self) -> i32 {
        loop {
            let (kind, payload) = self.frame().await.unwrap();
            if kind == FrameKind::Exit {
                return serde_json::from_slice::<Exit>(&payload).unwrap().code;
            }
        }
    }
}

#[test]
fn a_shell_runs_what_is_typed_in_a_terminal_of_its_size() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let mut shell = Shell::open(&daemon, &vm, None).await.unwrap();
        assert_eq!(shell.until("$ ").await, "λ $ ");
        shell.send(FrameKind::Stdin, b"size\n").await.unwrap();
        assert_eq!(shell.until("$ ").await, "size\n24 80\nλ $ ");
        let size = br#"{"cols":120,"rows":40}"#;
        shell.send(FrameKind::Resize, size).await.unwrap();
        shell.send(FrameKind::Stdin, b"size\n").await.unwrap();
        assert_eq!(shell.until("$ ").await, "size\n40 120\nλ $ ");
        shell.send(FrameKind::Stdin, b"exit 7\n").await.unwrap();
        assert_eq!(shell.exit().await, 7);
        let mut command = Shell::open(&daemon, &vm, Some("size")).await.unwrap();
        assert_eq!(command.until("\n").await, "24 80\n");
        assert_eq!(command.exit().await, 0);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn a_shell_wakes_its_microvm_and_keystrokes_keep_it_awake_but_silence_does_not() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.with_policy(SLEEPY), 3).await;
        let mut shell = Shell::open(&daemon, &vm, None).await.unwrap();
        shell.until("$ ").await;
        for _ in 0..10 {
            sleep(Duration::from_secs(IDLE_S / 2)).await;
            shell.send(FrameKind::Stdin, b"\n").await.unwrap();
            shell.until("$ ").await;
        }
        assert_eq!(daemon.stored(&vm).await.value.state, State::Running);
        daemon.until(&vm, State::Suspended).await;
        // The shell went with the machine, and its client learns of it.
        let error = shell.frame().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(shell.send(FrameKind::Stdin, b"\n").await.is_err());
        let mut again = Shell::open(&daemon, &vm, None).await.unwrap();
        assert_eq!(again.until("$ ").await, "λ $ ");
        assert_eq!(daemon.count(&vm).await, 3);
    });
}

#[test]
fn a_microvm_that_is_over_or_may_not_wake_has_no_shell() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let by_hand = IdlePolicy {
            auto_resume: false,
            ..SLEEPY
        };
        let vm = daemon.suspended(daemon.with_policy(by_hand), 0).await;
        let refused = Shell::open(&daemon, &vm, None).await.map(drop);
        assert!(matches!(refused, Err(OpenError::Asleep)), "{refused:?}");
        daemon.terminate(&vm).await;
        let refused = Shell::open(&daemon, &vm, None).await.map(drop);
        assert!(matches!(refused, Err(OpenError::Ended)), "{refused:?}");
    });
}
