//! The log of one build, in the manner of BuildKit's plain progress:
//!
//! ```text
//! #4 [build 2/3] RUN make
//! #4 0.412 cc -o app main.c
//! #4 DONE 1.2s
//!
//! #5 [build 3/3] COPY app /app
//! #5 CACHED
//! ```
//! Numbers count what is begun, times are seconds since then. A failed build ends with the last output
//! of the step that failed, its lines of the Dockerfile, and why.

mod excerpt;
mod tail;

use super::BuildError;
use crate::guest::Output;
use dormouse_core::chain;
use dormouse_core::limits;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tail::Tail;

/// The log of one build. Writes go to the page cache, so they do not hold up the runtime.
#[derive(Debug)]
pub struct BuildLog {
    inner: Mutex<Inner>,
    began: Instant,
}

#[derive(Debug)]
struct Inner {
    file: File,
    written: u64,
    begun: usize,
    /// What is done between the Dockerfile's steps, while it goes on.
    phase: Option<Part>,
    /// The part that ended without success; its output is shown again at the end.
    broken: Option<Part>,
}

/// A numbered part of the build.
#[derive(Debug)]
struct Part {
    number: usize,
    title: String,
    began: Instant,
    tail: Tail,
}

impl BuildLog {
    /// Begins a new log.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let inner = Inner {
            file: File::create(path)?,
            written: 0,
            begun: 0,
            phase: None,
            broken: None,
        };
        Ok(Self {
            inner: Mutex::new(inner),
            began: Instant::now(),
        })
    }

    /// Begins a part of the build that is no step of the Dockerfile, and ends the one before.
    pub fn phase(&self, text: &str) {
        let mut inner = self.lock();
        inner.end_phase();
        inner.phase = Some(inner.begin(format!("[internal] {}", printable(text))));
    }

    /// A line of our own about the phase under way; without one it begins one.
    pub fn line(&self, text: &str) {
        if self.lock().phase.is_none() {
            return self.phase(text);
        }
        let mut inner = self.lock();
        if let Some(line) = inner.phase.as_mut().map(|part| part.output(text)) {
            inner.write(&line);
        }
    }

    /// What the app printed before its snapshot.
    pub fn app_output(&self, bytes: &[u8]) {
        for line in String::from_utf8_lossy(bytes).lines() {
            self.line(&format!("app: {}", printable(line)));
        }
    }

    /// Begins a step of a Dockerfile's stage, as in `[build 2/5] RUN make`. Several may be under way. One
    /// that is dropped before it is `done` or `cached` is taken for the one that broke the build.
    pub(crate) fn step(
        &self,
        stage: Option<&str>,
        number: usize,
        of: usize,
        text: &str,
    ) -> StepLog<'_> {
        let stage = stage.map_or_else(String::new, |name| format!("{name} "));
        let mut inner = self.lock();
        inner.end_phase();
        let part = inner.begin(printable(&format!("[{stage}{number}/{of}] {text}")));
        StepLog {
            log: self,
            part: Some(part),
            line: Vec::new(),
            returned: false,
        }
    }

    /// The build has succeeded.
    pub(super) fn finished(&self) {
        let mut inner = self.lock();
        inner.end_phase();
        let seconds = self.began.elapsed().as_secs_f64();
        inner.write(&format!("DONE in {seconds:.1} s\n"));
    }

    /// The build has failed: shows what broke it. `dockerfile` is none when it could not be read.
    pub(super) fn failed(&self, reason: &BuildError, dockerfile: Option<&[u8]>) {
        let text = dockerfile.map(String::from_utf8_lossy);
        let excerpt = reason
            .line()
            .zip(text)
            .and_then(|(line, text)| excerpt::around(&text, line));
        self.end_with(&chain(reason), excerpt.as_deref(), &reason.state_reason());
    }

    /// The build has failed before there was an artifact.
    pub fn failed_early(&self, reason: &str) {
        self.end_with(reason, None, reason);
    }

    fn end_with(&self, error: &str, excerpt: Option<&str>, reason: &str) {
        let mut inner = self.lock();
        let phase = inner.phase.take();
        if let Some(part) = inner.broken.take().or(phase) {
            let text = format!("#{} ERROR: {}\n", part.number, printable(error));
            inner.write_anyway(&text);
            inner.write_anyway(&part.tail.quoted(&part.title));
        }
        if let Some(excerpt) = excerpt {
            inner.write_anyway(excerpt);
        }
        inner.write_anyway(&format!("ERROR: {}\n", printable(reason)));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn begin(&mut self, title: String) -> Part {
        self.begun += 1;
        let number = self.begun;
        self.write(&format!("#{number} {title}\n"));
        Part {
            number,
            title,
            began: Instant::now(),
            tail: Tail::default(),
        }
    }

    fn end_phase(&mut self) {
        if let Some(part) = self.phase.take() {
            self.write(&part.done());
        }
    }

    fn write(&mut self, text: &str) {
        if self.written >= limits::BUILD_LOG_BYTES_MAX {
            return;
        }
        self.written += text.len() as u64;
        self.write_anyway(text);
        if self.written >= limits::BUILD_LOG_BYTES_MAX {
            self.write_anyway("(log is full; the rest is not kept)\n");
        }
    }

    /// For the few lines at the end that a full log must have too.
    fn write_anyway(&mut self, text: &str) {
        // A log that cannot be written must not fail the build that it describes.
        let _ = self.file.write_all(text.as_bytes());
    }
}

impl Part {
    /// Keeps a line of output and makes the log's line of it.
    fn output(&mut self, text: &str) -> String {
        let seconds = self.began.elapsed().as_secs_f64();
        let line = format!("{seconds:.3} {}", printable(text));
        self.tail.push(&line);
        format!("#{} {line}\n", self.number)
    }

    fn done(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64();
        format!("#{} DONE {seconds:.1}s\n\n", self.number)
    }
}

/// The part of the log that belongs to one step.
#[derive(Debug)]
pub(crate) struct StepLog<'a> {
    log: &'a BuildLog,
    /// None once the step has ended well.
    part: Option<Part>,
    line: Vec<u8>,
    /// A carriage return has come, and what follows decides what it means.
    returned: bool,
}

impl StepLog<'_> {
    /// Something that the step printed; whole lines are written as they come. As on a terminal, what
    /// follows a carriage return replaces the line: of a progress bar its last state is kept.
    pub(crate) fn output(&mut self, output: &Output) {
        const LINE_MAX: usize = 16 << 10;
        let (Output::Stdout(bytes) | Output::Stderr(bytes)) = output;
        for &byte in bytes {
            match byte {
                b'\n' => self.flush(),
                b'\r' => self.returned = true,
                byte => {
                    if std::mem::take(&mut self.returned) {
                        self.line.clear();
                    }
                    if self.line.len() >= LINE_MAX {
                        self.flush();
                    }
                    self.line.push(byte);
                }
            }
        }
    }

    /// The step's disk was in the cache.
    pub(super) fn cached(mut self) {
        if let Some(part) = self.part.take() {
            let text = format!("#{} CACHED\n\n", part.number);
            self.log.lock().write(&text);
        }
    }

    /// The step is done.
    pub(super) fn done(mut self) {
        self.flush_rest();
        if let Some(part) = self.part.take() {
            self.log.lock().write(&part.done());
        }
    }

    fn flush(&mut self) {
        self.returned = false;
        let text = std::mem::take(&mut self.line);
        if let Some(part) = &mut self.part {
            let line = part.output(&String::from_utf8_lossy(&text));
            self.log.lock().write(&line);
        }
    }

    fn flush_rest(&mut self) {
        if !self.line.is_empty() {
            self.flush();
        }
    }
}

impl Drop for StepLog<'_> {
    fn drop(&mut self) {
        self.flush_rest();
        if let Some(part) = self.part.take() {
            self.log.lock().broken.get_or_insert(part);
        }
    }
}

/// Takes out what could play with the terminal of whoever reads the log.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect()
}

#[cfg(test)]
mod tests;
