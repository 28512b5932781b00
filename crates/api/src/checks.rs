//! Rules that constraints cannot say, as pure functions of a request's own members, with AWS's texts.

mod network_connector;

pub use network_connector::{network_connector, network_connector_name};

use crate::error::ApiError;
use crate::types::{
    CodeArtifact, EnvironmentVariables, HookState, Hooks, ImageSettings, MicrovmHooks,
    MicrovmImageHooks, PortSpecification,
};

/// Names of environment variables that the platform sets itself.
const RESERVED_VARIABLES: [&str; 1] = ["AWS_REGION"];
/// Longest object key in S3, in bytes.
const S3_KEY_BYTES_MAX: usize = 1024;

/// An object in S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct S3Location<'a> {
    /// The bucket's name.
    pub bucket: &'a str,
    /// The object's key.
    pub key: &'a str,
}

/// A token may live at most `max` minutes.
///
/// # Errors
/// AWS's text when it would live longer.
pub fn token_minutes(minutes: i32, max: i32) -> Result<(), ApiError> {
    if minutes > max {
        return Err(ApiError::validation(format!(
            "ExpirationMinutes {minutes} exceeded max allowed of {max}."
        )));
    }
    Ok(())
}

/// A range of ports ends where it starts or later.
///
/// # Errors
/// For the first range that does not; the text is our own.
pub fn port_ranges(ports: &[PortSpecification]) -> Result<(), ApiError> {
    for port in ports {
        if let PortSpecification::Range(range) = port
            && range.start_port > range.end_port
        {
            return Err(ApiError::validation(format!(
                "Port range start {} must not be greater than its end {}.",
                range.start_port, range.end_port
            )));
        }
    }
    Ok(())
}

/// Takes an artifact's `s3://BUCKET/KEY` apart.
///
/// # Errors
/// AWS's text when it is anything else.
pub fn artifact_uri(uri: &str) -> Result<S3Location<'_>, ApiError> {
    uri.strip_prefix("s3://")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(bucket, key)| {
            is_bucket_name(bucket) && !key.is_empty() && key.len() <= S3_KEY_BYTES_MAX
        })
        .map(|(bucket, key)| S3Location { bucket, key })
        .ok_or_else(|| {
            ApiError::validation(
                "CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>",
            )
        })
}

fn is_bucket_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (3..=63).contains(&name.len()) && name.bytes().all(allowed) && !name.contains("..")
}

/// An image may ask for one of a few sizes of memory; `mib` is what it asked for.
///
/// # Errors
/// AWS's text, which lists the sizes, when it is none of `supported`.
pub fn memory_size(mib: i32, base_image_arn: &str, supported: &[u32]) -> Result<u32, ApiError> {
    u32::try_from(mib)
        .ok()
        .filter(|size| supported.contains(size))
        .ok_or_else(|| {
            ApiError::validation(format!(
                "The requested memory size of {mib} MiB is not supported by base MicroVM image \
                 {base_image_arn}. Supported memory sizes in MiB are: {supported:?}."
            ))
        })
}

/// The platform's own variables are not the image's to set.
///
/// # Errors
/// AWS's text for the first one that is.
pub fn environment(variables: &EnvironmentVariables) -> Result<(), ApiError> {
    for reserved in RESERVED_VARIABLES {
        if variables.contains_key(reserved) {
            return Err(ApiError::validation(format!(
                "Environment variable key '{reserved}' is reserved"
            )));
        }
    }
    Ok(())
}

/// Hooks of a MicroVM need the ready hook, and any hook needs a port.
///
/// # Errors
/// AWS's text for the first rule; the second one's is our own.
pub fn hooks(hooks: &Hooks) -> Result<(), ApiError> {
    let enabled = |state: Option<HookState>| state == Some(HookState::Enabled);
    let of_microvm = |h: &MicrovmHooks| [h.run, h.resume, h.suspend, h.terminate].map(enabled);
    let of_image = |h: &MicrovmImageHooks| [h.ready, h.validate].map(enabled);
    let [run, resume, suspend, terminate] =
        hooks.microvm_hooks.as_ref().map_or([false; 4], of_microvm);
    let [ready, validate] = hooks
        .microvm_image_hooks
        .as_ref()
        .map_or([false; 2], of_image);

    let lifecycle = run || resume || suspend || terminate;
    if lifecycle && !ready {
        return Err(ApiError::validation(
            "The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle \
             hook (run, resume, suspend, or terminate) is enabled.",
        ));
    }
    if (lifecycle || ready || validate) && hooks.port.is_none() {
        return Err(ApiError::validation(
            "The hooks port must be specified when any hook is enabled.",
        ));
    }
    Ok(())
}

/// RunMicrovm takes an image by its ARN alone.
///
/// # Errors
/// AWS's text when it is no ARN at all.
pub fn run_image_identifier(identifier: &str) -> Result<(), ApiError> {
    if identifier.starts_with("arn:") {
        Ok(())
    } else {
        Err(ApiError::malformed_arn())
    }
}

/// All rules about an image's settings that need nothing but the settings.
///
/// # Errors
/// The first rule that they break.
pub fn image_settings(settings: &ImageSettings, memory_sizes: &[u32]) -> Result<(), ApiError> {
    let CodeArtifact::Uri(uri) = &settings.code_artifact;
    artifact_uri(uri)?;
    for resources in settings.resources.iter().flatten() {
        let size = resources.minimum_memory_in_mib;
        memory_size(size, &settings.base_image_arn, memory_sizes)?;
    }
    if let Some(variables) = &settings.environment_variables {
        environment(variables)?;
    }
    if let Some(wanted) = &settings.hooks {
        hooks(wanted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PortRange, Resources};

    fn text<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().message().unwrap().to_owned()
    }

    #[test]
    fn a_token_lives_an_hour_at_most() {
        assert_eq!(token_minutes(60, 60), Ok(()));
        assert_eq!(
            text(token_minutes(61, 60)),
            "ExpirationMinutes 61 exceeded max allowed of 60."
        );
    }

    #[test]
    fn a_port_range_does_not_run_backwards() {
        let range = |start_port, end_port| {
            [PortSpecification::Range(PortRange {
                start_port,
                end_port,
            })]
        };
        assert_eq!(port_ranges(&range(80, 80)), Ok(()));
        assert!(port_ranges(&range(81, 80)).is_err());
    }

    #[test]
    fn an_artifact_is_an_object_in_s3() {
        assert_eq!(
            artifact_uri("s3://my.bucket-1/a/b c.zip"),
            Ok(S3Location {
                bucket: "my.bucket-1",
                key: "a/b c.zip"
            })
        );
        let long = format!("s3://bucket/{}", "k".repeat(1025));
        for bad in [
            "",
            "s3://",
            "s3://bucket",
            "s3://bucket/",
            "s3:///key",
            "s3://../key",
            "s3://UPPER/key",
            "https://bucket/key",
            "000000000000.dkr.ecr.us-east-1.amazonaws.com/app",
            &long,
        ] {
            assert_eq!(
                text(artifact_uri(bad)),
                "CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>",
                "{bad}"
            );
        }
    }

    #[test]
    fn memory_comes_in_a_few_sizes() {
        let sizes = [512, 1024, 2048, 4096, 8192];
        assert_eq!(memory_size(512, "arn:x", &sizes), Ok(512));
        assert_eq!(
            text(memory_size(700, "arn:x", &sizes)),
            "The requested memory size of 700 MiB is not supported by base MicroVM image arn:x. \
             Supported memory sizes in MiB are: [512, 1024, 2048, 4096, 8192]."
        );
        assert!(memory_size(-512, "arn:x", &sizes).is_err());
    }

    #[test]
    fn the_region_is_not_the_images_to_set() {
        let variables = |name: &str| [(name.to_owned(), "x".into())].into();
        assert_eq!(environment(&variables("REGION")), Ok(()));
        assert_eq!(
            text(environment(&variables("AWS_REGION"))),
            "Environment variable key 'AWS_REGION' is reserved"
        );
    }

    #[test]
    fn lifecycle_hooks_need_ready_and_all_need_a_port() {
        let on = Some(HookState::Enabled);
        let off = Some(HookState::Disabled);
        let make = |port, run, ready| Hooks {
            port,
            microvm_hooks: Some(MicrovmHooks {
                run,
                ..MicrovmHooks::default()
            }),
            microvm_image_hooks: Some(MicrovmImageHooks {
                ready,
                ..MicrovmImageHooks::default()
            }),
        };
        assert_eq!(hooks(&Hooks::default()), Ok(()));
        assert_eq!(hooks(&make(None, off, off)), Ok(()));
        assert_eq!(hooks(&make(Some(8080), on, on)), Ok(()));
        assert_eq!(hooks(&make(Some(8080), off, on)), Ok(()));
        assert!(
            text(hooks(&make(Some(8080), on, off)))
                .starts_with("The ready (/ready) MicroVM image hook must be enabled when any")
        );
        assert!(text(hooks(&make(None, None, on))).contains("port"));
    }

    #[test]
    fn the_first_rule_that_an_images_settings_break_is_told() {
        let mut settings = ImageSettings {
            additional_os_capabilities: None,
            base_image_arn: "arn:base".into(),
            base_image_version: None,
            build_role_arn: "arn:role".into(),
            code_artifact: CodeArtifact::Uri("s3://bucket/key".into()),
            cpu_configurations: None,
            description: None,
            egress_network_connectors: None,
            environment_variables: None,
            hooks: None,
            logging: None,
            resources: None,
        };
        assert_eq!(image_settings(&settings, &[512]), Ok(()));
        settings.hooks = Some(Hooks {
            microvm_image_hooks: Some(MicrovmImageHooks {
                ready: Some(HookState::Enabled),
                ..MicrovmImageHooks::default()
            }),
            ..Hooks::default()
        });
        assert!(text(image_settings(&settings, &[512])).contains("port"));
        settings.environment_variables = Some([("AWS_REGION".to_owned(), "x".into())].into());
        assert!(text(image_settings(&settings, &[512])).contains("reserved"));
        settings.resources = Some(vec![Resources {
            minimum_memory_in_mib: 1,
        }]);
        assert!(text(image_settings(&settings, &[512])).contains("memory size of 1 MiB"));
        settings.code_artifact = CodeArtifact::Uri("file:///x".into());
        assert!(text(image_settings(&settings, &[512])).contains("CodeArtifact"));
    }

    #[test]
    fn run_takes_an_arn() {
        assert_eq!(run_image_identifier("arn:aws:lambda:x"), Ok(()));
        assert_eq!(
            text(run_image_identifier("my-image")),
            "Malformed ARN - doesn't start with 'arn:'"
        );
    }
}
