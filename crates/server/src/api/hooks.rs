//! An image's hooks: from the wire, with defaults filled in, to the domain.

use dormouse_api::types::{self, HookState};
use dormouse_core::hook::Hooks;
use dormouse_core::limits;

/// The hooks that are enabled. A port is there when one is: the request was checked for that.
pub(super) fn enabled(wanted: &types::Hooks) -> Hooks {
    let image = wanted.microvm_image_hooks.clone().unwrap_or_default();
    let microvm = wanted.microvm_hooks.clone().unwrap_or_default();
    let lifecycle =
        |state, seconds| limit(state, seconds, limits::LIFECYCLE_HOOK_TIMEOUT_DEFAULT_S);
    Hooks {
        port: wanted.port.unwrap_or_default(),
        ready_s: limit(
            image.ready,
            image.ready_timeout_in_seconds,
            limits::READY_TIMEOUT_DEFAULT_S,
        ),
        validate_s: limit(
            image.validate,
            image.validate_timeout_in_seconds,
            limits::VALIDATE_TIMEOUT_DEFAULT_S,
        ),
        run_s: lifecycle(microvm.run, microvm.run_timeout_in_seconds),
        resume_s: lifecycle(microvm.resume, microvm.resume_timeout_in_seconds),
        suspend_s: lifecycle(microvm.suspend, microvm.suspend_timeout_in_seconds),
        terminate_s: lifecycle(microvm.terminate, microvm.terminate_timeout_in_seconds),
    }
}

/// The time limit of a hook in seconds; none when it is not enabled.
fn limit(state: Option<HookState>, seconds: Option<i32>, default: u64) -> Option<u64> {
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    (state == Some(HookState::Enabled)).then(|| seconds.unwrap_or(default))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_api::types::{MicrovmHooks, MicrovmImageHooks};

    #[test]
    fn only_enabled_hooks_have_a_limit_and_what_is_not_said_is_filled_in() {
        let wanted = types::Hooks {
            port: Some(9000),
            microvm_hooks: Some(MicrovmHooks {
                run: Some(HookState::Enabled),
                suspend: Some(HookState::Enabled),
                suspend_timeout_in_seconds: Some(7),
                resume: Some(HookState::Disabled),
                resume_timeout_in_seconds: Some(8),
                ..MicrovmHooks::default()
            }),
            microvm_image_hooks: Some(MicrovmImageHooks {
                ready: Some(HookState::Enabled),
                validate: Some(HookState::Enabled),
                validate_timeout_in_seconds: Some(600),
                ..MicrovmImageHooks::default()
            }),
        };
        let expected = Hooks {
            port: 9000,
            ready_s: Some(limits::READY_TIMEOUT_DEFAULT_S),
            validate_s: Some(600),
            run_s: Some(limits::LIFECYCLE_HOOK_TIMEOUT_DEFAULT_S),
            suspend_s: Some(7),
            ..Hooks::default()
        };
        assert_eq!(enabled(&wanted), expected);
        assert_eq!(enabled(&types::Hooks::default()), Hooks::default());
    }
}
