//! The log of one build: numbered steps with their output and times, in the manner of BuildKit's plain
//! progress.

use super::BuildError;
use crate::guest::Output;
use dormouse_core::limits;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The log of one build. Writes go to the page cache, so they do not hold up the runtime.
#[derive(Debug)]
pub struct BuildLog {
    file: Mutex<Bounded>,
    began: Instant,
}

#[derive(Debug)]
struct Bounded {
    file: File,
    written: u64,
}

impl BuildLog {
    /// Begins a new log.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let file = Bounded {
            file: File::create(path)?,
            written: 0,
        };
        Ok(Self {
            file: Mutex::new(file),
            began: Instant::now(),
        })
    }

    /// A line of our own.
    pub fn line(&self, text: &str) {
        self.write(&format!(
            "{:8.3} {text}\n",
            self.began.elapsed().as_secs_f64()
        ));
    }

    /// Begins a step, as in `[2/5] RUN make`.
    pub(super) fn step(&self, number: usize, of: usize, text: &str) -> StepLog<'_> {
        self.line(&format!("[{number}/{of}] {text}"));
        StepLog {
            log: self,
            number,
            began: Instant::now(),
            partial: Vec::new(),
        }
    }

    /// What the app printed before its snapshot.
    pub fn app_output(&self, bytes: &[u8]) {
        for line in String::from_utf8_lossy(bytes).lines() {
            self.line(&format!("app: {}", printable(line)));
        }
    }

    pub(super) fn failed(&self, error: &BuildError) {
        self.line(&format!("ERROR {}", error.state_reason()));
    }

    fn write(&self, text: &str) {
        let mut log = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if log.written >= limits::BUILD_LOG_BYTES_MAX {
            return;
        }
        log.written += text.len() as u64;
        let full = log.written >= limits::BUILD_LOG_BYTES_MAX;
        // A log that cannot be written must not fail the build that it describes.
        let _ = log.file.write_all(text.as_bytes());
        if full {
            let _ = log.file.write_all(b"(log is full; the rest is not kept)\n");
        }
    }
}

/// The part of the log that belongs to one step.
#[derive(Debug)]
pub(super) struct StepLog<'a> {
    log: &'a BuildLog,
    number: usize,
    began: Instant,
    partial: Vec<u8>,
}

impl StepLog<'_> {
    /// Something that the step printed; whole lines are written as they come.
    pub(super) fn output(&mut self, output: &Output) {
        const LINE_MAX: usize = 16 << 10;
        let (Output::Stdout(bytes) | Output::Stderr(bytes)) = output;
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() >= LINE_MAX {
                self.flush();
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
    }

    /// The step's disk was in the cache.
    pub(super) fn cached(self) {
        self.log.line(&format!("#{} CACHED", self.number));
    }

    /// The step is done.
    pub(super) fn done(mut self) {
        if !self.partial.is_empty() {
            self.flush();
        }
        let seconds = self.began.elapsed().as_secs_f64();
        self.log
            .line(&format!("#{} DONE {seconds:.1}s", self.number));
    }

    /// The step's process ended with a failure.
    pub(super) fn exited(mut self, code: i32) {
        if !self.partial.is_empty() {
            self.flush();
        }
        self.log
            .line(&format!("#{} exit code: {code}", self.number));
    }

    fn flush(&mut self) {
        let text = String::from_utf8_lossy(&self.partial);
        self.log
            .line(&format!("#{} {}", self.number, printable(&text)));
        self.partial.clear();
    }
}

/// Takes out what could play with the terminal of whoever reads the log.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect()
}
