//! A folder to a code artifact: the other direction of `artifact`.
//!
//! What `.dockerignore` leaves out stays out, so that the daemon reads what Docker would send. The same
//! folder gives the same bytes: entries are in order and have no times.

use crate::artifact::checked_link_target;
use crate::context::{Context, ContextError, IGNORE_FILES, Node};
use dormouse_core::limits;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// What went into an artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files, links left out.
    pub files: usize,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Why a folder makes no artifact.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The folder cannot be used.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A link that no artifact may hold.
    #[error("`{path}` {problem}; list it in .dockerignore, or replace it by what it leads to")]
    Link {
        /// Path in the folder.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More bytes than an artifact may unpack to.
    #[error(
        "the folder holds more than {max} bytes; list in .dockerignore what the build does not need"
    )]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// A file cannot be read.
    #[error("read `{path}`")]
    Read {
        /// Path in the folder.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("write the archive")]
    Write(#[source] io::Error),
}

/// Writes the artifact of a folder, which must have a Dockerfile, to `out`.
///
/// # Errors
/// See [`PackError`].
pub fn pack(folder: &Path, out: impl Write + Seek) -> Result<Packed, PackError> {
    let context = Context::open(folder)?;
    context.dockerfile()?;
    let mut writer = Writer {
        zip: ZipWriter::new(out),
        context: &context,
        packed: Packed::default(),
    };
    // The daemon needs them, whether or not a COPY may see them.
    for name in IGNORE_FILES.into_iter().chain(["Dockerfile"]) {
        if !context.has(name) {
            writer.hidden(name)?;
        }
    }
    for (path, node) in context.entries() {
        writer.entry(path, node)?;
    }
    writer.zip.finish().map_err(write_error)?;
    Ok(writer.packed)
}

struct Writer<'a, W: Write + Seek> {
    zip: ZipWriter<W>,
    context: &'a Context,
    packed: Packed,
}

impl<W: Write + Seek> Writer<'_, W> {
    fn entry(&mut self, path: &str, node: &Node) -> Result<(), PackError> {
        match node {
            Node::Folder { mode } => self
                .zip
                .add_directory(path, options(*mode))
                .map_err(write_error),
            Node::Link { target } => {
                checked_link_target(path, target.as_bytes()).map_err(|problem| {
                    PackError::Link {
                        path: path.to_owned(),
                        problem,
                    }
                })?;
                self.zip
                    .add_symlink(path, target, options(0o777))
                    .map_err(write_error)
            }
            Node::File { mode, .. } => {
                let file = self.context.open_file(path)?;
                self.file(path, *mode, file)
            }
        }
    }

    /// A file that is hidden from COPY, when there is one.
    fn hidden(&mut self, name: &str) -> Result<(), PackError> {
        match self.context.open_file(name) {
            Ok(file) => self.file(name, 0o644, file),
            Err(ContextError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn file(&mut self, path: &str, mode: u32, mut file: File) -> Result<(), PackError> {
        let read_error = |source| PackError::Read {
            path: path.to_owned(),
            source,
        };
        let max = limits::ARTIFACT_UNPACKED_BYTES_MAX;
        let bytes = file.metadata().map_err(read_error)?.len();
        let left = max - self.packed.bytes;
        if bytes > left {
            return Err(PackError::TooLarge { max });
        }
        let options = options(mode).large_file(bytes >= u64::from(u32::MAX));
        self.zip.start_file(path, options).map_err(write_error)?;
        let mut chunk = vec![0; 64 << 10];
        let mut written = 0;
        loop {
            let length = file.read(&mut chunk).map_err(read_error)?;
            if length == 0 {
                break;
            }
            written += length as u64;
            if written > left {
                return Err(PackError::TooLarge { max });
            }
            self.zip
                .write_all(&chunk[..length])
                .map_err(PackError::Write)?;
        }
        self.packed.files += 1;
        self.packed.bytes += written;
        Ok(())
    }
}

fn options(mode: u32) -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(DateTime::default())
        .unix_permissions(mode)
}

fn write_error(error: zip::result::ZipError) -> PackError {
    PackError::Write(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn packed(folder: &Path) -> Result<(Vec<u8>, Packed), PackError> {
        let mut out = Cursor::new(Vec::new());
        let packed = pack(folder, &mut out)?;
        Ok((out.into_inner(), packed))
    }

    fn names(zip: &[u8]) -> Vec<String> {
        let archive = zip::ZipArchive::new(Cursor::new(zip)).unwrap();
        archive
            .file_names()
            .map(|name| name.unwrap().into_owned())
            .collect()
    }

    #[test]
    fn what_is_packed_unpacks_to_the_same() {
        let source = folder(&[
            ("Dockerfile", "FROM a\n"),
            ("bin/run", "#!\n"),
            ("data/a b", "x"),
        ]);
        let run = source.path().join("bin/run");
        std::fs::set_permissions(&run, PermissionsExt::from_mode(0o750)).unwrap();
        symlink("../data/a b", source.path().join("bin/link")).unwrap();
        std::fs::create_dir(source.path().join("empty")).unwrap();
        let (zip, packed) = packed(source.path()).unwrap();
        assert_eq!((packed.files, packed.bytes), (3, 11));

        let target = tempfile::tempdir().unwrap();
        let file = target.path().join("a.zip");
        std::fs::write(&file, zip).unwrap();
        let unpacked = target.path().join("unpacked");
        std::fs::create_dir(&unpacked).unwrap();
        crate::unpack(&file, &unpacked).unwrap();
        let mode = unpacked
            .join("bin/run")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o750);
        assert_eq!(
            std::fs::read_to_string(unpacked.join("bin/link")).unwrap(),
            "x"
        );
        assert!(unpacked.join("bin/link").is_symlink() && unpacked.join("empty").is_dir());
    }

    #[test]
    fn the_same_folder_gives_the_same_bytes() {
        let files = [("Dockerfile", "FROM a\n"), ("b", "1"), ("a/c", "2")];
        let (one, two) = (folder(&files), folder(&files));
        let file = File::options()
            .write(true)
            .open(two.path().join("b"))
            .unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_eq!(packed(one.path()).unwrap(), packed(two.path()).unwrap());
    }

    #[test]
    fn what_is_ignored_stays_out_but_for_what_the_daemon_needs() {
        let source = folder(&[
            ("Dockerfile", "FROM a\n"),
            (
                ".dockerignore",
                "node_modules\nDockerfile\n.dockerignore\n*.log\n!keep.log\n",
            ),
            ("node_modules/large/index.js", "x"),
            ("a.log", "x"),
            ("keep.log", "x"),
            ("app.js", "x"),
        ]);
        let (zip, _) = packed(source.path()).unwrap();
        let mut names = names(&zip);
        names.sort();
        assert_eq!(names, [".dockerignore", "Dockerfile", "app.js", "keep.log"]);
    }

    #[test]
    fn a_folder_that_the_daemon_would_refuse_is_refused_at_once() {
        let source = folder(&[("app.js", "x")]);
        let error = packed(source.path()).unwrap_err();
        assert!(matches!(
            error,
            PackError::Context(ContextError::NoDockerfile)
        ));
        std::fs::write(source.path().join("Dockerfile"), "FROM a\n").unwrap();
        for target in ["/usr/bin/python3", "../elsewhere"] {
            let link = source.path().join("link");
            symlink(target, &link).unwrap();
            let error = packed(source.path()).unwrap_err().to_string();
            assert!(error.starts_with("`link` is a link"), "{error}");
            std::fs::remove_file(&link).unwrap();
        }
    }
}
