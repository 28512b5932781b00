//! Small Dockerfiles and what Docker's reference says of them. Each case is a block of the table: its name,
//! the Dockerfile, and after `---` lines of which each must be part of the plan, in this order; a line
//! that begins with `!` must be no part of it. The base image has `PATH=/bin`, `/base` as its folder and
//! the command `base-cmd`.

use super::*;

const TABLE: &str = include_str!("conformance.txt");

/// Images beside those that all tests know.
fn image(reference: &str) -> Result<ImageConfig, NoImage> {
    let mut config = base(reference)?;
    if reference == "triggers" {
        config.onbuild = vec![
            "COPY . /app".to_owned(),
            "RUN <<EOF\nmake\nEOF".to_owned(),
            "ENV BUILT=yes".to_owned(),
        ];
    }
    if reference == "bash" {
        config.shell = vec!["/bin/bash".to_owned(), "-c".to_owned()];
    }
    Ok(config)
}

fn build_args() -> BTreeMap<String, String> {
    let args = [("GIVEN", "given"), ("HTTP_PROXY", "http://proxy")];
    args.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn shown(dockerfile: &str) -> String {
    match plan(dockerfile.as_bytes(), &build_args(), image) {
        Ok(plan) => show_plan(&plan),
        Err(error) => format!("error: {error}\n"),
    }
}

fn failure(dockerfile: &str, expected: &str) -> Option<String> {
    let shown = shown(dockerfile);
    let mut rest = shown.as_str();
    for line in expected.lines() {
        if let Some(unwanted) = line.strip_prefix('!') {
            if shown.contains(unwanted) {
                return Some(format!("has {unwanted:?}:\n{shown}"));
            }
            continue;
        }
        match rest.split_once(line) {
            Some((_, after)) => rest = after,
            None => return Some(format!("lacks {line:?}:\n{shown}")),
        }
    }
    None
}

#[test]
fn dockerfiles_mean_what_dockers_reference_says() {
    const CASES_MIN: usize = 60;
    let mut failures = Vec::new();
    let cases = TABLE.split("\n=== ").skip(1);
    let mut count = 0;
    for case in cases {
        count += 1;
        let (name, case) = case.split_once('\n').unwrap();
        let (dockerfile, expected) = case.split_once("\n---\n").unwrap();
        assert!(!expected.trim().is_empty(), "{name} expects nothing");
        if let Some(failure) = failure(dockerfile, expected.trim_end()) {
            failures.push(format!("{name}: {failure}"));
        }
    }
    assert!(count >= CASES_MIN, "{count} cases");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
