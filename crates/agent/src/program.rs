//! Finding a program as a shell does, and becoming it as the kernel does.
//!
//! The C library's `execvp` is not used: it runs with `/bin/sh` what the kernel refuses, and a binary for
//! another architecture would end in a syntax error instead of Docker's `exec format error`.

use std::ffi::{CString, NulError, c_char};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why no program was found. The words are Docker's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProgramError {
    /// The program is in no folder of the `PATH`.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// The program's path leads nowhere.
    #[error("exec: {0:?}: stat {0}: no such file or directory")]
    NoSuchFile(String),
    /// The program is a folder or may not be executed.
    #[error("exec: {0:?}: permission denied")]
    NotExecutable(String),
}

/// Finds a program: a name in the folders of `search_path`, anything with a slash from `cwd`.
pub(crate) fn find(name: &str, search_path: &str, cwd: &Path) -> Result<PathBuf, ProgramError> {
    if name.contains('/') {
        let program = cwd.join(name);
        return match fs::metadata(&program) {
            Ok(found) if is_executable(&found) => Ok(program),
            Ok(_) => Err(ProgramError::NotExecutable(name.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(ProgramError::NotExecutable(name.to_owned()))
            }
            Err(_) => Err(ProgramError::NoSuchFile(name.to_owned())),
        };
    }
    search_path
        .split(':')
        .filter(|_| !name.is_empty())
        .map(|folder| cwd.join(folder).join(name))
        .find(|program| fs::metadata(program).is_ok_and(|found| is_executable(&found)))
        .ok_or_else(|| ProgramError::NotInPath(name.to_owned()))
}

fn is_executable(found: &fs::Metadata) -> bool {
    const ANY_EXECUTE: u32 = 0o111;
    found.is_file() && found.permissions().mode() & ANY_EXECUTE != 0
}

/// A program with its arguments and environment, laid out for the kernel before the fork, since
/// nothing may be allocated after it.
pub(crate) struct Image {
    path: CString,
    argv: Strings,
    env: Strings,
}

impl Image {
    /// Lays out a program. A NUL byte fits in none of its strings.
    pub(crate) fn new(
        path: &Path,
        argv: Vec<String>,
        env: Vec<(String, String)>,
    ) -> Result<Self, NulError> {
        let env = env
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"));
        Ok(Self {
            path: CString::new(path.as_os_str().as_bytes())?,
            argv: Strings::new(argv)?,
            env: Strings::new(env)?,
        })
    }

    /// Replaces the calling process. It returns only to say why not.
    pub(crate) fn execute(&self) -> io::Error {
        // SAFETY: the path and every string end with NUL, both lists end with a null pointer, and all
        // of it is borrowed from `self` for the length of the call.
        unsafe {
            libc::execve(
                self.path.as_ptr(),
                self.argv.pointers.as_ptr(),
                self.env.pointers.as_ptr(),
            );
        }
        io::Error::last_os_error()
    }
}

/// A list of strings as the kernel takes it.
struct Strings {
    /// To each string below, then null.
    pointers: Vec<*const c_char>,
    /// Owns what the pointers lead to; a string's bytes stay where they are when the list moves.
    _strings: Vec<CString>,
}

// SAFETY: the pointers lead into the strings that the same value owns, and nothing writes through them.
unsafe impl Send for Strings {}
// SAFETY: as above; shared reads are all there is.
unsafe impl Sync for Strings {}

impl Strings {
    fn new(strings: impl IntoIterator<Item = String>) -> Result<Self, NulError> {
        let strings: Vec<CString> = strings
            .into_iter()
            .map(CString::new)
            .collect::<Result<_, _>>()?;
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Ok(Self {
            pointers,
            _strings: strings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn a_program_is_found_in_the_path_in_order() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let make = |path: &str, mode| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
            fs::write(&path, "").expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        };
        make("one/tool", 0o644);
        make("two/tool", 0o755);
        make("three/tool", 0o755);
        fs::create_dir(dir.path().join("two/folder")).expect("folder");
        let find = |name| find(name, "one:two:three", dir.path());
        assert_eq!(find("tool"), Ok(dir.path().join("two/tool")));
        assert_eq!(find("./three/tool"), Ok(dir.path().join("./three/tool")));
        let message = |name| find(name).expect_err("not found").to_string();
        assert_eq!(
            message("foo"),
            r#"exec: "foo": executable file not found in $PATH"#
        );
        assert_eq!(
            message("folder"),
            r#"exec: "folder": executable file not found in $PATH"#
        );
        assert_eq!(
            message(""),
            r#"exec: "": executable file not found in $PATH"#
        );
        assert_eq!(
            message("/no/such"),
            r#"exec: "/no/such": stat /no/such: no such file or directory"#
        );
        assert_eq!(
            message("one/tool"),
            r#"exec: "one/tool": permission denied"#
        );
    }

    /// Runs an image in a child, as the agent does.
    fn run(path: &Path, argv: &[&str], env: &[(&str, &str)]) -> io::Result<String> {
        let argv = argv.iter().map(|&text| text.to_owned()).collect();
        let env = env
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let image = Image::new(path, argv, env.collect()).expect("no NUL");
        let mut command = Command::new("unused");
        command.stdout(Stdio::piped());
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(move || Err(image.execute())) };
        let output = command.spawn()?.wait_with_output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn an_image_carries_its_own_name_arguments_and_environment() {
        let shown = run(
            Path::new("/bin/sh"),
            &[
                "myname",
                "-c",
                "echo $0 $1 $A; export -p | wc -l",
                "zero",
                "one",
            ],
            &[("A", "x y")],
        );
        let shown = shown.expect("runs");
        assert!(shown.starts_with("zero one x y\n"), "{shown}");
    }

    #[test]
    fn what_the_kernel_refuses_is_not_given_to_a_shell() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("tool");
        fs::write(&path, "echo a shell ran this\n").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        let error = run(&path, &["tool"], &[]).expect_err("not a program");
        assert_eq!(error.raw_os_error(), Some(libc::ENOEXEC));
    }

    #[test]
    fn a_nul_byte_is_refused() {
        let nul = vec!["a\0b".to_owned()];
        assert!(Image::new(Path::new("/bin/sh"), nul, Vec::new()).is_err());
    }
}
