use super::*;
use bytes::Bytes;
use regex::Regex;

/// A log in a file of its own, read back with its times taken out.
struct Lab {
    dir: tempfile::TempDir,
    log: BuildLog,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = BuildLog::create(&dir.path().join("log")).unwrap();
        Self { dir, log }
    }

    fn text(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        let times = Regex::new(r"\d+\.\d+( ?s)?").unwrap();
        times.replace_all(&text, "T").into_owned()
    }
}

fn out(text: &str) -> Output {
    Output::Stdout(Bytes::copy_from_slice(text.as_bytes()))
}

#[test]
fn steps_and_phases_are_numbered_as_they_begin() {
    let Lab { dir, log } = Lab::new();
    log.phase("load s3://code/app.zip");
    log.line("12 files");
    let mut make = log.step(Some("build"), 1, 2, "RUN make");
    let copy = log.step(None, 2, 2, "COPY a /b");
    make.output(&out("cc -o a\nld"));
    copy.cached();
    make.done();
    log.app_output(b"listening\n");
    log.finished();
    expect_test::expect![[r#"
        #1 [internal] load s3://code/app.zip
        #1 T 12 files
        #1 DONE T

        #2 [build 1/2] RUN make
        #3 [2/2] COPY a /b
        #2 T cc -o a
        #3 CACHED

        #2 T ld
        #2 DONE T

        #4 [internal] app: listening
        #4 DONE T

        DONE in T
    "#]]
    .assert_eq(&Lab { dir, log }.text());
}

#[test]
fn a_failed_build_ends_with_what_a_person_needs() {
    let Lab { dir, log } = Lab::new();
    let mut step = log.step(None, 1, 1, "RUN make");
    for line in 0..30 {
        step.output(&out(&format!("line {line}\n")));
    }
    step.output(&Output::Stderr(Bytes::from_static(b"no rule")));
    drop(step);
    let error = BuildError::StepFailed {
        line: 2,
        command: "make".to_owned(),
        code: 2,
    };
    log.failed(&error, Some(b"FROM a\nRUN make\n"));
    let text = Lab { dir, log }.text();
    let end = text.split_once("#1 ERROR: ").unwrap().1;
    assert!(end.starts_with("Dockerfile line 2: "), "{end}");
    assert!(end.contains("------\n > [1/1] RUN make:\n"), "{end}");
    assert!(!end.contains("line 10"), "{end}");
    assert!(end.contains("T line 11\n"), "{end}");
    assert!(end.contains("T no rule\n------\n"), "{end}");
    assert!(end.contains("   2 | >>> RUN make\n"), "{end}");
    let last = end.lines().last().unwrap();
    assert!(last.starts_with("ERROR: CONTAINER_BUILD_FAILED: "), "{end}");
    assert!(last.ends_with("exit code: 2"), "{end}");
}

#[test]
fn a_phase_that_fails_is_named() {
    let Lab { dir, log } = Lab::new();
    log.phase("start the app");
    log.app_output(b"last words\n");
    log.failed(&BuildError::AppExited { code: 7 }, None);
    let text = Lab { dir, log }.text();
    assert!(text.contains("#1 ERROR: The application exited"), "{text}");
    assert!(
        text.contains("------\n > [internal] start the app:\n"),
        "{text}"
    );
}

#[test]
fn a_carriage_return_replaces_the_line_and_controls_are_dropped() {
    let Lab { dir, log } = Lab::new();
    let mut step = log.step(None, 1, 1, "RUN \u{1b}[2Jx");
    step.output(&out("10%\r20%\r"));
    step.output(&out("\n\u{1b}[31mred\r\nend"));
    step.done();
    let text = Lab { dir, log }.text();
    assert!(
        text.starts_with("#1 [1/1] RUN [2Jx\n#1 T 20%\n#1 T [31mred\n#1 T end\n"),
        "{text}"
    );
}

#[test]
fn a_full_log_still_says_why_the_build_failed() {
    let Lab { dir, log } = Lab::new();
    let mut step = log.step(None, 1, 1, "RUN yes");
    let flood = out(&"y\n".repeat(32 << 10));
    for _ in 0..64 {
        step.output(&flood);
    }
    drop(step);
    log.failed(&BuildError::Stopped, None);
    let path = dir.path().join("log");
    let length = std::fs::metadata(&path).unwrap().len();
    assert!(
        length < limits::BUILD_LOG_BYTES_MAX + (64 << 10),
        "{length}"
    );
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("(log is full; the rest is not kept)\n"));
    assert!(text.ends_with("the daemon stopped during the build\n"));
}
