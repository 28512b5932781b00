//! The program that puts challenges into DNS and takes them out again.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use dormouse_core::limits;
use tokio::io::{AsyncReadExt, copy, sink};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Why the hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    #[error("it cannot be run")]
    Start(#[source] io::Error),
    #[error("it was not done within {} s", limits::ACME_HOOK_TIMEOUT.as_secs())]
    Timeout,
    #[error("{status}: {output}")]
    Failed { status: ExitStatus, output: String },
}

/// Runs `program ACTION RECORD VALUE` and waits for its end.
pub(super) async fn call(
    program: &Path,
    action: &str,
    record: &str,
    value: &str,
) -> Result<(), HookError> {
    let child = Command::new(program)
        .args([action, record, value])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(HookError::Start)?;
    let ended = timeout(limits::ACME_HOOK_TIMEOUT, end(child)).await;
    let (status, output) = ended
        .map_err(|_| HookError::Timeout)?
        .map_err(HookError::Start)?;
    match status.success() {
        true => Ok(()),
        false => Err(HookError::Failed { status, output }),
    }
}

/// The exit status, and the beginning of what it wrote to its standard error.
async fn end(mut child: Child) -> io::Result<(ExitStatus, String)> {
    let mut output = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut beginning = stderr.take(limits::ACME_HOOK_OUTPUT_BYTES_MAX);
        beginning.read_to_end(&mut output).await?;
        copy(&mut beginning.into_inner(), &mut sink()).await?;
    }
    let output = String::from_utf8_lossy(&output).trim().to_owned();
    Ok((child.wait().await?, output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    async fn run(script: &str) -> (Result<(), HookError>, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("folder");
        let program = folder.path().join("hook");
        fs::write(
            &program,
            format!("#!/bin/sh\ncd {}\n{script}", folder.path().display()),
        )
        .expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
        let outcome = call(&program, "present", "_acme-challenge.example.com", "value").await;
        (outcome, folder)
    }

    #[tokio::test]
    async fn a_hook_is_told_what_to_do_where() {
        let (outcome, folder) = run("echo \"$@\" > told").await;
        outcome.expect("done");
        let told = fs::read_to_string(folder.path().join("told")).expect("read");
        assert_eq!(told, "present _acme-challenge.example.com value\n");
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_why_and_is_not_believed_without_end() {
        let (outcome, _folder) = run("echo no such zone >&2; exit 3").await;
        let error = outcome.expect_err("failed").to_string();
        assert!(error.contains("exit status: 3: no such zone"), "{error}");
        let (outcome, _folder) = run("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1").await;
        let error = outcome.expect_err("failed").to_string();
        assert!(error.len() < 8192, "{}", error.len());
        let missing = Path::new("/nonexistent/hook");
        let error = call(missing, "present", "r", "v")
            .await
            .expect_err("missing");
        assert!(matches!(error, HookError::Start(_)));
    }
}
