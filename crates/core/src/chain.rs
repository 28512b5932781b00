//! An error with its causes on one line, for logs.

use std::error::Error;

/// The error's text and those of its causes, with colons between. Some libraries repeat a cause in their text.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
