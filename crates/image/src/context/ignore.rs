//! `.dockerignore`, or `Dockerfile.dockerignore`: which files a build does not see.

use super::{ContextError, read_error};
use dormouse_core::glob::{Dialect, Fuel, Glob, OutOfFuel};
use dormouse_core::limits;
use std::io::Read;

/// The rules, of which the last that matches decides.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    glob: Glob,
    /// Written with `!`: what matches is seen after all.
    exception: bool,
}

/// Which rules match a folder; they match what is below it too.
pub(super) type Matched = Vec<bool>;

impl Ignore {
    /// Reads the rules of the ignore file called `file`.
    pub(super) fn read(file: &'static str, content: impl Read) -> Result<Self, ContextError> {
        let max = limits::DOCKERIGNORE_BYTES_MAX;
        let mut bytes = Vec::new();
        let read = content.take(max + 1).read_to_end(&mut bytes);
        read.map_err(|error| read_error(file, error))?;
        if bytes.len() as u64 > max {
            return Err(ContextError::IgnoreTooLarge { file, max });
        }
        let text = String::from_utf8(bytes).map_err(|_| ContextError::IgnoreNotText { file })?;
        Self::parse(file, &text)
    }

    fn parse(file: &'static str, text: &str) -> Result<Self, ContextError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let bad = |problem| ContextError::Ignore {
                file,
                line: index + 1,
                problem,
            };
            let pattern = line.trim();
            if line.starts_with('#') || pattern.is_empty() {
                continue;
            }
            let (pattern, exception) = match pattern.strip_prefix('!') {
                Some(rest) => (rest.trim(), true),
                None => (pattern, false),
            };
            if pattern.is_empty() {
                return Err(bad("has a `!` without a pattern"));
            }
            let glob = Glob::new(&clean(pattern), Dialect::Ignore).map_err(bad)?;
            rules.push(Rule { glob, exception });
        }
        Ok(Self { rules })
    }

    /// The rules of a copy step's `--exclude` options.
    pub(super) fn of_patterns(patterns: &[String]) -> Result<Self, ContextError> {
        let rule = |pattern: &String| {
            let (bare, exception) = match pattern.strip_prefix('!') {
                Some(rest) => (rest, true),
                None => (pattern.as_str(), false),
            };
            let glob = Glob::new(&clean(bare), Dialect::Ignore);
            let glob = glob.map_err(|problem| ContextError::Pattern {
                pattern: pattern.clone(),
                problem,
            })?;
            Ok(Rule { glob, exception })
        };
        let rules = patterns.iter().map(rule);
        let rules = rules.collect::<Result<Vec<_>, ContextError>>()?;
        Ok(Self { rules })
    }

    /// Whether a path is ignored, by itself or with a folder that it lies in.
    pub(super) fn ignores(&self, path: &str, fuel: &Fuel) -> Result<bool, OutOfFuel> {
        if self.rules.is_empty() {
            return Ok(false);
        }
        let mut matched = self.root();
        let ends = path.match_indices('/').map(|(slash, _)| slash);
        let mut ignored = false;
        for end in ends.chain([path.len()]) {
            (ignored, matched) = self.decide(&path[..end], &matched, fuel)?;
        }
        Ok(ignored)
    }

    /// Whether nothing that is ignored can hold something that is not.
    pub(super) fn is_plain(&self) -> bool {
        !self.rules.iter().any(|rule| rule.exception)
    }

    /// What the rules say of the context's root.
    pub(super) fn root(&self) -> Matched {
        vec![false; self.rules.len()]
    }

    /// Whether `path` is ignored, and which rules match it; `parent` is the same of its folder.
    pub(super) fn decide(
        &self,
        path: &str,
        parent: &Matched,
        fuel: &Fuel,
    ) -> Result<(bool, Matched), OutOfFuel> {
        let mut ignored = false;
        let mut matched = Vec::with_capacity(self.rules.len());
        for (rule, inherited) in self.rules.iter().zip(parent) {
            let matches = *inherited || rule.glob.matches(path, fuel)?;
            if matches {
                ignored = !rule.exception;
            }
            matched.push(matches);
        }
        Ok((ignored, matched))
    }
}

/// The pattern as a relative path without empty parts. A `..` that climbs above the root stays: it
/// matches nothing.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the rules ignore a path, by walking down to it.
    fn ignores(rules: &str, path: &str) -> bool {
        let ignore = Ignore::parse(".dockerignore", rules).unwrap();
        let fuel = Fuel::new(1_000_000);
        let ends = path
            .match_indices('/')
            .map(|(end, _)| end)
            .chain([path.len()]);
        let start = (false, ignore.root());
        let (ignored, _) = ends.fold(start, |(_, parent), end| {
            ignore.decide(&path[..end], &parent, &fuel).unwrap()
        });
        ignored
    }

    #[test]
    fn rules_decide_as_in_docker() {
        let table = [
            ("", "a", false),
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a", "b/a", false),
            ("/a", "a", true),
            ("a/", "a", true),
            ("./a", "a", true),
            ("x/../a", "a", true),
            ("../a", "a", false),
            ("# a\na", "a", true),
            ("#a", "#a", false),
            (" a ", "a", true),
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/temp*", "a/b/temp", false),
            ("*/*/temp*", "a/b/temp", true),
            ("temp?", "tempa", true),
            ("**/*.go", "x/y/z.go", true),
            ("**/*.go", "z.go", true),
            ("**", "any/thing", true),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README.md", "other.md", true),
            (
                "*.md\n!README*.md\nREADME-secret.md",
                "README-secret.md",
                true,
            ),
            (
                "*.md\nREADME-secret.md\n!README*.md",
                "README-secret.md",
                false,
            ),
            ("dir\n!dir/keep", "dir/keep", false),
            ("dir\n!dir/keep", "dir/keep/deep", false),
            ("dir\n!dir/keep", "dir/other", true),
            ("*\n!src", "src/main.rs", false),
            ("*\n!src\nsrc/*.o", "src/a.o", true),
            ("\u{feff}a", "a", true),
            ("a\r\nb\r\n", "b", true),
            ("[ab].txt", "b.txt", true),
            (".git", ".git/config", true),
        ];
        for (rules, path, expected) in table {
            assert_eq!(ignores(rules, path), expected, "{rules:?} {path}");
        }
    }

    #[test]
    fn a_bad_rule_is_refused_by_its_line() {
        let name = "Dockerfile.dockerignore";
        let error = Ignore::parse(name, "ok\n!\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2 of Dockerfile.dockerignore has a `!` without a pattern"
        );
        assert!(Ignore::parse(name, "[x").is_err());
        assert!(matches!(
            Ignore::read(name, &b"\xff"[..]),
            Err(ContextError::IgnoreNotText { .. })
        ));
        let max = limits::DOCKERIGNORE_BYTES_MAX;
        let large = Ignore::read(name, std::io::repeat(b'x').take(max + 1));
        assert!(matches!(large, Err(ContextError::IgnoreTooLarge { .. })));
    }
}
