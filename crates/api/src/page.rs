//! Page tokens: where the next page of a list begins, sealed against change and against use with
//! another list.
//!
//! A token is URL-safe base64 of a tag and the cursor. It has no padding, so that a client that
//! forgets to encode a query still gets its page. The cursor is not secret.

use crate::error::ApiError;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;

const TAG_BYTES: usize = 32;
/// Longest token that is looked at.
const TOKEN_CHARS_MAX: usize = 4096;

/// Seals and opens page tokens.
#[derive(Clone)]
pub struct PageKey(hmac::Key);

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKey(<redacted>)")
    }
}

impl PageKey {
    /// The key made of these secret bytes; tokens last as long as they stay the same.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The token for the page of `list` (an operation and its filters, say) that begins at `cursor`.
    #[must_use]
    pub fn seal(&self, list: &str, cursor: &str) -> String {
        let tag = hmac::sign(&self.0, &signed_bytes(list, cursor.as_bytes()));
        URL_SAFE_NO_PAD.encode([tag.as_ref(), cursor.as_bytes()].concat())
    }

    /// The cursor in a token that [`PageKey::seal`] made for the same list.
    ///
    /// # Errors
    /// A `ValidationException` for every other token; the text is our own.
    pub fn open(&self, list: &str, token: &str) -> Result<String, ApiError> {
        self.try_open(list, token)
            .ok_or_else(|| ApiError::validation("Invalid nextToken"))
    }

    fn try_open(&self, list: &str, token: &str) -> Option<String> {
        if token.len() > TOKEN_CHARS_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (tag, cursor) = bytes.split_at_checked(TAG_BYTES)?;
        hmac::verify(&self.0, &signed_bytes(list, cursor), tag).ok()?;
        String::from_utf8(cursor.to_vec()).ok()
    }
}

/// The list's length comes first, so that no list and cursor read as another two.
fn signed_bytes(list: &str, cursor: &[u8]) -> Vec<u8> {
    let length = (list.len() as u64).to_be_bytes();
    [length.as_slice(), list.as_bytes(), cursor].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;
    use proptest::prelude::*;

    fn key() -> PageKey {
        PageKey::new(&[7; 32])
    }

    proptest! {
        #[test]
        fn a_token_gives_its_cursor_back(list in ".{0,20}", cursor in ".{0,200}") {
            let token = key().seal(&list, &cursor);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
            prop_assert_eq!(key().open(&list, &token), Ok(cursor));
        }

        #[test]
        fn any_other_text_is_refused(token in ".{0,100}") {
            prop_assert!(key().open("list", &token).is_err());
        }
    }

    #[test]
    fn a_token_is_for_one_list_under_one_key() {
        let token = key().seal("ListMicrovms", "x");
        let refused = key().open("ListMicrovmImages", &token).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Validation);
        assert!(PageKey::new(&[8; 32]).open("ListMicrovms", &token).is_err());
        // What one pair signs, the pair with the border moved does not.
        let token = key().seal("ab", "c");
        let moved = URL_SAFE_NO_PAD
            .encode([&URL_SAFE_NO_PAD.decode(&token).unwrap()[..TAG_BYTES], b"bc"].concat());
        assert!(key().open("a", &moved).is_err());
    }

    #[test]
    fn a_changed_token_is_refused() {
        let token = key().seal("list", "cursor");
        for index in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(key().open("list", &changed).is_err(), "{changed}");
        }
    }
}
