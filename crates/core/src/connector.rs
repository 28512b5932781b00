//! Network connectors of an account, as stored: a name, and versions of what it connects to.
//!
//! ```text
//! create ─▶ Pending ─▶ Active ──▶ Deleting ─▶ gone
//!              └─────▶ Failed ───────┘
//! ```
//! An update makes a new version, which is pending, then active or failed, while the connector stays as it
//! was; only an active version is the connector's own.

use crate::{AccountId, ConnectorArn, ConnectorId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connector {
    /// The last part of its ARN.
    pub id: ConnectorId,
    /// The account that it belongs to.
    pub account: AccountId,
    /// The region in its ARN.
    pub region: String,
    /// Its name, unique in the account.
    pub name: String,
    /// Where it is in its life.
    pub state: ConnectorState,
    /// Why it is there.
    pub state_reason: Option<String>,
    /// The same as a code, after a failure.
    pub failure: Option<Failure>,
    /// The version that holds.
    pub current_version: u32,
    /// The newest version, whatever became of it: numbers are never given twice.
    pub last_version: u32,
    /// How the last update went; none before the first.
    pub last_update: Option<Update>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Tags, as given.
    pub tags: BTreeMap<String, String>,
}

/// One version of a connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorVersion {
    /// Its connector.
    pub connector: ConnectorId,
    /// The account that it belongs to.
    pub account: AccountId,
    /// Its number, from 1.
    pub number: u32,
    /// Where it is in its life.
    pub state: ConnectorState,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// What it connects to.
    pub spec: ConnectorSpec,
}

/// What a connector connects to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorSpec {
    /// Names of subnets; what they are is the host's configuration.
    pub subnets: Vec<String>,
    /// Names of security groups.
    pub security_groups: Vec<String>,
    /// Whether MicroVMs may use it, or something else that Dormouse does not run.
    pub for_microvms: bool,
    /// Role ARN, as echoed.
    pub operator_role: Option<String>,
    /// The configuration as the API shows it; the domain does not look inside.
    pub configuration: serde_json::Value,
}

/// Where a connector or a version of one is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConnectorState {
    /// Being made.
    Pending,
    /// Ready for use.
    Active,
    /// Not made.
    Failed,
    /// Being deleted; its name is still taken.
    Deleting,
}

/// Why a connector could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The host has no subnet of this name.
    InvalidSubnet(String),
    /// The host has no security group of this name.
    InvalidSecurityGroup(String),
}

impl Failure {
    /// What it is, for people.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::InvalidSubnet(name) => format!(
                "The subnet '{name}' is not one of this host's: its configuration names them under \
                 [network.subnets]"
            ),
            Self::InvalidSecurityGroup(name) => format!(
                "The security group '{name}' is not one of this host's, which has none: leave \
                 SecurityGroupIds out"
            ),
        }
    }
}

/// How an update went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Update {
    /// Its version is being made.
    InProgress,
    /// Its version holds.
    Successful,
    /// It asked for what there was already.
    Unchanged,
    /// Its version could not be made, and the one before still holds.
    Failed(Failure),
}

/// Why a connector may not be updated or deleted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// Only an active connector takes an update.
    #[error("the connector is not active")]
    NotActive,
    /// The update before is still under way.
    #[error("an update is under way")]
    Updating,
}

impl Connector {
    /// A new connector and its first version, both pending.
    #[must_use]
    pub fn create(
        arn: ConnectorArn,
        account: AccountId,
        name: String,
        tags: BTreeMap<String, String>,
        spec: ConnectorSpec,
        now: Timestamp,
    ) -> (Self, ConnectorVersion) {
        let connector = Self {
            id: arn.id,
            account,
            region: arn.region,
            name,
            state: ConnectorState::Pending,
            state_reason: Some("Initial creation".to_owned()),
            failure: None,
            current_version: 1,
            last_version: 1,
            last_update: None,
            created_at: now,
            updated_at: now,
            tags,
        };
        let version = connector.version(1, spec, now);
        (connector, version)
    }

    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> ConnectorArn {
        ConnectorArn {
            region: self.region.clone(),
            account: self.account.clone(),
            id: self.id.clone(),
            version: None,
        }
    }

    /// Whether something is still to be done about it: its first version, an update, its deletion.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        matches!(
            self.state,
            ConnectorState::Pending | ConnectorState::Deleting
        ) || self.last_update == Some(Update::InProgress)
    }

    /// Begins an update to `spec`: the connector and its next version.
    ///
    /// # Errors
    /// [`Busy`] unless the connector is active and no other update is under way.
    pub fn update(
        &self,
        spec: ConnectorSpec,
        now: Timestamp,
    ) -> Result<(Self, ConnectorVersion), Busy> {
        self.may_update()?;
        let number = self.last_version + 1;
        let updated = Self {
            last_version: number,
            last_update: Some(Update::InProgress),
            updated_at: now,
            ..self.clone()
        };
        Ok((updated, self.version(number, spec, now)))
    }

    /// Notes an update that asks for what holds already.
    ///
    /// # Errors
    /// As of [`Connector::update`].
    pub fn update_unchanged(&self, now: Timestamp) -> Result<Self, Busy> {
        self.may_update()?;
        Ok(Self {
            last_update: Some(Update::Unchanged),
            updated_at: now,
            ..self.clone()
        })
    }

    fn may_update(&self) -> Result<(), Busy> {
        if self.state != ConnectorState::Active {
            return Err(Busy::NotActive);
        }
        match self.last_update {
            Some(Update::InProgress) => Err(Busy::Updating),
            _ => Ok(()),
        }
    }

    /// What making `version`, the newest, came to.
    #[must_use]
    pub fn made(
        &self,
        version: &ConnectorVersion,
        outcome: Result<(), Failure>,
        now: Timestamp,
    ) -> (Self, ConnectorVersion) {
        let mut connector = self.clone();
        let mut version = version.clone();
        let first = self.state == ConnectorState::Pending;
        connector.updated_at = now;
        version.updated_at = now;
        match outcome {
            Ok(()) => {
                version.state = ConnectorState::Active;
                connector.current_version = version.number;
                connector.state = ConnectorState::Active;
                connector.last_update = (!first).then_some(Update::Successful);
            }
            Err(failure) => {
                version.state = ConnectorState::Failed;
                version.failure = Some(failure.clone());
                if first {
                    connector.state = ConnectorState::Failed;
                    connector.state_reason = Some(failure.reason());
                    connector.failure = Some(failure);
                } else {
                    connector.last_update = Some(Update::Failed(failure));
                }
            }
        }
        (connector, version)
    }

    /// Begins its deletion; asking again changes nothing.
    #[must_use]
    pub fn delete(&self, now: Timestamp) -> Self {
        Self {
            state: ConnectorState::Deleting,
            last_update: None,
            updated_at: now,
            ..self.clone()
        }
    }

    fn version(&self, number: u32, spec: ConnectorSpec, now: Timestamp) -> ConnectorVersion {
        ConnectorVersion {
            connector: self.id.clone(),
            account: self.account.clone(),
            number,
            state: ConnectorState::Pending,
            failure: None,
            updated_at: now,
            spec,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp(5);

    fn spec(subnet: &str) -> ConnectorSpec {
        ConnectorSpec {
            subnets: vec![subnet.to_owned()],
            security_groups: Vec::new(),
            for_microvms: true,
            operator_role: None,
            configuration: json!({}),
        }
    }

    fn created() -> (Connector, ConnectorVersion) {
        let text = "arn:aws:lambda:us-east-1:000000000000:network-connector:\
                    nc-a991cd0b-3321-3e2c-a982-d5c4db52b17a";
        let arn = ConnectorArn::parse(text).expect("arn");
        let account = arn.account.clone();
        let (connector, version) = Connector::create(
            arn,
            account,
            "c".to_owned(),
            BTreeMap::new(),
            spec("subnet-a"),
            Timestamp(1),
        );
        assert_eq!(connector.arn().to_string(), text);
        (connector, version)
    }

    fn active() -> Connector {
        let (connector, version) = created();
        connector.made(&version, Ok(()), Timestamp(2)).0
    }

    fn no_subnet() -> Failure {
        Failure::InvalidSubnet("subnet-b".to_owned())
    }

    #[test]
    fn a_connector_is_made_with_its_first_version_or_fails_with_it() {
        let (connector, version) = created();
        assert!(connector.is_under_way());
        assert_eq!(version.state, ConnectorState::Pending);

        let (made, version_made) = connector.made(&version, Ok(()), NOW);
        assert_eq!(made.state, ConnectorState::Active);
        assert_eq!(made.state_reason.as_deref(), Some("Initial creation"));
        assert_eq!(made.last_update, None);
        assert_eq!(version_made.state, ConnectorState::Active);
        assert!(!made.is_under_way());

        let (failed, version_failed) = connector.made(&version, Err(no_subnet()), NOW);
        assert_eq!(failed.state, ConnectorState::Failed);
        assert_eq!(failed.failure, Some(no_subnet()));
        assert_eq!(version_failed.state, ConnectorState::Failed);
        assert_eq!(failed.update(spec("subnet-c"), NOW), Err(Busy::NotActive));
    }

    #[test]
    fn an_update_holds_only_once_it_is_made() {
        let (updating, second) = active().update(spec("subnet-b"), NOW).expect("allowed");
        assert_eq!(second.number, 2);
        assert_eq!(updating.state, ConnectorState::Active);
        assert_eq!(updating.current_version, 1);
        assert!(updating.is_under_way());
        assert_eq!(updating.update(spec("subnet-c"), NOW), Err(Busy::Updating));

        let (made, _) = updating.made(&second, Ok(()), NOW);
        assert_eq!(made.current_version, 2);
        assert_eq!(made.last_update, Some(Update::Successful));

        let (failed, second) = updating.made(&second, Err(no_subnet()), NOW);
        assert_eq!(failed.state, ConnectorState::Active);
        assert_eq!(failed.current_version, 1);
        assert_eq!(failed.last_update, Some(Update::Failed(no_subnet())));
        assert_eq!(second.state, ConnectorState::Failed);
        // Its number is used up.
        let (_, third) = failed.update(spec("subnet-c"), NOW).expect("allowed");
        assert_eq!(third.number, 3);
    }

    #[test]
    fn an_update_that_changes_nothing_says_so_and_makes_no_version() {
        let same = active().update_unchanged(NOW).expect("allowed");
        assert_eq!(same.last_update, Some(Update::Unchanged));
        assert_eq!(same.last_version, 1);
        assert!(!same.is_under_way());
    }

    #[test]
    fn a_deletion_is_under_way_until_the_connector_is_gone() {
        let deleting = active().delete(NOW);
        assert_eq!(deleting.state, ConnectorState::Deleting);
        assert!(deleting.is_under_way());
        assert_eq!(deleting.update(spec("subnet-c"), NOW), Err(Busy::NotActive));
    }
}
