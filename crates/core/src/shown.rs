//! Texts of any length, for people.

/// As much of a text as is shown of it.
#[must_use]
pub fn shown(mut text: String, chars_max: usize) -> String {
    if let Some((cut, _)) = text.char_indices().nth(chars_max) {
        text.truncate(cut);
        text.push('…');
    }
    text
}
