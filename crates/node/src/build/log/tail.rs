//! The last lines that a part of a build printed: shown again when it broke the build.

use std::collections::VecDeque;

const LINES_MAX: usize = 20;
const LINE_CHARS_MAX: usize = 1000;
const RULE: &str = "------\n";

/// The last lines, each cut to a bearable length.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    pub(super) fn push(&mut self, line: &str) {
        if self.lines.len() >= LINES_MAX {
            self.lines.pop_front();
        }
        self.lines
            .push_back(line.chars().take(LINE_CHARS_MAX).collect());
    }

    /// The lines under the title of what printed them; nothing when it printed nothing.
    pub(super) fn quoted(&self, title: &str) -> String {
        if self.lines.is_empty() {
            return String::new();
        }
        let mut text = format!("{RULE} > {title}:\n");
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str(RULE);
        text
    }
}
