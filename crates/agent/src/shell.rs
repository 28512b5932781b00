//! Shells for people: beside the app and with its view of the system, as root.
//!
//! A shell lives as long as the host's connection to it. When that ends, its processes are told by a
//! hang-up, as when a modem's line dropped, and after a moment they are killed. When the shell ends by
//! itself, what it left behind is killed at once, and the host learns how it ended.

mod streams;

use crate::cgroup::Cgroup;
use crate::console;
use crate::process::{Plan, Rights, StartError, Started};
use crate::program::ProgramError;
use crate::reaper::Reaper;
use crate::terminal::Terminal;
use bytes::{Buf, BytesMut};
use dormouse_core::guest::{
    AppSpec, Exit, FrameKind, ProcessSpec, ShellSpec, TerminalSize, put_frame, whole_frame,
};
use dormouse_core::limits;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustix::process::{Signal, kill_process_group};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use streams::{Input, Output};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Shells to look for, the one that people like best first.
const PROGRAMS: [&str; 2] = ["bash", "sh"];
/// AWS's.
const PROMPT: &str = "λ $ ";
/// Without one of these bash takes no character but ASCII for one.
const LOCALE_VARIABLES: [&str; 3] = ["LC_ALL", "LC_CTYPE", "LANG"];
/// Once a shell has ended, the host must take what it still has to say within this.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(30);
/// How soon a host is missed while a program does not take what was typed.
const HANG_UP_POLL: Duration = Duration::from_millis(500);

/// Finds a shell and prepares it to run as `spec` says beside `app`. This blocks.
pub(crate) fn prepare(spec: &ShellSpec, app: &AppSpec) -> Result<Plan, StartError> {
    let rights = if app.all_capabilities {
        Rights::AllBeside
    } else {
        Rights::Command
    };
    let [first, second] = PROGRAMS;
    match Plan::new(process(first, spec, app), rights) {
        Err(StartError::Program(ProgramError::NotInPath(_))) => {
            Plan::new(process(second, spec, app), rights)
        }
        planned => planned,
    }
}

/// A shell's process: the app's environment and folder, and what one at a terminal needs.
fn process(program: &str, spec: &ShellSpec, app: &AppSpec) -> ProcessSpec {
    let mut argv = vec![program.to_owned()];
    let mut env = app.process.env.clone();
    let mut set = |name: &str, value: &str| {
        env.retain(|(present, _)| present != name);
        env.push((name.to_owned(), value.to_owned()));
    };
    if spec.terminal.is_some() {
        set("TERM", "xterm");
    }
    match &spec.command {
        Some(command) => argv.extend(["-c".to_owned(), command.clone()]),
        None if spec.terminal.is_some() => {
            set("PS1", PROMPT);
            // Start-up files of distributions set a prompt of their own: bash runs this after them, once.
            let command = format!("PS1='{PROMPT}'; unset PROMPT_COMMAND");
            set("PROMPT_COMMAND", &command);
        }
        None => {}
    }
    let has_locale = |(name, _): &(String, String)| LOCALE_VARIABLES.contains(&name.as_str());
    if !app.process.env.iter().any(has_locale) {
        set("LANG", "C.UTF-8");
    }
    ProcessSpec {
        argv,
        env,
        cwd: app.process.cwd.clone(),
        user: String::new(),
        timeout_s: None,
    }
}

/// A shell that runs, with nobody who talks to it yet.
#[derive(Debug)]
pub(crate) struct Shell {
    started: Started,
    input: Input,
    output: Output,
    guest: Arc<Cgroup>,
    cgroup: Cgroup,
    name: String,
}

impl Shell {
    /// Starts a shell in the group `name` below `guest`.
    pub(crate) fn start(
        plan: Plan,
        terminal: Option<TerminalSize>,
        reaper: &Reaper,
        guest: Arc<Cgroup>,
        name: String,
    ) -> Result<Self, StartError> {
        let cgroup = guest
            .child(&name)
            .map_err(StartError::host("make a control group"))?;
        let start = || match terminal {
            Some(size) => {
                let (terminal, program_end) =
                    Terminal::open(size).map_err(StartError::host("open a terminal"))?;
                let started = plan.start_on_terminal(reaper, &cgroup, program_end)?;
                let (input, output) = streams::of_terminal(terminal);
                Ok((started, input, output))
            }
            None => {
                let (input, output, ends) =
                    streams::pipes().map_err(StartError::host("make pipes"))?;
                let started = plan.start(reaper, &cgroup, ends.stdin, ends.outputs)?;
                Ok((started, input, output))
            }
        };
        match start() {
            Ok((started, input, output)) => Ok(Self {
                started,
                input,
                output,
                guest,
                cgroup,
                name,
            }),
            Err(error) => {
                // The failed child may not be out of it yet; an empty group that stays costs little.
                let _ = guest.remove_child(&name);
                Err(error)
            }
        }
    }

    /// Joins the shell and the host until either ends; no process of the shell is left then.
    pub(crate) async fn serve(self, host: OnUpgrade, place: OwnedSemaphorePermit) {
        let Self {
            started,
            mut input,
            mut output,
            guest,
            cgroup,
            name,
        } = self;
        let upgraded = host.await.ok();
        let host = upgraded.and_then(|upgraded| upgraded.downcast::<TokioIo<TcpStream>>().ok());
        match host {
            Some(parts) => {
                let mut stream = parts.io.into_inner();
                let early = BytesMut::from(parts.read_buf);
                let (mut from_host, mut to_host) = stream.split();
                let typing = type_in(&mut from_host, early, &mut input);
                live(started, &cgroup, &mut output, typing, &mut to_host).await;
            }
            // Hung up before it began.
            None => drop(started.finish(&cgroup, std::future::ready(())).await),
        }
        drop((input, output));
        guest.remove_child_once_empty(&cgroup, &name).await;
        drop(place);
    }
}

/// Shows and types until the shell has ended, by itself or because the host has hung up: then `typing` ends.
async fn live(
    started: Started,
    cgroup: &Cgroup,
    output: &mut Output,
    typing: impl Future<Output = ()>,
    to_host: &mut WriteHalf<'_>,
) {
    let (exit_known, exited) = oneshot::channel();
    let pid = started.pid;
    let hung_up = async {
        typing.await;
        // bash hands it on to its jobs. It may have ended this instant.
        let _ = kill_process_group(pid, Signal::HUP);
        tokio::time::sleep(limits::SHELL_HANG_UP_GRACE).await;
    };
    let mut telling = pin!(tell(output, to_host, exited));
    let mut ending = pin!(started.finish(cgroup, hung_up));
    let mut all_told = false;
    let exit = loop {
        tokio::select! {
            exit = &mut ending => break exit,
            () = &mut telling, if !all_told => all_told = true,
        }
    };
    let _ = exit_known.send(exit);
    if !all_told {
        // A host that takes nothing has hung up in all but name.
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, telling).await;
    }
}

/// Tells the host all that programs print, as fast as it takes it, and at last how the shell ended.
async fn tell(output: &mut Output, host: &mut WriteHalf<'_>, exited: oneshot::Receiver<Exit>) {
    if show(output, host).await.is_err() {
        return;
    }
    if let Ok(exit) = exited.await {
        // The host may have hung up: nobody to tell.
        let _ = host.write_all(&exit_frame(exit)).await;
        let _ = host.shutdown().await;
    }
}

async fn show(output: &mut Output, host: &mut WriteHalf<'_>) -> io::Result<()> {
    let mut frame = Vec::new();
    while let Some((kind, bytes)) = output.read().await? {
        frame.clear();
        put_frame(&mut frame, kind, bytes);
        host.write_all(&frame).await?;
    }
    Ok(())
}

/// Does what the host's frames say until it hangs up or makes no sense.
async fn type_in(host: &mut ReadHalf<'_>, mut buffer: BytesMut, input: &mut Input) {
    loop {
        let (kind, payload) = match whole_frame(&buffer) {
            Ok(Some(found)) => found,
            Ok(None) => match host.read_buf(&mut buffer).await {
                Ok(1..) => continue,
                Ok(0) | Err(_) => return,
            },
            Err(error) => return console::say(format_args!("the host sent a {error}")),
        };
        let mut frame = buffer.split_to(payload.end);
        frame.advance(payload.start);
        match kind {
            FrameKind::Stdin if frame.is_empty() => input.end(),
            FrameKind::Stdin => tokio::select! {
                // Without a program that reads there is nobody to type to.
                _ = input.write_all(&frame) => {}
                () = hung_up(host) => return,
            },
            FrameKind::Resize => match serde_json::from_slice(&frame) {
                Ok(size) => input.resize(size),
                Err(error) => return console::say(format_args!("the host's size: {error}")),
            },
            FrameKind::Stdout | FrameKind::Stderr | FrameKind::Exit => return,
        }
    }
}

/// Waits until the host has closed its end, without reading what it has sent before.
async fn hung_up(host: &ReadHalf<'_>) {
    while let Ok(ready) = host.as_ref().ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            return;
        }
        tokio::time::sleep(HANG_UP_POLL).await;
    }
}

fn exit_frame(exit: Exit) -> Vec<u8> {
    let json = serde_json::to_vec(&exit).expect("an exit has only plain fields");
    let mut frame = Vec::new();
    put_frame(&mut frame, FrameKind::Exit, &json);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command};
    use tokio::net::TcpListener;

    fn app(env: &[(&str, &str)]) -> AppSpec {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        AppSpec::from(ProcessSpec {
            argv: vec!["/app".to_owned()],
            env: env.iter().map(pair).collect(),
            cwd: "/srv".to_owned(),
            user: "nobody".to_owned(),
            timeout_s: Some(1),
        })
    }

    fn spec(command: Option<&str>) -> ShellSpec {
        ShellSpec {
            terminal: Some(TerminalSize::default()),
            command: command.map(str::to_owned),
        }
    }

    #[test]
    fn a_shell_has_the_apps_environment_and_is_roots() {
        let process = process("bash", &spec(None), &app(&[("A", "1"), ("TERM", "dumb")]));
        assert_eq!(process.argv, ["bash"]);
        assert_eq!(process.cwd, "/srv");
        assert_eq!(process.user, "");
        assert_eq!(process.timeout_s, None);
        let env: Vec<_> = process
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            env,
            [
                "A=1",
                "TERM=xterm",
                "PS1=λ $ ",
                "PROMPT_COMMAND=PS1='λ $ '; unset PROMPT_COMMAND",
                "LANG=C.UTF-8",
            ]
        );
    }

    #[test]
    fn a_command_gets_no_prompt_and_the_apps_language_stays() {
        let process = process("sh", &spec(Some("ls | wc")), &app(&[("LC_ALL", "C")]));
        assert_eq!(process.argv, ["sh", "-c", "ls | wc"]);
        let names = |process: &ProcessSpec| {
            let names = process.env.iter().map(|(name, _)| name.clone());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(&process), ["LC_ALL", "TERM"]);
        let piped = ShellSpec {
            terminal: None,
            command: None,
        };
        let process = super::process("sh", &piped, &app(&[("LC_ALL", "C")]));
        assert_eq!(process.argv, ["sh"]);
        assert_eq!(names(&process), ["LC_ALL"]);
    }

    /// Two ends of a connection: the host's, and the agent's.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (host, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (host.expect("connects"), accepted.expect("accepts").0)
    }

    fn run(script: &str, terminal: OwnedFd) -> Child {
        let share = || terminal.try_clone().expect("a copy");
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(share())
            .stdout(share())
            .stderr(share())
            .spawn();
        child.expect("a shell")
    }

    fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        put_frame(&mut frame, kind, payload);
        frame
    }

    /// Reads frames up to the exit: what was printed, and the exit.
    async fn told(host: &mut TcpStream) -> (String, Exit) {
        let mut all = Vec::new();
        host.read_to_end(&mut all).await.expect("read");
        let mut printed = Vec::new();
        let mut rest = all.as_slice();
        loop {
            let (kind, payload) = whole_frame(rest).expect("a frame").expect("whole");
            let (bytes, end) = (&rest[payload.clone()], payload.end);
            match kind {
                FrameKind::Stdout => printed.extend_from_slice(bytes),
                FrameKind::Exit => {
                    let exit = serde_json::from_slice(bytes).expect("an exit");
                    assert_eq!(rest.len(), end, "the exit comes last");
                    return (String::from_utf8(printed).expect("text"), exit);
                }
                other => panic!("{other:?}"),
            }
            rest = &rest[end..];
        }
    }

    #[tokio::test]
    async fn frames_are_typed_and_resize_and_output_comes_before_the_exit() {
        let (mut host, mut agent) = connection().await;
        let (terminal, end) = Terminal::open(TerminalSize::default()).expect("terminal");
        let mut child = run(
            "stty -echo; read a; stty size; head -c 100000 /dev/zero | tr '\\0' x",
            end,
        );
        let (mut input, mut output) = streams::of_terminal(terminal);
        let (mut from_host, mut to_host) = agent.split();
        // A frame may come in pieces, the first of them with the request.
        let resize = frame(FrameKind::Resize, br#"{"cols":132,"rows":43}"#);
        let early = BytesMut::from(&resize[..7]);
        host.write_all(&resize[7..]).await.expect("write");
        host.write_all(&frame(FrameKind::Stdin, b"go\n"))
            .await
            .expect("write");
        let (exit_known, exited) = oneshot::channel();
        let exit = Exit {
            code: 3,
            timed_out: false,
        };
        exit_known.send(exit).expect("somebody waits");
        let talk = async {
            tokio::select! {
                () = tell(&mut output, &mut to_host, exited) => {}
                () = type_in(&mut from_host, early, &mut input) => panic!("nobody hung up"),
            }
        };
        let ((), (printed, told)) = tokio::join!(talk, told(&mut host));
        assert_eq!(told, exit);
        let (before, xs) = printed.split_at(printed.len() - 100_000);
        assert!(before.ends_with("43 132\r\n"), "{before:?}");
        assert!(xs.bytes().all(|byte| byte == b'x'));
        child.wait().expect("it ended");
    }

    #[tokio::test]
    async fn a_host_that_hangs_up_is_missed_while_nobody_takes_what_it_typed() {
        let (mut host, mut agent) = connection().await;
        let (terminal, end) = Terminal::open(TerminalSize::default()).expect("terminal");
        let mut child = run("stty raw -echo; echo ready; sleep 100", end);
        let mut ready = [0; 7];
        terminal.read(&mut ready).await.expect("read");
        let (mut from_host, _) = agent.split();
        let flood = frame(FrameKind::Stdin, &[b'x'; 60_000]);
        host.write_all(&flood).await.expect("write");
        let (mut input, _output) = streams::of_terminal(terminal);
        let typing = type_in(&mut from_host, BytesMut::new(), &mut input);
        let mut typing = pin!(typing);
        let early = tokio::time::timeout(Duration::from_millis(300), &mut typing).await;
        assert!(early.is_err(), "all was taken");
        drop(host);
        let missed = tokio::time::timeout(Duration::from_secs(5), typing).await;
        missed.expect("missed in time");
        child.kill().expect("kill");
        child.wait().expect("it ended");
    }

    #[tokio::test]
    async fn a_host_that_makes_no_sense_is_not_heard_on() {
        for nonsense in [
            frame(FrameKind::Exit, b"{}"),
            frame(FrameKind::Resize, b"[]"),
            vec![9, 0, 0, 0, 0],
        ] {
            let (_host, mut agent) = connection().await;
            let (terminal, _end) = Terminal::open(TerminalSize::default()).expect("terminal");
            let (mut input, _output) = streams::of_terminal(terminal);
            let (mut from_host, _) = agent.split();
            let nonsense = BytesMut::from(nonsense.as_slice());
            type_in(&mut from_host, nonsense, &mut input).await;
        }
    }

    #[tokio::test]
    async fn without_a_terminal_input_ends_and_the_two_outputs_come_apart() {
        let (mut host, mut agent) = connection().await;
        let (mut input, mut output, ends) = streams::pipes().expect("pipes");
        let [stdout, stderr] = ends.outputs;
        let mut command = Command::new("sh");
        command.args(["-c", "wc -c; tty >&2"]);
        command.stdin(ends.stdin).stdout(stdout).stderr(stderr);
        let mut child = command.spawn().expect("a shell");
        // It holds the program's ends of the pipes.
        drop(command);
        let (mut from_host, mut to_host) = agent.split();
        host.write_all(&frame(FrameKind::Stdin, &[b'x'; 60_000]))
            .await
            .expect("write");
        host.write_all(&frame(FrameKind::Stdin, b""))
            .await
            .expect("write");
        let talk = async {
            tokio::select! {
                shown = show(&mut output, &mut to_host) => shown.expect("shown"),
                () = type_in(&mut from_host, BytesMut::new(), &mut input) => panic!("nobody hung up"),
            }
        };
        talk.await;
        drop(agent);
        let mut all = Vec::new();
        host.read_to_end(&mut all).await.expect("read");
        let expected = [
            frame(FrameKind::Stdout, b"60000\n"),
            frame(FrameKind::Stderr, b"not a tty\n"),
        ];
        assert_eq!(all, expected.concat());
        child.wait().expect("it ended");
    }
}
