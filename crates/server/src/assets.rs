//! What the setup puts beside the binary: guest kernel, modules, agent, jail and the managed base image.

use std::path::{Path, PathBuf};

/// The folder of assets, complete.
#[derive(Debug, Clone)]
pub(crate) struct Assets {
    dir: PathBuf,
}

/// Why there are no assets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssetsError {
    /// No folder was found in any of the usual places.
    #[error(
        "no assets (guest kernel, agent, jail, base image) in {}: run `make build` in the project, \
         or name their folder with --assets-dir",
        list(.looked_in)
    )]
    Missing {
        /// Where they were looked for.
        looked_in: Vec<PathBuf>,
    },
    /// The folder lacks a part.
    #[error("{dir} has no `{part}`: run `make build` in the project to complete it")]
    Incomplete {
        /// The folder.
        dir: PathBuf,
        /// What is missing.
        part: &'static str,
    },
}

const PARTS: [&str; 5] = [
    "vmlinuz",
    "agent",
    "dormouse-jail",
    "modules/order",
    "base/debian-12.tar",
];

impl Assets {
    /// Uses `configured`, or finds the folder: beside the binary, then where packages install it.
    pub(crate) fn find(configured: Option<&Path>) -> Result<Self, AssetsError> {
        let looked_in = match configured {
            Some(dir) => vec![dir.to_owned()],
            None => usual_places(),
        };
        let Some(dir) = looked_in.iter().find(|dir| dir.is_dir()).cloned() else {
            return Err(AssetsError::Missing { looked_in });
        };
        match PARTS.into_iter().find(|part| !dir.join(part).exists()) {
            Some(part) => Err(AssetsError::Incomplete { dir, part }),
            None => Ok(Self { dir }),
        }
    }

    /// Guest kernel image.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Guest agent.
    pub(crate) fn agent(&self) -> PathBuf {
        self.dir.join("agent")
    }

    /// The program that builds jails.
    pub(crate) fn jail(&self) -> PathBuf {
        self.dir.join("dormouse-jail")
    }

    /// Guest kernel modules, and the order in which they load.
    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// Root file system of the managed base image.
    pub(crate) fn base_tar(&self) -> PathBuf {
        self.dir.join("base/debian-12.tar")
    }
}

fn usual_places() -> Vec<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("dormouse-assets")));
    beside
        .into_iter()
        .chain([PathBuf::from("/usr/lib/dormouse/assets")])
        .collect()
}

fn list(places: &[PathBuf]) -> String {
    let places: Vec<String> = places
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    places.join(" or ")
}
