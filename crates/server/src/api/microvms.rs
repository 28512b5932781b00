//! MicroVMs: run, read, suspend, resume, terminate.

use super::idempotency::{self, Once};
use super::listing::{self, Wanted};
use super::{builds, contended, images, internal, network, store_failed, versions, written_again};
use crate::admission::OverQuota;
use crate::app::App;
use crate::headroom::Shortage;
use dormouse_api::types::{
    Empty, EpochSeconds, IdlePolicy, ListMicrovmsRequest, ListMicrovmsResponse, Microvm,
    MicrovmItem, MicrovmRequest, MicrovmState, RunMicrovmRequest,
};
use dormouse_api::{ApiError, checks};
use dormouse_core::hook::{Hook, RunHookPayload};
use dormouse_core::image::{Version, VersionState, canonical_version, life};
use dormouse_core::microvm::{self, Denied, Event, Record, State};
use dormouse_core::{
    AccountId, BuildId, EndpointId, ImageArn, MicrovmId, Timestamp, chain, limits,
};
use dormouse_node::clock;
use dormouse_node::driver::CommandError;
use dormouse_store::{Batch, Versioned};
use uuid::Uuid;

/// RunMicrovm: answers PENDING as soon as the record is stored.
pub(super) async fn run(
    app: &App,
    account: &AccountId,
    request: RunMicrovmRequest,
) -> Result<Microvm, ApiError> {
    checks::run_image_identifier(&request.image_identifier)?;
    let image = images::own_arn(app, account, &request.image_identifier)?;
    let id = MicrovmId::new(Uuid::new_v4());
    let token = request.client_token.as_deref();
    for _ in 0..limits::WRITE_ATTEMPTS {
        let operation = "RunMicrovm";
        let once = idempotency::look_up(app, account, operation, token, &request, id.to_string());
        let once = once.await?;
        if let Some(earlier) = once.made {
            return find(app, account, &earlier).await.map(|vm| show(app, vm));
        }
        let wanted = request.image_version.as_deref();
        let entry = app.admission.enter(&id, account, &image);
        let deleted = || ApiError::no_active_version(&request.image_identifier, wanted);
        let entry = entry.ok_or_else(deleted)?;
        let version = active_version(app, &image, wanted).await?;
        if request.run_hook_payload.is_some() && version.spec.hooks.call(Hook::Run).is_none() {
            return Err(ApiError::run_hook_disabled());
        }
        let record = new_record(app, account, &request, id.clone(), &version).await?;
        app.headroom.check().await.map_err(no_room)?;
        let (memory_mib, most) = (version.spec.memory_mib, app.config.quotas.memory_mib);
        let claimed = entry.claim(memory_mib.into(), most);
        claimed.map_err(|OverQuota| ApiError::memory_quota())?;
        if let Some(row) = store(app, &once, record).await? {
            let vm = show(app, row.value.clone());
            app.node.take(row);
            entry.launched();
            return Ok(vm);
        }
    }
    Err(contended())
}

/// The caller learns that there is no room now; why is the operator's business.
fn no_room(shortage: Shortage) -> ApiError {
    tracing::warn!(
        reason = chain(&shortage),
        "launch refused for lack of room on the host"
    );
    ApiError::insufficient_capacity()
}

async fn new_record(
    app: &App,
    account: &AccountId,
    request: &RunMicrovmRequest,
    id: MicrovmId,
    version: &Version,
) -> Result<Record, ApiError> {
    let default_ingress = network::default_ingress(app);
    let ingress = chosen(&request.ingress_network_connectors, &default_ingress);
    let egress = chosen(
        &request.egress_network_connectors,
        &version.spec.egress_connectors,
    );
    network::check_ingress(app, &ingress)?;
    let opened = network::egress(app, account, &egress).await?;
    let max_duration = request
        .maximum_duration_in_seconds
        .and_then(|s| u64::try_from(s).ok());
    Ok(Record {
        id,
        account: account.clone(),
        endpoint: EndpointId::new(Uuid::new_v4()),
        image: version.image.clone(),
        image_version: version.version.clone(),
        build: build_of(app, version).await?,
        memory_mib: version.spec.memory_mib,
        state: State::Pending,
        state_reason: None,
        started_at: clock::now(),
        suspended_at: None,
        terminated_at: None,
        max_duration_s: max_duration.unwrap_or(limits::LIFETIME_MAX_S),
        idle_policy: request.idle_policy.map(to_domain),
        ingress_connectors: ingress,
        egress_connectors: egress,
        egress: opened,
        execution_role: request.execution_role_arn.clone(),
        hooks: version.spec.hooks,
        run_hook_payload: request
            .run_hook_payload
            .as_ref()
            .map(|payload| RunHookPayload::new(payload.expose().to_owned())),
    })
}

/// Stores a new MicroVM and its client token; none when the same request came twice at the same moment and
/// the other one was faster.
async fn store(
    app: &App,
    once: &Once,
    record: Record,
) -> Result<Option<Versioned<Record>>, ApiError> {
    let mut batch = Batch::default().insert(&record).map_err(store_failed)?;
    if let Some(expired) = &once.expired {
        batch = batch.delete(expired);
    }
    if let Some(token) = &once.fresh {
        batch = batch.insert(token).map_err(store_failed)?;
    }
    let Some(written) = written_again(app.store.apply(batch).await)? else {
        return Ok(None);
    };
    let first = written.first().copied().ok_or_else(ApiError::internal)?;
    Ok(Some(Versioned::at(first, record)))
}

/// GetMicrovm.
pub(super) async fn get(
    app: &App,
    account: &AccountId,
    request: MicrovmRequest,
) -> Result<Microvm, ApiError> {
    find(app, account, &request.microvm_identifier)
        .await
        .map(|vm| show(app, vm))
}

/// ListMicrovms: ended ones included, newest first.
pub(super) async fn list(
    app: &App,
    account: &AccountId,
    request: ListMicrovmsRequest,
) -> Result<ListMicrovmsResponse, ApiError> {
    let image = match &request.image_identifier {
        Some(text) => Some(images::own_arn(app, account, text)?.to_string()),
        None => None,
    };
    let version = request
        .image_version
        .as_deref()
        .map(|text| canonical_version(text).unwrap_or_else(|| text.to_owned()));
    let wanted = Wanted {
        list: format!(
            "microvms {} {}",
            image.as_deref().unwrap_or("*"),
            version.as_deref().unwrap_or("*")
        ),
        account,
        parent: image,
        max_results: request.max_results,
        next_token: request.next_token.as_deref(),
    };
    let keep = |vm: &Record| {
        version
            .as_ref()
            .is_none_or(|version| *version == vm.image_version)
    };
    listing::page(app, wanted, keep, |vm: Record| MicrovmItem {
        image_arn: vm.image.to_string(),
        image_version: vm.image_version,
        microvm_id: vm.id.to_string(),
        started_at: seconds(vm.started_at),
        state: wire_state(vm.state),
    })
    .await
}

/// SuspendMicrovm.
pub(super) async fn suspend(
    app: &App,
    account: &AccountId,
    request: MicrovmRequest,
) -> Result<Empty, ApiError> {
    command(app, account, &request, Event::SuspendRequested).await
}

/// ResumeMicrovm.
pub(super) async fn resume(
    app: &App,
    account: &AccountId,
    request: MicrovmRequest,
) -> Result<Empty, ApiError> {
    command(app, account, &request, Event::ResumeRequested).await
}

/// TerminateMicrovm.
pub(super) async fn terminate(
    app: &App,
    account: &AccountId,
    request: MicrovmRequest,
) -> Result<Empty, ApiError> {
    command(app, account, &request, Event::TerminateRequested).await
}

async fn command(
    app: &App,
    account: &AccountId,
    request: &MicrovmRequest,
    event: Event,
) -> Result<Empty, ApiError> {
    let id = &request.microvm_identifier;
    let vm = find(app, account, id).await?;
    match app.node.command(&vm.id, event).await {
        Ok(()) => Ok(Empty {}),
        Err(CommandError::Denied(Denied::Terminated)) => Err(ApiError::microvm_terminated(id)),
        Err(CommandError::Denied(Denied::Busy | Denied::NoAutoResume)) => {
            let now = find(app, account, id).await?;
            Err(ApiError::microvm_busy(id, now.state.wire_name()))
        }
        Err(error) => Err(internal("microvm was not changed", &error)),
    }
}

/// The account's MicroVM of this name; another account's does not exist for it.
pub(super) async fn find(app: &App, account: &AccountId, id: &str) -> Result<Record, ApiError> {
    let not_found = || ApiError::microvm_not_found(id);
    let id = MicrovmId::parse(id).ok_or_else(not_found)?;
    let row = app
        .store
        .get_owned::<Record>(account, id.as_str())
        .await
        .map_err(store_failed)?;
    row.map(|row| row.value).ok_or_else(not_found)
}

/// The version to launch: the one that is named, or the newest that is active.
async fn active_version(
    app: &App,
    image: &ImageArn,
    wanted: Option<&str>,
) -> Result<Version, ApiError> {
    let arn = image.to_string();
    let none = || ApiError::no_active_version(&arn, wanted);
    let found = images::find(app, image).await?.ok_or_else(none)?.value;
    let newest = found.latest_active_version.as_deref();
    let name = wanted.or(newest).ok_or_else(none)?;
    let version = versions::find(app, image, name).await?;
    let version = version.map(|row| row.value);
    version
        .filter(|version| life::is_launchable(&found, version))
        .ok_or_else(none)
}

async fn build_of(app: &App, version: &Version) -> Result<BuildId, ApiError> {
    let builds = builds::of_version(app, version).await?;
    let done = builds
        .into_iter()
        .find(|build| build.state == VersionState::Successful);
    done.map(|build| build.id).ok_or_else(|| {
        ApiError::no_active_version(&version.image.to_string(), Some(&version.version))
    })
}

/// What was asked for; none and an empty list both mean the default.
fn chosen(asked: &Option<Vec<String>>, default: &[String]) -> Vec<String> {
    match asked {
        Some(connectors) if !connectors.is_empty() => connectors.clone(),
        _ => default.to_vec(),
    }
}

fn to_domain(policy: IdlePolicy) -> microvm::IdlePolicy {
    let seconds = |value: i32| u64::try_from(value).unwrap_or(0);
    microvm::IdlePolicy {
        max_idle_s: seconds(policy.max_idle_duration_seconds),
        suspended_s: seconds(policy.suspended_duration_seconds),
        auto_resume: policy.auto_resume_enabled,
    }
}

fn show(app: &App, vm: Record) -> Microvm {
    let number = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
    Microvm {
        endpoint: app.endpoint(&vm.endpoint),
        egress_network_connectors: vm.egress_connectors,
        execution_role_arn: vm.execution_role,
        idle_policy: vm.idle_policy.map(|policy| IdlePolicy {
            auto_resume_enabled: policy.auto_resume,
            max_idle_duration_seconds: number(policy.max_idle_s),
            suspended_duration_seconds: number(policy.suspended_s),
        }),
        image_arn: vm.image.to_string(),
        image_version: vm.image_version,
        ingress_network_connectors: vm.ingress_connectors,
        maximum_duration_in_seconds: number(vm.max_duration_s),
        microvm_id: vm.id.to_string(),
        started_at: seconds(vm.started_at),
        state: wire_state(vm.state),
        state_reason: vm.state_reason,
        terminated_at: vm.terminated_at.map(seconds),
        termination_reason_code: None,
    }
}

pub(super) fn seconds(time: Timestamp) -> EpochSeconds {
    EpochSeconds(time.epoch_seconds())
}

/// AWS has no name for resuming and reports SUSPENDED until it is over.
fn wire_state(state: State) -> MicrovmState {
    match state {
        State::Pending => MicrovmState::Pending,
        State::Running => MicrovmState::Running,
        State::Suspending => MicrovmState::Suspending,
        State::Suspended | State::Resuming => MicrovmState::Suspended,
        State::Terminating => MicrovmState::Terminating,
        State::Terminated => MicrovmState::Terminated,
    }
}
