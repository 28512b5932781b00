//! How the agent says no.

use crate::archive::UnpackError;
use crate::copy::CopyError;
use crate::freezer::FreezeError;
use crate::isolation::IsolationError;
use crate::process::StartError;
use crate::tree_copy::TreeCopyError;
use crate::trees::TreeError;
use crate::trust::TrustError;
use bytes::Bytes;
use dormouse_core::guest::AgentError;
use http::StatusCode;
use std::error::Error;

/// An answer with a status of 400 or above.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn of(status: StatusCode, error: &dyn Error) -> Self {
        Self::new(status, causes(error))
    }

    /// The body: an [`AgentError`] as JSON.
    pub(crate) fn body(self) -> Bytes {
        let error = AgentError {
            message: self.message,
        };
        let json = serde_json::to_vec(&error).expect("an error has only a string");
        Bytes::from(json)
    }
}

/// An error and what caused it, in one line.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

impl From<StartError> for Refusal {
    fn from(error: StartError) -> Self {
        let status = match error {
            StartError::Host { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            StartError::NoCommand
            | StartError::Program(_)
            | StartError::Nul(_)
            | StartError::Exec { .. }
            | StartError::CwdNotAbsolute(_)
            | StartError::Cwd { .. }
            | StartError::Variable(_)
            | StartError::Account(_) => StatusCode::BAD_REQUEST,
        };
        Self::of(status, &error)
    }
}

impl From<CopyError> for Refusal {
    fn from(error: CopyError) -> Self {
        let status = match error {
            CopyError::Accounts(_) => StatusCode::INTERNAL_SERVER_ERROR,
            CopyError::Write { .. } if error.is_disk_full() => StatusCode::INSUFFICIENT_STORAGE,
            CopyError::Write { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            CopyError::DestNotAbsolute(_)
            | CopyError::Climbs(_)
            | CopyError::Unsupported(_)
            | CopyError::NotOneFile
            | CopyError::FolderInTheWay(_)
            | CopyError::Account(_)
            | CopyError::Archive(_) => StatusCode::BAD_REQUEST,
        };
        Self::of(status, &error)
    }
}

impl From<TrustError> for Refusal {
    fn from(error: TrustError) -> Self {
        Self::of(StatusCode::UNPROCESSABLE_ENTITY, &error)
    }
}

impl From<TreeError> for Refusal {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Copy(error) => error.into(),
            TreeError::Host { .. } => Self::of(StatusCode::INTERNAL_SERVER_ERROR, &error),
            TreeError::Name(_) | TreeError::Unknown(_) | TreeError::NotFound(_) => {
                Self::of(StatusCode::UNPROCESSABLE_ENTITY, &error)
            }
        }
    }
}

impl From<TreeCopyError> for Refusal {
    fn from(error: TreeCopyError) -> Self {
        match error {
            TreeCopyError::Tree(error) => error.into(),
            error if error.is_disk_full() => Self::of(StatusCode::INSUFFICIENT_STORAGE, &error),
            error => Self::of(StatusCode::UNPROCESSABLE_ENTITY, &error),
        }
    }
}

impl From<UnpackError> for Refusal {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Copy(error) => error.into(),
            UnpackError::NoArchive => Self::of(StatusCode::UNSUPPORTED_MEDIA_TYPE, &error),
        }
    }
}

impl From<IsolationError> for Refusal {
    fn from(error: IsolationError) -> Self {
        match error {
            IsolationError::Start(error) => error.into(),
            IsolationError::Host { .. } => Self::of(StatusCode::INTERNAL_SERVER_ERROR, &error),
            IsolationError::Tree { .. }
            | IsolationError::Target(_)
            | IsolationError::Content
            | IsolationError::Mount { .. } => Self::of(StatusCode::UNPROCESSABLE_ENTITY, &error),
        }
    }
}

impl From<FreezeError> for Refusal {
    fn from(error: FreezeError) -> Self {
        let status = match error {
            FreezeError::Seed | FreezeError::Hostname(_) => StatusCode::BAD_REQUEST,
            FreezeError::DiskFrozen | FreezeError::Thawed => StatusCode::CONFLICT,
            FreezeError::Step { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::of(status, &error)
    }
}
