//! The messages that clients get, by noun: AWS's own words where they were recorded.

use super::{ApiError, ErrorCode};

/// Errors of images.
impl ApiError {
    /// No such image.
    #[must_use]
    pub fn image_not_found(arn: &str) -> Self {
        Self::not_found(format!("MicroVMImage not found for MicroVMImageID: {arn}"))
    }

    /// No such version of the image.
    #[must_use]
    pub fn image_version_not_found(arn: &str, version: &str) -> Self {
        Self::not_found(format!(
            "MicroVMImage not found for MicroVMImage: {arn}, Version: {version}"
        ))
    }

    /// No such build of the version; the text is our own.
    #[must_use]
    pub fn image_build_not_found(arn: &str, version: &str, build: &str) -> Self {
        Self::not_found(format!(
            "MicroVMImageBuild not found for MicroVMImage: {arn}, Version: {version}, BuildId: {build}"
        ))
    }

    /// An image operation got something that is no image ARN.
    #[must_use]
    pub fn invalid_arn(text: &str) -> Self {
        Self::validation(format!("Invalid ARN format: {text}"))
    }

    /// The account has an image of this name.
    #[must_use]
    pub fn image_name_taken(name: &str) -> Self {
        Self::validation(format!(
            "A MicroVM image with the name '{name}' already exists in this account"
        ))
    }

    /// The base image is none, or not in this version.
    #[must_use]
    pub fn base_image_unknown(arn: &str, version: &str) -> Self {
        Self::validation(format!(
            "No managed MicroVM Image with arn {arn} and version {version} is available"
        ))
    }

    /// The image is busy in this state, spelled as on the wire.
    #[must_use]
    pub fn image_busy(state: &str) -> Self {
        Self::conflict(format!("MicroVM Image is already in state: {state}"))
    }

    /// The image is busy, so it cannot be deleted.
    #[must_use]
    pub fn image_not_deletable(arn: &str) -> Self {
        Self::validation(format!(
            "Cannot delete MicroVM image in its current state: {arn}"
        ))
    }

    /// The image cannot be deleted while MicroVMs of it live.
    #[must_use]
    pub fn image_in_use() -> Self {
        Self::validation("Cannot delete microvm image with running microvms.")
    }

    /// An image keeps at least one version.
    #[must_use]
    pub fn image_last_version() -> Self {
        Self::validation("This is the last version. Please delete the entire image")
    }

    /// The account has as many images as it may; the text is our own.
    #[must_use]
    pub fn image_quota() -> Self {
        Self::quota_exceeded("The maximum number of MicroVM images has been reached.")
    }

    /// The image has as many versions as it may; the text is our own.
    #[must_use]
    pub fn image_version_quota() -> Self {
        Self::quota_exceeded(
            "The maximum number of versions of the MicroVM image has been reached.",
        )
    }

    /// The account has as many builds under way as it may.
    #[must_use]
    pub fn build_quota() -> Self {
        Self::quota_exceeded("The maximum number of concurrent builds has been reached.")
    }

    /// The account has as many images, versions or builds under way as it may.
    #[must_use]
    pub fn quota_exceeded(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::ServiceQuotaExceeded, message)
    }
}

/// Errors of MicroVMs.
impl ApiError {
    /// No such MicroVM.
    #[must_use]
    pub fn microvm_not_found(id: &str) -> Self {
        Self::not_found(format!("MicroVM not found: {id}"))
    }

    /// Nothing of this image can be launched; `version` when the client named one.
    #[must_use]
    pub fn no_active_version(arn: &str, version: Option<&str>) -> Self {
        let which = version.map_or_else(String::new, |v| format!(" and version {v}"));
        Self::not_found(format!(
            "No active version found for MicroVM image {arn}{which}"
        ))
    }

    /// RunMicrovm got something that is no ARN.
    #[must_use]
    pub fn malformed_arn() -> Self {
        Self::validation("Malformed ARN - doesn't start with 'arn:'")
    }

    /// The MicroVM has ended and stays so.
    #[must_use]
    pub fn microvm_terminated(id: &str) -> Self {
        Self::validation(format!(
            "The MicroVM {id} has been terminated and its state cannot be changed."
        ))
    }

    /// The MicroVM is on its way between two states, spelled as on the wire; the text is our own.
    #[must_use]
    pub fn microvm_busy(id: &str, state: &str) -> Self {
        Self::conflict(format!(
            "The MicroVM {id} cannot be changed in its current state: {state}"
        ))
    }

    /// The client token came with other parameters before; the text is our own.
    #[must_use]
    pub fn client_token_reused(token: &str) -> Self {
        Self::conflict(format!(
            "The client token '{token}' was already used with different parameters"
        ))
    }

    /// The account's MicroVMs take all the memory that they may.
    #[must_use]
    pub fn memory_quota() -> Self {
        Self::quota_exceeded(
            "The base maximum allocated memory limit has been reached for this account.",
        )
    }

    /// A payload for a run hook that the image does not have.
    #[must_use]
    pub fn run_hook_disabled() -> Self {
        Self::validation(
            "The run hook must be enabled in the MicroVM image to pass the run hook payload",
        )
    }

    /// No host has room now; the text is our own.
    #[must_use]
    pub fn insufficient_capacity() -> Self {
        Self::new(
            ErrorCode::InsufficientCapacity,
            "There is not enough capacity to run the MicroVM. Try again later.",
        )
    }
}

/// Errors of shells.
impl ApiError {
    /// The MicroVM was launched without the connector that lets shells in.
    #[must_use]
    pub fn shell_not_connected() -> Self {
        Self::validation(
            "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.",
        )
    }

    /// The MicroVM was launched with ALL_INGRESS and another; AWS says so only when a shell is asked for.
    #[must_use]
    pub fn shell_with_all_ingress() -> Self {
        Self::validation(
            "ALL_INGRESS cannot be combined with other ingress network connectors; \
             use HTTP_INGRESS and/or SHELL_INGRESS instead",
        )
    }
}

/// Errors of tags.
impl ApiError {
    /// Nothing has this ARN; the text is our own.
    #[must_use]
    pub fn taggable_not_found(arn: &str) -> Self {
        Self::not_found(format!("Resource not found: {arn}"))
    }

    /// More tags than a resource may have; the text is our own.
    #[must_use]
    pub fn too_many_tags(max: usize) -> Self {
        Self::new(
            ErrorCode::InvalidParameterValue,
            format!("A resource can have at most {max} tags"),
        )
    }
}

/// Errors of network connectors.
impl ApiError {
    /// No such connector, said by the connectors' own API.
    #[must_use]
    pub fn connector_not_found(identifier: &str) -> Self {
        Self::new(
            ErrorCode::NetworkConnectorNotFound,
            format!("Network connector not found for: {identifier}"),
        )
    }

    /// No such connector, said to who wants to use it.
    #[must_use]
    pub fn connector_missing(arn: &str) -> Self {
        Self::not_found(format!("Network connector not found for: {arn}"))
    }

    /// The account has a connector of this name; the text is our own.
    #[must_use]
    pub fn connector_name_taken(name: &str) -> Self {
        Self::new(
            ErrorCode::ResourceConflict,
            format!("A network connector with the name '{name}' already exists in this account"),
        )
    }

    /// The connector's state, spelled as on the wire, rules this out; the text is our own.
    #[must_use]
    pub fn connector_busy(arn: &str, state: &str) -> Self {
        Self::new(
            ErrorCode::ResourceConflict,
            format!("The network connector {arn} cannot be changed in its current state: {state}"),
        )
    }

    /// MicroVMs use the connector; the text is our own.
    #[must_use]
    pub fn connector_in_use(arn: &str) -> Self {
        Self::new(
            ErrorCode::ResourceConflict,
            format!("The network connector {arn} is used by MicroVMs that have not ended"),
        )
    }

    /// A connector stays with its newest version; the text is our own.
    #[must_use]
    pub fn connector_latest_version(arn: &str) -> Self {
        Self::new(
            ErrorCode::ResourceConflict,
            format!("{arn} is the latest version: delete the network connector instead"),
        )
    }

    /// The account has as many connectors, or the connector as many versions, as it may; the text is our own.
    #[must_use]
    pub fn connector_limit(max: usize) -> Self {
        Self::new(
            ErrorCode::NetworkConnectorLimitExceeded,
            format!("The maximum number of {max} has been reached"),
        )
    }

    /// A connector cannot be used before it is active; the text is our own.
    #[must_use]
    pub fn connector_not_active(arn: &str) -> Self {
        Self::validation(format!("Network connector {arn} is not ACTIVE"))
    }

    /// The connector is for something else than this; the text is our own.
    #[must_use]
    pub fn connector_unsuitable(arn: &str, purpose: &str) -> Self {
        Self::validation(format!(
            "Network connector {arn} cannot be used for {purpose}"
        ))
    }

    /// The connector rules out all others; the text is our own.
    #[must_use]
    pub fn connector_not_alone(arn: &str) -> Self {
        Self::validation(format!(
            "Network connector {arn} cannot be combined with other network connectors"
        ))
    }

    /// A managed connector's ARN with a name that is none.
    #[must_use]
    pub fn connector_unrecognized(arn: &str) -> Self {
        Self::validation(format!("Unrecognized managed network connector ARN: {arn}"))
    }

    /// Not a connector's ARN at all.
    #[must_use]
    pub fn connector_malformed() -> Self {
        Self::validation("Malformed network connector ARN")
    }
}
