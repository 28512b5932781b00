//! Why a secret cannot be read or kept.

use std::io;
use std::path::PathBuf;

/// Why a secret cannot be read or kept. None of these quotes one.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The sealing key is not there, and something was sealed with it.
    #[error(
        "{sealed} is sealed and the sealing key {key_file} is missing: put the key back, or name the file that \
         has it as `key_file` in [secrets]"
    )]
    KeyMissing {
        /// Where the key should be.
        key_file: PathBuf,
        /// What it is needed for.
        sealed: PathBuf,
    },
    /// The sealing key is not where it should be, and nothing was sealed with it yet.
    #[error(
        "there is no sealing key in {path}: put it there, or make one: \
         `(umask 077; head -c 32 /dev/urandom > {path})`"
    )]
    NoKey {
        /// Where the key should be.
        path: PathBuf,
    },
    /// The file of the sealing key does not hold one.
    #[error(
        "{path} is not a sealing key: it must hold exactly 32 random bytes, as `head -c 32 /dev/urandom` gives them"
    )]
    KeyMalformed {
        /// The file.
        path: PathBuf,
    },
    /// Others than its owner may read the sealing key.
    #[error("the sealing key {path} can be read by others than its owner: `chmod 600 {path}`")]
    KeyExposed {
        /// The file.
        path: PathBuf,
    },
    /// It was sealed with another key than the one at hand.
    #[error(
        "{what} is sealed with key {sealed_with}, and {key_file} holds key {key}: put the right key there, or \
         name its file as `key_file` in [secrets]"
    )]
    OtherKey {
        /// What was to be opened.
        what: String,
        /// Id of the key that it needs.
        sealed_with: String,
        /// Where the key at hand came from.
        key_file: PathBuf,
        /// Id of the key at hand.
        key: String,
    },
    /// It was changed after it was sealed, or sealed as something else.
    #[error("{what} is damaged, or was put in another's place: restore it from a copy")]
    Damaged {
        /// What was to be opened.
        what: String,
    },
    /// It was sealed by a Dormouse to come.
    #[error("{what} was sealed by a newer dormouse: use that one again")]
    TooNew {
        /// What was to be opened.
        what: String,
    },
}
