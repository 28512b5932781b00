//! The hooks of a build: asks the app again and again whether it is ready, or whether it works.

use super::{BuildError, BuildLog};
use crate::guest::Guest;
use crate::hook;
use dormouse_core::hook::{HookCall, HookFailure};
use dormouse_core::limits;
use http::StatusCode;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// Polls a hook until the app says 200. [`BuildError::Hook`] carries AWS's text.
pub(super) async fn poll(
    guest: Guest<'_>,
    call: HookCall,
    log: &BuildLog,
) -> Result<(), BuildError> {
    let deadline = Instant::now() + Duration::from_secs(call.timeout_s);
    let failed = |failure| BuildError::Hook(call.build_reason(failure));
    loop {
        // A request that the app holds is not given up for another: it ends with the hook's time.
        let answer = timeout_at(deadline, hook::ask(guest, call, None)).await;
        match answer {
            Err(_) => return Err(failed(HookFailure::TimedOut)),
            Ok(Ok(StatusCode::OK)) => return Ok(()),
            Ok(Ok(status)) if is_refusal(status) => {
                let path = call.hook.path();
                log.line(&format!("{path} answered HTTP {}", status.as_u16()));
                return Err(failed(HookFailure::Status(status.as_u16())));
            }
            // Not listening yet, or not ready yet.
            Ok(_) => {}
        }
        let again = Instant::now() + limits::HOOK_POLL;
        if again >= deadline {
            sleep_until(deadline).await;
            return Err(failed(HookFailure::TimedOut));
        }
        sleep(limits::HOOK_POLL).await;
    }
}

/// Whether a status ends the build at once. A 503 asks for patience.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error()
        || (status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE)
}
