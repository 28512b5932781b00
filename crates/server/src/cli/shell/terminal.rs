//! The terminal in front of the person: its size, and its raw mode.

use anyhow::{Context, Result};
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, IsTerminal};

/// Standard input and output, where both are a terminal.
#[derive(Debug)]
pub(super) struct Terminal(());

/// While it lives, keys go to the shell as they are pressed. Dropping it gives the terminal back as it was.
pub(super) struct RawMode {
    before: Termios,
}

impl Terminal {
    pub(super) fn find() -> Option<Self> {
        (io::stdin().is_terminal() && io::stdout().is_terminal()).then_some(Self(()))
    }

    /// Columns and rows; 0 and 0 when nobody knows.
    pub(super) fn size(&self) -> (u16, u16) {
        let size = tcgetwinsize(stdout());
        size.map_or((0, 0), |size| (size.ws_col, size.ws_row))
    }

    pub(super) fn make_raw(&self) -> Result<RawMode> {
        let before = tcgetattr(stdin()).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        // Armed before the change: whatever comes, the mode is given back.
        let mode = RawMode { before };
        tcsetattr(stdin(), OptionalActions::Drain, &raw).context("set the terminal's mode")?;
        Ok(mode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}
