//! A piece of a Dockerfile around the instruction that failed.

use super::printable;
use std::fmt::Write;

/// Lines shown before and after the instruction.
const AROUND: usize = 2;
/// Most lines of one instruction that are shown.
const INSTRUCTION_LINES_MAX: usize = 12;
const LINE_CHARS_MAX: usize = 200;
const RULE: &str = "--------------------\n";

/// The instruction that begins on `line`, counted from 1, marked among its neighbours. None when the
/// Dockerfile has no such line.
pub(super) fn around(dockerfile: &str, line: usize) -> Option<String> {
    let lines: Vec<&str> = dockerfile.lines().collect();
    let first = line.checked_sub(1).filter(|first| *first < lines.len())?;
    let last = last_line(&lines, first, escape(&lines));
    let shown = first.saturating_sub(AROUND)..(last + 1 + AROUND).min(lines.len());
    let mut text = format!("Dockerfile:{line}\n{RULE}");
    for (index, content) in lines.iter().enumerate().take(shown.end).skip(shown.start) {
        let mark = match (first..=last).contains(&index) {
            true => ">>>",
            false => "   ",
        };
        let content: String = printable(content).chars().take(LINE_CHARS_MAX).collect();
        let written = writeln!(text, "{:4} | {mark} {content}", index + 1);
        written.expect("a string takes what it is given");
    }
    text.push_str(RULE);
    Some(text)
}

/// The last line of the instruction: each before it ends with the escape character, or is a comment
/// or empty between lines that belong together.
fn last_line(lines: &[&str], first: usize, escape: char) -> usize {
    let mut last = first;
    let mut goes_on = true;
    let limit = lines.len().min(first + INSTRUCTION_LINES_MAX);
    for (index, line) in lines.iter().enumerate().take(limit).skip(first) {
        let line = line.trim();
        let is_aside = index > first && (line.is_empty() || line.starts_with('#'));
        if !goes_on {
            break;
        }
        if !is_aside {
            last = index;
            goes_on = line.ends_with(escape);
        }
    }
    last
}

/// What continues a line: the backslash, unless a directive at the top says otherwise.
fn escape(lines: &[&str]) -> char {
    let directives = lines.iter().map_while(|line| line.trim().strip_prefix('#'));
    let mut pairs = directives.filter_map(|text| text.split_once('='));
    let named = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("escape"));
    match named.map(|(_, value)| value.trim()) {
        Some("`") => '`',
        _ => '\\',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn an_instruction_is_marked_with_all_its_lines() {
        let dockerfile =
            "FROM a\n\nENV X=1\nRUN one && \\\n    # aside\n    two\nCMD x\nEXPOSE 1\nUSER u\n";
        expect![[r#"
            Dockerfile:4
            --------------------
               2 |     
               3 |     ENV X=1
               4 | >>> RUN one && \
               5 | >>>     # aside
               6 | >>>     two
               7 |     CMD x
               8 |     EXPOSE 1
            --------------------
        "#]]
        .assert_eq(&around(dockerfile, 4).unwrap());
    }

    #[test]
    fn the_escape_directive_counts_and_a_file_ends_where_it_ends() {
        let dockerfile = "# escape=`\nFROM a\nRUN a\\\nRUN b `\n  c";
        let text = around(dockerfile, 3).unwrap();
        assert!(text.contains("3 | >>> RUN a"), "{text}");
        assert!(text.contains("4 |     RUN b"), "{text}");
        let text = around(dockerfile, 4).unwrap();
        assert!(text.contains("5 | >>>   c"), "{text}");
    }

    #[test]
    fn a_line_that_is_not_there_has_no_excerpt() {
        assert_eq!(around("FROM a\n", 0), None);
        assert_eq!(around("FROM a\n", 2), None);
        assert_eq!(around("", 1), None);
    }

    #[test]
    fn an_endless_instruction_is_cut() {
        let dockerfile = "RUN a \\\n".repeat(1000);
        assert!(around(&dockerfile, 1).unwrap().lines().count() < 20);
    }
}
