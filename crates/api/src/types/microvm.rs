//! MicroVMs.

use super::{EpochSeconds, Logging, Page};
use crate::Sensitive;
use serde::{Deserialize, Serialize};

/// Launches a MicroVM from an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RunMicrovmRequest {
    /// Connectors that let traffic in; absent and empty both mean the default.
    pub ingress_network_connectors: Option<Vec<String>>,
    /// Connectors that let traffic out; absent and empty both mean the image's.
    pub egress_network_connectors: Option<Vec<String>>,
    /// The image's ARN.
    pub image_identifier: String,
    /// The image version, as in `1` or `1.0`; the newest active one when absent.
    pub image_version: Option<String>,
    /// The role that the guest acts as.
    pub execution_role_arn: Option<String>,
    /// When to suspend and how long to stay so; never when absent.
    pub idle_policy: Option<IdlePolicy>,
    /// Where the app's output goes.
    pub logging: Option<Logging>,
    /// Handed to the app's run hook.
    pub run_hook_payload: Option<Sensitive>,
    /// Longest life in seconds, suspended time included.
    pub maximum_duration_in_seconds: Option<i32>,
    /// Makes repeats of this request one MicroVM.
    pub client_token: Option<String>,
}

/// When a MicroVM without traffic goes to sleep, and what then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct IdlePolicy {
    /// Whether traffic wakes it.
    pub auto_resume_enabled: bool,
    /// Seconds without traffic before it is suspended.
    pub max_idle_duration_seconds: i32,
    /// Seconds that it stays suspended before it is terminated.
    pub suspended_duration_seconds: i32,
}

/// Names one MicroVM: the whole request of Get, Suspend, Resume and Terminate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MicrovmRequest {
    /// The MicroVM's id.
    pub microvm_identifier: String,
}

/// Reads one MicroVM.
pub type GetMicrovmRequest = MicrovmRequest;
/// Puts one MicroVM to sleep.
pub type SuspendMicrovmRequest = MicrovmRequest;
/// Wakes one MicroVM.
pub type ResumeMicrovmRequest = MicrovmRequest;
/// Ends one MicroVM.
pub type TerminateMicrovmRequest = MicrovmRequest;

/// Reads the MicroVMs, a page at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListMicrovmsRequest {
    /// Most items on the page, 1 to 50.
    pub max_results: Option<i32>,
    /// Where the page begins; from an earlier page.
    pub next_token: Option<String>,
    /// Only MicroVMs of this image.
    pub image_identifier: Option<String>,
    /// Only MicroVMs of this image version.
    pub image_version: Option<String>,
}

/// One page of MicroVMs.
pub type ListMicrovmsResponse = Page<MicrovmItem>;

/// A MicroVM, as Run and Get answer it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Microvm {
    /// Connectors that let traffic out, defaults filled in.
    pub egress_network_connectors: Vec<String>,
    /// The host name, with a port where that is not 443, at which the app answers.
    pub endpoint: String,
    /// The role that the guest acts as.
    pub execution_role_arn: Option<String>,
    /// When it goes to sleep.
    pub idle_policy: Option<IdlePolicy>,
    /// Its image.
    pub image_arn: String,
    /// Its image version, as in `1.0`.
    pub image_version: String,
    /// Connectors that let traffic in, defaults filled in.
    pub ingress_network_connectors: Vec<String>,
    /// Longest life in seconds.
    pub maximum_duration_in_seconds: i32,
    /// Its id.
    pub microvm_id: String,
    /// When it was launched.
    pub started_at: EpochSeconds,
    /// Where it is in its life.
    pub state: MicrovmState,
    /// Why it is there, where there is something to say.
    pub state_reason: Option<String>,
    /// When it ended.
    pub terminated_at: Option<EpochSeconds>,
    /// Present on the wire though no model names it; always null so far.
    pub termination_reason_code: Option<String>,
}

/// The answer to Run.
pub type RunMicrovmResponse = Microvm;
/// The answer to Get.
pub type GetMicrovmResponse = Microvm;

/// A MicroVM in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MicrovmItem {
    /// Its image.
    pub image_arn: String,
    /// Its image version, as in `1.0`.
    pub image_version: String,
    /// Its id.
    pub microvm_id: String,
    /// When it was launched.
    pub started_at: EpochSeconds,
    /// Where it is in its life.
    pub state: MicrovmState,
}

/// Where a MicroVM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "AWS's own states")]
pub enum MicrovmState {
    Pending,
    Running,
    Suspending,
    Suspended,
    Terminating,
    Terminated,
}
