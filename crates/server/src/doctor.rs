//! `dormouse doctor`: looks at everything that the daemon needs and says what to do about what is missing.
//!
//! Nothing is changed that is not put back. Each check is a function that returns a [`Finding`]; the exit status is 1 when one of
//! them is a failure.

mod host;
mod kvm;
mod network;

use crate::cli::print;
use crate::config::Config;
use anyhow::Result;
use std::fmt::Write;
use std::process::ExitCode;

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How bad it is.
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) found: String,
    /// What to do about it, unless all is well.
    pub(crate) remedy: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it must be.
    Good,
    /// It works, but something is slower or less comfortable than it could be.
    Note,
    /// The daemon will not work.
    Failure,
}

impl Finding {
    /// All is well.
    pub(crate) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Good,
            found: found.into(),
            remedy: String::new(),
        }
    }

    /// It works, but could be better.
    pub(crate) fn note(
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict: Verdict::Note,
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    /// The daemon will not work.
    pub(crate) fn failure(
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict: Verdict::Failure,
            found: found.into(),
            remedy: remedy.into(),
        }
    }
}

/// Makes every check and prints the table.
pub(crate) async fn run(config: &Config) -> Result<ExitCode> {
    let mut findings = host::check(config).await;
    findings.push(kvm::check(config).await);
    findings.extend(network::check(config).await);
    print(&table(&findings))?;
    let failed = findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Failure);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn table(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    let mut line = |mark: &str, name: &str, says: &str| {
        writeln!(text, "{mark:<5} {name:<width$}  {says}").expect("a string takes any text");
    };
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok",
            Verdict::Note => "note",
            Verdict::Failure => "FAIL",
        };
        line(mark, finding.name, finding.found.trim());
        for remedy in finding.remedy.lines() {
            line("", "", &format!("-> {remedy}"));
        }
    }
    let failures = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Failure)
        .count();
    text.push_str(&match failures {
        0 => "\nThis host can run dormouse.\n".to_owned(),
        1 => "\nOne thing is missing.\n".to_owned(),
        many => format!("\n{many} things are missing.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_to_do_about_what_is_not_well() {
        let findings = [
            Finding::good("qemu", "10.0.2"),
            Finding::note("copies", "no reflinks", "use XFS or btrfs"),
            Finding::failure("kernel", "none", "run make build\nor name it"),
        ];
        let expected = "\
ok    qemu    10.0.2
note  copies  no reflinks
              -> use XFS or btrfs
FAIL  kernel  none
              -> run make build
              -> or name it

One thing is missing.
";
        assert_eq!(table(&findings), expected);
        assert!(table(&findings[..2]).ends_with("This host can run dormouse.\n"));
    }
}
