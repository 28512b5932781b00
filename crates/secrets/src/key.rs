//! The sealing key: 32 random bytes in a file that its owner alone may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use aws_lc_rs::{digest, rand};
use secrecy::zeroize::Zeroizing;

use crate::SecretError;
use crate::file::{create_private_folder, folder_of};

pub(crate) const KEY_BYTES: usize = 32;
const OTHERS: u32 = 0o077;

pub(crate) type Key = Zeroizing<[u8; KEY_BYTES]>;

/// Reads the key, or nothing where there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Key>, SecretError> {
    let failed = |source| SecretError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if file.metadata().map_err(failed)?.permissions().mode() & OTHERS != 0 {
        return Err(SecretError::KeyExposed {
            path: path.to_owned(),
        });
    }
    // One byte more than there should be, to see that there is none; of a fixed size, so that no copy
    // is left behind.
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 1]);
    let read = read_up_to(&file, &mut *bytes).map_err(failed)?;
    let key = bytes.first_chunk::<KEY_BYTES>();
    let key = key.filter(|_| read == KEY_BYTES);
    key.map(|key| Some(Zeroizing::new(*key)))
        .ok_or_else(|| SecretError::KeyMalformed {
            path: path.to_owned(),
        })
}

/// Makes a key at `path` and returns the one that is there then: another process may have been faster.
pub(crate) fn create(path: &Path) -> Result<Key, SecretError> {
    let failed = |source| SecretError::Write {
        path: path.to_owned(),
        source,
    };
    write_once(path, &random()).map_err(failed)?;
    let read = read(path)?;
    read.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

pub(crate) fn random() -> Key {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(key.as_mut_slice()).expect("the system's random generator works");
    key
}

/// What a key is called where it must not be shown.
pub(crate) fn id(key: &Key) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"dormouse sealing key");
    hash.update(key.as_slice());
    hex::encode(&hash.finish().as_ref()[..8])
}

/// Puts a whole file at `path` unless there is one already.
fn write_once(path: &Path, key: &Key) -> io::Result<()> {
    let folder = folder_of(path);
    create_private_folder(folder)?;
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(key.as_slice())?;
    file.sync_all()?;
    // Unlike a rename, a link replaces nothing.
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(folder)?.sync_all(),
    }
}

fn read_up_to(mut file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/sealing.key");
        assert!(read(&path).unwrap().is_none());
        let made = create(&path).unwrap();
        assert_eq!(create(&path).unwrap(), made, "who comes second finds it");
        assert_eq!(read(&path).unwrap().unwrap(), made);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(folder_of(&path)), 0o700);
        let files = fs::read_dir(folder_of(&path)).unwrap();
        assert_eq!(files.count(), 1, "no draft is left behind");
    }

    #[test]
    fn a_key_of_another_length_or_for_all_to_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for length in [0, 31, 33, 4096] {
            fs::write(&path, vec![7; length]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let refused = read(&path);
            assert!(
                matches!(refused, Err(SecretError::KeyMalformed { .. })),
                "{length}"
            );
        }
        fs::write(&path, [7; KEY_BYTES]).unwrap();
        read(&path).unwrap();
        for mode in [0o640, 0o604] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&path), Err(SecretError::KeyExposed { .. })));
        }
    }

    #[test]
    fn an_id_tells_keys_apart_and_not_what_they_are() {
        let key = random();
        assert_eq!(id(&key), id(&key.clone()));
        assert_ne!(id(&key), id(&random()));
        assert!(!hex::encode(key.as_slice()).contains(&id(&key)));
    }
}
