//! Whose rights a process gets: `USER` and `--chown` in Docker's terms, resolved against the image's own
//! `/etc/passwd` and `/etc/group`.
//!
//! The files are read here, not by the C library: a static program cannot load its name services.

use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Larger account files are cut off; they are the customer's and need a bound.
const ACCOUNT_FILE_BYTES_MAX: u64 = 16 << 20;
/// Largest user or group number, as in Docker.
const ID_MAX: u32 = i32::MAX.unsigned_abs();

/// Why a user or group could not be resolved. The words are Docker's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccountError {
    /// A name that the image does not know.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// A group that the image does not know.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number out of range.
    #[error("uids and gids must be in range 0-{ID_MAX}")]
    IdOutOfRange,
}

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Whom a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The image's account files.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    users: Vec<User>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Reads the account files. A missing one is an empty one.
    pub(crate) fn load() -> io::Result<Self> {
        Ok(Self::parse(
            &read_bounded("/etc/passwd")?,
            &read_bounded("/etc/group")?,
        ))
    }

    /// Lines that make no sense are skipped, as the C library does.
    fn parse(passwd: &str, group: &str) -> Self {
        Self {
            users: passwd.lines().filter_map(parse_user).collect(),
            groups: group.lines().filter_map(parse_group).collect(),
        }
    }

    /// The account for `user`, `user:group` or numbers in their place; empty is root.
    pub(crate) fn account(&self, spec: &str) -> Result<Account, AccountError> {
        let (user_part, group_part) = spec.split_once(':').unwrap_or((spec, ""));
        let number = user_part.parse::<u32>().ok();
        let user = self.users.iter().find(|user| match user_part {
            "" => user.uid == 0,
            name => user.name == name || Some(user.uid) == number,
        });
        let (uid, default_gid, home) = match (user, number) {
            (Some(user), _) => (user.uid, user.gid, user.home.clone()),
            (None, Some(uid)) => (in_range(uid)?, 0, String::new()),
            (None, None) if user_part.is_empty() => (0, 0, String::new()),
            (None, None) => return Err(AccountError::UnknownUser(user_part.to_owned())),
        };
        let home = if home.is_empty() {
            "/".to_owned()
        } else {
            home
        };
        if !group_part.is_empty() {
            return Ok(Account {
                uid,
                gid: self.gid(group_part)?,
                groups: Vec::new(),
                home,
            });
        }
        let groups = user.map(|user| self.groups_of(&user.name));
        Ok(Account {
            uid,
            gid: default_gid,
            groups: groups.unwrap_or_default(),
            home,
        })
    }

    /// The owner for `--chown`: as a process's account, but a bare number is user and group in one.
    pub(crate) fn owner(&self, spec: &str) -> Result<Owner, AccountError> {
        if let Ok(id) = spec.parse::<u32>() {
            let id = in_range(id)?;
            return Ok(Owner { uid: id, gid: id });
        }
        let Account { uid, gid, .. } = self.account(spec)?;
        Ok(Owner { uid, gid })
    }

    fn gid(&self, spec: &str) -> Result<u32, AccountError> {
        let number = spec.parse::<u32>().ok();
        let matches = |group: &&Group| group.name == spec || Some(group.gid) == number;
        match (self.groups.iter().find(matches), number) {
            (Some(group), _) => Ok(group.gid),
            (None, Some(gid)) => in_range(gid),
            (None, None) => Err(AccountError::UnknownGroup(spec.to_owned())),
        }
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let has_member = |group: &&Group| group.members.iter().any(|member| member == user);
        self.groups
            .iter()
            .filter(has_member)
            .map(|group| group.gid)
            .collect()
    }
}

fn in_range(id: u32) -> Result<u32, AccountError> {
    if id > ID_MAX {
        return Err(AccountError::IdOutOfRange);
    }
    Ok(id)
}

/// `name:password:uid:gid:comment:home:shell`
fn parse_user(line: &str) -> Option<User> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let mut fields = fields.skip(1);
    Some(User {
        name: name.to_owned(),
        uid: fields.next()?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
        home: fields.nth(1).unwrap_or_default().to_owned(),
    })
}

/// `name:password:gid:member,member`
fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    let members = fields.next().unwrap_or_default();
    Some(Group {
        name: name.to_owned(),
        gid,
        members: members.split(',').map(str::to_owned).collect(),
    })
}

/// What is no file counts as an empty one, and is not waited for: a pipe would hold up a thread for good.
fn read_bounded(path: impl AsRef<Path>) -> io::Result<String> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let mut bytes = Vec::new();
    match opened {
        Ok(file) if file.metadata()?.is_file() => {
            file.take(ACCOUNT_FILE_BYTES_MAX).read_to_end(&mut bytes)?
        }
        Ok(_) => 0,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # a comment\n\
        broken:x:notanumber:0\n\
        :x:7:7::/:\n\
        app:x:1000:1001:App,,,:/home/app:/bin/sh\n\
        www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
        homeless:x:2000:2000\n";
    const GROUP: &str = "root:x:0:\n\
        adm:x:4:app,syslog\n\
        app:x:1001:\n\
        video:x:44:www-data,app\n\
        nonsense\n";

    fn account(spec: &str) -> Result<Account, AccountError> {
        Accounts::parse(PASSWD, GROUP).account(spec)
    }

    fn expect(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<Account, AccountError> {
        Ok(Account {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        })
    }

    #[test]
    fn accounts_resolve_as_in_docker() {
        for (spec, expected) in [
            ("", expect(0, 0, &[], "/root")),
            ("root", expect(0, 0, &[], "/root")),
            ("0", expect(0, 0, &[], "/root")),
            ("app", expect(1000, 1001, &[4, 44], "/home/app")),
            ("1000", expect(1000, 1001, &[4, 44], "/home/app")),
            ("app:video", expect(1000, 44, &[], "/home/app")),
            ("app:77", expect(1000, 77, &[], "/home/app")),
            ("1000:4", expect(1000, 4, &[], "/home/app")),
            ("4711", expect(4711, 0, &[], "/")),
            ("4711:adm", expect(4711, 4, &[], "/")),
            ("homeless", expect(2000, 2000, &[], "/")),
            (":adm", expect(0, 4, &[], "/root")),
        ] {
            assert_eq!(account(spec), expected, "{spec:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused_in_dockers_words() {
        let message = |spec| account(spec).expect_err("unknown").to_string();
        assert_eq!(
            message("nobody"),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            message("app:wheel"),
            "unable to find group wheel: no matching entries in group file"
        );
        assert_eq!(account("4294967295"), Err(AccountError::IdOutOfRange));
        assert_eq!(account("0:3000000000"), Err(AccountError::IdOutOfRange));
        assert_eq!(
            account("-1"),
            Err(AccountError::UnknownUser("-1".to_owned()))
        );
    }

    #[test]
    fn an_image_without_account_files_has_root_and_numbers() {
        let none = Accounts::default();
        assert_eq!(none.account(""), expect(0, 0, &[], "/"));
        assert_eq!(none.account("5:6"), expect(5, 6, &[], "/"));
        assert!(none.account("app").is_err());
    }

    #[test]
    fn an_account_file_that_is_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("passwd");
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &path, FileType::Fifo, mode, 0).expect("a pipe");
        assert_eq!(read_bounded(&path).expect("read"), "");
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(read_bounded(&path).expect("none"), "");
        std::fs::write(&path, PASSWD).expect("write");
        assert_eq!(read_bounded(&path).expect("read"), PASSWD);
    }

    #[test]
    fn a_bare_number_owns_as_user_and_group() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        for (spec, uid, gid) in [
            ("", 0, 0),
            ("1000", 1000, 1000),
            ("app", 1000, 1001),
            ("app:adm", 1000, 4),
            ("12:34", 12, 34),
        ] {
            assert_eq!(accounts.owner(spec), Ok(Owner { uid, gid }), "{spec:?}");
        }
    }
}
