//! The VM's console, which is the agent's standard error: for the host's operator, never for the app.

use std::fmt::Arguments;
use std::io::Write;

/// Makes the console the agent's three standard streams.
pub(crate) fn attach() -> std::io::Result<()> {
    let console = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(())
}

/// Writes one line. A console that cannot be written to is no reason to stop.
pub(crate) fn say(line: Arguments<'_>) {
    let line = format!("agent: {line}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
