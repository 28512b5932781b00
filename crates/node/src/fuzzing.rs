//! What the fuzzers under `fuzz/` drive: each function takes whatever bytes come, and panics where a rule of the
//! node does not hold.

mod agent;
mod snapshot;

pub use agent::agent;
pub use snapshot::snapshot;

/// Takes `data` as what QEMU says on its control socket.
pub fn qmp(data: &[u8]) {
    crate::vmm::qmp::fuzzing::check(data);
}

/// Checks words of a stranger as they may stand in a log or a reason: one line, and no long one.
pub(crate) fn assert_brief(words: &str) {
    const CHARS_MAX: usize = 2000;
    assert!(words.chars().count() <= CHARS_MAX, "{words}");
    assert!(!words.contains(char::is_control), "{words:?}");
}
