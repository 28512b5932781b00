//! What network connectors let a MicroVM do: which requests come in, and where its own connections go.
//! Settled at launch, from the ARNs that the caller or the image names.

use super::connectors;
use crate::app::App;
use dormouse_api::{ApiError, ErrorCode};
use dormouse_core::connector::ConnectorState;
use dormouse_core::egress::Egress;
use dormouse_core::{AccountId, ConnectorArn};

const HTTP_INGRESS: &str = "HTTP_INGRESS";
const SHELL_INGRESS: &str = "SHELL_INGRESS";
const ALL_INGRESS: &str = "ALL_INGRESS";
const NO_INGRESS: &str = "NO_INGRESS";
const INTERNET_EGRESS: &str = "INTERNET_EGRESS";
/// Ours: AWS has no such connector.
const NO_EGRESS: &str = "NO_EGRESS";
const INGRESS: [&str; 4] = [HTTP_INGRESS, SHELL_INGRESS, ALL_INGRESS, NO_INGRESS];
const EGRESS: [&str; 2] = [INTERNET_EGRESS, NO_EGRESS];

/// What a MicroVM has whose caller names no ingress.
pub(super) fn default_ingress(app: &App) -> Vec<String> {
    vec![app.connector_arn(HTTP_INGRESS)]
}

/// What an image has whose caller names no egress.
pub(super) fn default_egress(app: &App) -> Vec<String> {
    vec![app.connector_arn(INTERNET_EGRESS)]
}

/// Refuses what is no ingress. ALL_INGRESS beside another passes, as on AWS, where only a shell token is
/// refused then.
pub(super) fn check_ingress(app: &App, arns: &[String]) -> Result<(), ApiError> {
    for arn in arns {
        match managed_name(app, arn)? {
            Some(NO_INGRESS) if arns.iter().any(|other| other != arn) => {
                return Err(ApiError::connector_not_alone(arn));
            }
            Some(name) if INGRESS.contains(&name) => {}
            Some(_) => return Err(ApiError::connector_unsuitable(arn, "ingress")),
            None => {
                own_arn(app, arn)?;
                return Err(ApiError::connector_unsuitable(arn, "ingress"));
            }
        }
    }
    Ok(())
}

/// Where a MicroVM with these connectors may open connections to: all that any of them lets through.
pub(super) async fn egress(
    app: &App,
    account: &AccountId,
    arns: &[String],
) -> Result<Egress, ApiError> {
    let mut egress = Egress::NONE;
    for arn in arns {
        match managed_name(app, arn)? {
            Some(INTERNET_EGRESS) => egress.internet = true,
            Some(NO_EGRESS) if arns.iter().any(|other| other != arn) => {
                return Err(ApiError::connector_not_alone(arn));
            }
            Some(NO_EGRESS) => {}
            Some(_) => return Err(ApiError::connector_unsuitable(arn, "egress")),
            None => own_egress(app, account, arn, &mut egress).await?,
        }
    }
    egress.ranges.sort_unstable();
    egress.ranges.dedup();
    Ok(egress)
}

/// Opens the ranges of a customer's connector.
async fn own_egress(
    app: &App,
    account: &AccountId,
    arn: &str,
    egress: &mut Egress,
) -> Result<(), ApiError> {
    let parsed = own_arn(app, arn)?;
    if parsed.account != *account {
        let text = format!("Access to {arn} is denied");
        return Err(ApiError::access_denied(Some(text)));
    }
    let missing = |error: ApiError| match error.code() {
        ErrorCode::NetworkConnectorNotFound => ApiError::connector_missing(arn),
        _ => error,
    };
    let (connector, wanted) = connectors::find(app, account, arn).await.map_err(missing)?;
    let connector = connector.value;
    if connector.state != ConnectorState::Active {
        return Err(ApiError::connector_not_active(arn));
    }
    let number = wanted.unwrap_or(connector.current_version);
    let version = connectors::version_of(app, &connector, number).await;
    let version = version.map_err(missing)?.value;
    if version.state != ConnectorState::Active {
        return Err(ApiError::connector_not_active(arn));
    }
    if !version.spec.for_microvms {
        return Err(ApiError::connector_unsuitable(arn, "MicroVMs"));
    }
    for name in &version.spec.subnets {
        // The configuration may have lost it since.
        let ranges = app.config.network.subnets.get(name);
        let ranges = ranges.ok_or_else(|| ApiError::connector_not_active(arn))?;
        egress.ranges.extend(ranges);
    }
    Ok(())
}

/// Whether requests may come to the app of a MicroVM with these ingress connectors.
pub(super) fn lets_requests_in(app: &App, ingress: &[String]) -> bool {
    has(app, ingress, HTTP_INGRESS) || has(app, ingress, ALL_INGRESS)
}

/// Refuses a shell to a MicroVM that was launched without it.
pub(super) fn check_shell(app: &App, ingress: &[String]) -> Result<(), ApiError> {
    if has(app, ingress, ALL_INGRESS) && ingress.len() > 1 {
        return Err(ApiError::shell_with_all_ingress());
    }
    if !has(app, ingress, SHELL_INGRESS) {
        return Err(ApiError::shell_not_connected());
    }
    Ok(())
}

fn has(app: &App, arns: &[String], name: &str) -> bool {
    let wanted = app.connector_arn(name);
    arns.contains(&wanted)
}

/// The name of a managed connector, one that there is; none for an ARN of another form.
fn managed_name<'a>(app: &App, arn: &'a str) -> Result<Option<&'a str>, ApiError> {
    let Some(name) = arn.strip_prefix(&app.connector_arn("")) else {
        return Ok(None);
    };
    if INGRESS.contains(&name) || EGRESS.contains(&name) {
        return Ok(Some(name));
    }
    Err(ApiError::connector_unrecognized(arn))
}

/// An ARN with the form of a customer's connector, of this region.
fn own_arn(app: &App, arn: &str) -> Result<ConnectorArn, ApiError> {
    let parsed = ConnectorArn::parse(arn).ok_or_else(ApiError::connector_malformed)?;
    if parsed.region != app.config.region {
        return Err(ApiError::connector_missing(arn));
    }
    Ok(parsed)
}
