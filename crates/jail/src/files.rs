//! Landlock: what the program may do with which files, once more, to be put up behind the new root.

use dormouse_jail::Shown;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError,
};
use std::io;

/// What the kernel may have and we know of.
const KNOWN: ABI = ABI::V5;
/// Where a program's own files are.
const PROGRAM: [&str; 3] = ["/usr", "/lib", "/lib64"];

/// Restricts this process. A kernel without Landlock, or with less of it, does what it can.
pub(crate) fn restrict(shown: &[Shown]) -> io::Result<()> {
    put_up(shown).map_err(io::Error::other)
}

fn put_up(shown: &[Shown]) -> Result<(), RulesetError> {
    let all = AccessFs::from_all(KNOWN);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = all & !AccessFs::Execute & !AccessFs::MakeBlock & !AccessFs::MakeChar;
    let device = read | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?;
    let program = PROGRAM.map(|path| (path.as_ref(), read | AccessFs::Execute));
    let shown = shown.iter().map(|one| {
        let access = if one.writable { write } else { read };
        (one.path.as_path(), access)
    });
    let devices = [("/dev".as_ref(), device)];
    for (path, access) in program.into_iter().chain(shown).chain(devices) {
        // What is not there needs no rule.
        if let Ok(path) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(path, access))?;
        }
    }
    rules.restrict_self().map(drop)
}
