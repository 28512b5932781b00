//! The initramfs that every machine boots: the guest agent as `/init`, and the kernel modules it loads.
//!
//! The format is the kernel's own ("newc" cpio, uncompressed). Nothing in it depends on when or where it
//! is made, so equal inputs give equal bytes and its hash can name it.

use dormouse_core::limits::INITRAMFS_FILE_BYTES_MAX;
use std::io;
use std::path::Path;

/// Packs the agent, and from the folder `modules` the file `order` with the modules it lists, one file
/// name a line in load order; blank lines and `#` comments are skipped. Blocks.
///
/// # Errors
/// A file cannot be read, or `order` names something other than a file of the folder.
pub fn pack(agent: &Path, modules: &Path) -> io::Result<Vec<u8>> {
    let order = String::from_utf8(read(&modules.join("order"))?)
        .map_err(|_| invalid("module order is not UTF-8".to_owned()))?;
    let mut archive = Archive::default();
    archive.add("dev", DIRECTORY, (0, 0), &[]);
    // The kernel opens it for init's input and output before init can make it.
    archive.add("dev/console", CONSOLE, (5, 1), &[]);
    archive.add("init", PROGRAM, (0, 0), &read(agent)?);
    archive.add("modules", DIRECTORY, (0, 0), &[]);
    for name in module_names(&order) {
        if name.contains('/') || !name.ends_with(".ko") {
            return Err(invalid(format!("module order names {name:?}")));
        }
        archive.add(
            &format!("modules/{name}"),
            FILE,
            (0, 0),
            &read(&modules.join(name))?,
        );
    }
    archive.add("modules/order", FILE, (0, 0), order.as_bytes());
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive.bytes)
}

fn module_names(order: &str) -> impl Iterator<Item = &str> {
    order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let context = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("read {} for initramfs: {error}", path.display()),
        )
    };
    if std::fs::metadata(path).map_err(context)?.len() > INITRAMFS_FILE_BYTES_MAX {
        return Err(invalid(format!(
            "{} is too large for an initramfs",
            path.display()
        )));
    }
    std::fs::read(path).map_err(context)
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            links,
            0,                    // time
            content.len() as u32, // below `INITRAMFS_FILE_BYTES_MAX`
            0,                    // device that holds it
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, not in this format
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn inputs(order: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("agent"), b"\x7fELF agent").unwrap();
        std::fs::write(dir.path().join("order"), order).unwrap();
        std::fs::write(dir.path().join("virtio_blk.ko"), b"module").unwrap();
        std::fs::write(dir.path().join("unlisted.ko"), b"module").unwrap();
        let agent = dir.path().join("agent");
        (dir, agent)
    }

    /// Names and contents, read back by the format's rules.
    fn entries(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let field = |at: usize| {
                let hex = std::str::from_utf8(&bytes[6 + at * 8..14 + at * 8]).unwrap();
                u32::from_str_radix(hex, 16).unwrap() as usize
            };
            assert_eq!(&bytes[..6], b"070701");
            let (size, name_len) = (field(6), field(11));
            let name = std::str::from_utf8(&bytes[110..110 + name_len - 1])
                .unwrap()
                .to_owned();
            let start = (110 + name_len).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn agent_and_listed_modules_are_packed() {
        let (dir, agent) = inputs("# load order\n\nvirtio_blk.ko\n");
        let packed = pack(&agent, dir.path()).unwrap();
        let entries = entries(&packed);
        let names: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "dev",
            "dev/console",
            "init",
            "modules",
            "modules/virtio_blk.ko",
            "modules/order",
        ];
        assert_eq!(names, expected);
        assert_eq!(entries[2].1, b"\x7fELF agent");
        assert_eq!(packed, pack(&agent, dir.path()).unwrap());
    }

    #[test]
    fn order_cannot_reach_out_of_its_folder() {
        for order in ["../x.ko\n", "/etc/x.ko\n", "missing.ko\n", "order\n"] {
            let (dir, agent) = inputs(order);
            assert!(pack(&agent, dir.path()).is_err(), "{order}");
        }
    }
}
