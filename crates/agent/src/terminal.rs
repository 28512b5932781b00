//! A pseudo-terminal: the agent has one end, a shell the other.

use dormouse_core::guest::TerminalSize;
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// The agent's end of a terminal. When it is dropped, the terminal hangs up.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// A new terminal, and the end of it that a program gets.
    pub(crate) fn open(size: TerminalSize) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let program_end = ioctl_tiocgptpeer(&master, flags)?;
        let mut modes = tcgetattr(&program_end)?;
        // A backspace takes back a character, not a byte of one.
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&program_end, OptionalActions::Now, &modes)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        // SAFETY: the descriptor is owned, so it stays open and the same for as long as it is in the
        // `AsyncFd`, which is never taken apart.
        let master = unsafe { AsyncFd::register(master) }?;
        let terminal = Self { master };
        terminal.resize(size)?;
        Ok((terminal, program_end))
    }

    /// Sets the size, and tells the programs that are in front.
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(self.master.get_ref(), size)?)
    }

    /// Reads what programs print; 0 bytes once none has the terminal open.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.master.readable().await?;
            let read = ready.try_io(|master| Ok(rustix::io::read(master.get_ref(), &mut *buffer)?));
            match read {
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Ok(0);
                }
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }

    /// Types bytes; waits while nobody takes them.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.master.writable().await?;
            let written = ready.try_io(|master| Ok(rustix::io::write(master.get_ref(), bytes)?));
            if let Ok(written) = written {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// Runs a script on a new terminal, without making it the controlling one.
    fn run(script: &str, size: TerminalSize) -> (Terminal, Child) {
        let (terminal, end) = Terminal::open(size).expect("a terminal");
        let share = || end.try_clone().expect("a copy");
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(share())
            .stdout(share())
            .stderr(share())
            .spawn();
        (terminal, child.expect("a shell"))
    }

    async fn shown(terminal: &Terminal) -> String {
        let mut all = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match terminal.read(&mut buffer).await.expect("read") {
                0 => return String::from_utf8(all).expect("text"),
                len => all.extend_from_slice(&buffer[..len]),
            }
        }
    }

    #[tokio::test]
    async fn a_program_sees_a_terminal_of_the_size_that_it_has() {
        let (terminal, mut child) = run(
            "stty size; read line; stty size; tty -s && echo \"$line\"",
            TerminalSize::default(),
        );
        let mut first = [0; 5];
        assert_eq!(terminal.read(&mut first).await.expect("read"), 5);
        assert_eq!(&first, b"0 0\r\n");
        terminal
            .resize(TerminalSize {
                cols: 120,
                rows: 40,
            })
            .expect("resize");
        terminal.write_all("λ\n".as_bytes()).await.expect("write");
        assert_eq!(shown(&terminal).await, "λ\r\n40 120\r\nλ\r\n");
        child.wait().expect("it ended");
    }

    #[tokio::test]
    async fn what_nobody_reads_holds_the_writer_up_and_is_not_lost() {
        let (terminal, mut child) = run(
            "stty raw -echo; echo ready; sleep 0.3; head -c 200000 | wc -c",
            TerminalSize::default(),
        );
        let mut ready = [0; 7];
        let len = terminal.read(&mut ready).await.expect("read");
        assert!(ready[..len].starts_with(b"ready"));
        terminal.write_all(&[b'x'; 200_000]).await.expect("write");
        assert!(shown(&terminal).await.contains("200000"));
        child.wait().expect("it ended");
    }
}
