//! Where a pull tells how far it is.

use dormouse_core::limits;
use std::time::Instant;

/// Whoever reads along while an image is fetched.
pub trait Progress: Send + Sync {
    /// One line, for people.
    fn line(&self, text: &str);
}

impl<F: Fn(&str) + Send + Sync> Progress for F {
    fn line(&self, text: &str) {
        self(text);
    }
}

/// Tells now and then how much of one layer is here.
pub(super) struct LayerProgress<'a> {
    progress: &'a dyn Progress,
    number: usize,
    of: usize,
    size: u64,
    began: Instant,
    told: Instant,
}

impl<'a> LayerProgress<'a> {
    pub(super) fn new(progress: &'a dyn Progress, number: usize, of: usize, size: u64) -> Self {
        let now = Instant::now();
        Self {
            progress,
            number,
            of,
            size,
            began: now,
            told: now,
        }
    }

    pub(super) fn at(&mut self, bytes: u64) {
        if self.told.elapsed() >= limits::REGISTRY_PROGRESS_INTERVAL {
            self.told = Instant::now();
            let (here, size) = (mebibytes(bytes), mebibytes(self.size));
            self.tell(&format!("{here} of {size} MiB"));
        }
    }

    pub(super) fn done(&self) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.tell(&format!("{} MiB in {seconds:.1} s", mebibytes(self.size)));
    }

    pub(super) fn tell(&self, text: &str) {
        let (number, of) = (self.number, self.of);
        self.progress.line(&format!("layer {number}/{of}: {text}"));
    }
}

pub(super) fn mebibytes(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{}", tenths / 10, tenths % 10)
}
