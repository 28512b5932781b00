//! The form of what is sealed: `dormouse-sealed VERSION KEY DATA`, one line of text.
//!
//! KEY is the id of the sealing key in hexadecimal digits, DATA nonce, ciphertext and tag in base64.

use base64::{Engine, engine::general_purpose::STANDARD};

const MARK: &str = "dormouse-sealed ";
/// The one version so far: AES-256-GCM.
const VERSION: &str = "1";

/// Whether these bytes were sealed, by whichever key. Nothing that is kept plain begins like that.
#[must_use]
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MARK.as_bytes())
}

/// The parts of what is sealed.
pub(crate) struct Envelope<'a> {
    pub(crate) key_id: &'a str,
    pub(crate) data: Vec<u8>,
}

/// Why there are no parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotParsed {
    Damaged,
    TooNew,
}

impl<'a> Envelope<'a> {
    /// Takes apart what [`is_sealed`].
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, NotParsed> {
        let text = str::from_utf8(text).map_err(|_| NotParsed::Damaged)?;
        let rest = text.strip_prefix(MARK).ok_or(NotParsed::Damaged)?;
        let (version, rest) = rest.split_once(' ').ok_or(NotParsed::Damaged)?;
        if version != VERSION {
            return Err(NotParsed::TooNew);
        }
        let (key_id, data) = rest.split_once(' ').ok_or(NotParsed::Damaged)?;
        let data = STANDARD.decode(data.strip_suffix('\n').unwrap_or(data));
        let data = data.map_err(|_| NotParsed::Damaged)?;
        Ok(Self { key_id, data })
    }

    pub(crate) fn text(key_id: &str, data: &[u8]) -> String {
        format!("{MARK}{VERSION} {key_id} {}\n", STANDARD.encode(data))
    }
}

/// What is authenticated besides: the form, and what the secret is. Neither name holds a zero byte.
pub(crate) fn bound(purpose: &str, name: &str) -> Vec<u8> {
    [MARK, VERSION, "\0", purpose, "\0", name]
        .concat()
        .into_bytes()
}
