//! The images that come with the platform: what guests boot. The root file system of an app comes from its
//! Dockerfile's FROM.

use super::builds::host_architecture;
use super::microvms::seconds;
use crate::app::App;
use dormouse_api::ApiError;
use dormouse_api::types::{
    CpuConfiguration, ListManagedMicrovmImageVersionsInput, ListManagedMicrovmImageVersionsOutput,
    ListManagedMicrovmImagesInput, ListManagedMicrovmImagesOutput, ManagedMicrovmImageSummary,
    ManagedMicrovmImageVersion, ManagedMicrovmImageVersionStatus, Page,
};
use dormouse_core::image::canonical_version;
use dormouse_core::{ImageArn, Timestamp};

/// A managed image.
#[derive(Debug)]
struct Managed {
    /// Its name, and others by which it is known.
    names: &'static [&'static str],
    /// Its versions, newest first.
    versions: &'static [ManagedVersion],
}

/// A version of a managed image.
#[derive(Debug)]
struct ManagedVersion {
    /// Its number: AWS shows `1` where versions of one's own images are `1.0`.
    number: &'static str,
    status: ManagedMicrovmImageVersionStatus,
    /// When it came to be: fixed, since it is part of the release.
    since: Timestamp,
}

/// All there are. The last name of the first one is AWS's own image, so that AWS code runs unchanged.
const MANAGED: &[Managed] = &[Managed {
    names: &["debian-12", "al2023-1"],
    versions: &[ManagedVersion {
        number: "1",
        status: ManagedMicrovmImageVersionStatus::Available,
        since: Timestamp(1_767_225_600_000),
    }],
}];

impl Managed {
    fn find(name: &str) -> Option<&'static Self> {
        MANAGED.iter().find(|image| image.names.contains(&name))
    }

    fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    fn times(&self) -> impl Iterator<Item = Timestamp> + Clone {
        self.versions.iter().map(|version| version.since)
    }
}

impl ManagedVersion {
    fn is_usable(&self) -> bool {
        match self.status {
            ManagedMicrovmImageVersionStatus::Available
            | ManagedMicrovmImageVersionStatus::Deprecated => true,
            ManagedMicrovmImageVersionStatus::Recalled => false,
        }
    }
}

/// The version of a managed image to build on, as in `1.0`: the one that is wanted, or the newest that is
/// available.
pub(super) fn version(arn: &str, wanted: Option<&str>) -> Result<String, ApiError> {
    let base = ImageArn::parse(arn).map_err(|_| ApiError::invalid_arn(arn))?;
    let image = Managed::find(&base.name).filter(|_| base.is_managed());
    let versions = image.map(|image| image.versions).unwrap_or_default();
    let chosen = match wanted {
        Some(wanted) => versions
            .iter()
            .filter(|version| version.is_usable())
            .find(|version| canonical_version(version.number) == canonical_version(wanted)),
        None => versions
            .iter()
            .find(|version| version.status == ManagedMicrovmImageVersionStatus::Available),
    };
    chosen
        .and_then(|version| canonical_version(version.number))
        .ok_or_else(|| ApiError::base_image_unknown(arn, wanted.unwrap_or("1.0")))
}

/// ListManagedMicrovmImages.
pub(super) fn list(
    app: &App,
    request: ListManagedMicrovmImagesInput,
) -> Result<ListManagedMicrovmImagesOutput, ApiError> {
    let (limit, token) = (request.max_results, request.next_token.as_deref());
    page(app, "managed images", MANAGED, limit, token, |image| {
        let times = image.times();
        ManagedMicrovmImageSummary {
            created_at: seconds(times.clone().min().unwrap_or(Timestamp(0))),
            image_arn: arn(app, image),
            updated_at: seconds(times.max().unwrap_or(Timestamp(0))),
        }
    })
}

/// ListManagedMicrovmImageVersions, newest first.
pub(super) fn list_versions(
    app: &App,
    request: ListManagedMicrovmImageVersionsInput,
) -> Result<ListManagedMicrovmImageVersionsOutput, ApiError> {
    let text = &request.image_identifier;
    let asked = ImageArn::parse(text).map_err(|_| ApiError::invalid_arn(text))?;
    let ours = asked.is_managed() && asked.region == app.config.region;
    let image = Managed::find(&asked.name).filter(|_| ours);
    let image = image.ok_or_else(|| ApiError::image_not_found(text))?;
    let list = format!("managed versions {text}");
    let (limit, token) = (request.max_results, request.next_token.as_deref());
    page(app, &list, image.versions, limit, token, |version| {
        ManagedMicrovmImageVersion {
            created_at: seconds(version.since),
            image_arn: text.clone(),
            image_version: version.number.to_owned(),
            status: Some(version.status),
            supported_cpu_configurations: Some(vec![CpuConfiguration {
                architecture: host_architecture(),
            }]),
            updated_at: seconds(version.since),
        }
    })
}

fn arn(app: &App, image: &Managed) -> String {
    let arn = ImageArn {
        region: app.config.region.clone(),
        account: ImageArn::MANAGED_ACCOUNT.to_owned(),
        name: image.name().to_owned(),
    };
    arn.to_string()
}

/// A page of a list that is part of the program; its token holds how many items came before.
fn page<S, T>(
    app: &App,
    list: &str,
    all: &[S],
    limit: Option<i32>,
    token: Option<&str>,
    show: impl Fn(&S) -> T,
) -> Result<Page<T>, ApiError> {
    let limit = limit.and_then(|n| usize::try_from(n).ok());
    let limit = limit.unwrap_or(dormouse_core::limits::PAGE_ITEMS_MAX as usize);
    let start = match token {
        Some(token) => {
            let cursor = app.pages.open(list, token)?;
            cursor.parse().map_err(|_| ApiError::unparseable())?
        }
        None => 0,
    };
    let rest = all.get(start..).unwrap_or_default();
    let end = start + limit;
    Ok(Page {
        items: rest.iter().take(limit).map(show).collect(),
        next_token: (end < all.len()).then(|| app.pages.seal(list, &end.to_string())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_has_its_versions_by_either_spelling() {
        let arn = |name: &str| format!("arn:aws:lambda:us-east-1:aws:microvm-image:{name}");
        for name in ["debian-12", "al2023-1"] {
            for wanted in [None, Some("1"), Some("1.0")] {
                assert_eq!(version(&arn(name), wanted).as_deref(), Ok("1.0"));
            }
        }
        let text = |arn: &str, wanted| version(arn, wanted).unwrap_err().to_string();
        let unknown = text(&arn("al2023-1"), Some("999"));
        assert!(unknown.ends_with(&format!(
            "No managed MicroVM Image with arn {} and version 999 is available",
            arn("al2023-1")
        )));
        assert!(text(&arn("al2022"), None).contains("No managed MicroVM Image"));
        let own = "arn:aws:lambda:us-east-1:000000000000:microvm-image:debian-12";
        assert!(text(own, None).contains("No managed MicroVM Image"));
        assert!(text("debian-12", None).contains("Invalid ARN format: debian-12"));
    }
}
