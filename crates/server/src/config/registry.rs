//! `[registry]`: how base images are pulled, and what stands in for them.

use super::ConfigError;
use dormouse_core::limits;
use dormouse_image::oci::{Credentials, ImageRef, Mirror, RegistryConfig, is_registry_host};
use dormouse_image::{Aliases, BaseImages, LocalImages, oci};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a Dockerfile's FROM calls the managed base image.
pub(crate) const MANAGED_BASE: &str = "localhost/debian:12";
/// What AWS's own Dockerfiles begin from.
const AWS_BASE: &str = "public.ecr.aws/lambda/microvms:al2023-minimal";

/// How base images are pulled, and what stands in for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct BaseImageConfig {
    /// The way to registries.
    pub(crate) registry: RegistryConfig,
    /// Images that stand in for others.
    pub(crate) aliases: Aliases,
}

impl BaseImageConfig {
    /// With the registry of this image among the hosts that may be private: whoever asks for it on the command line
    /// may reach whatever the host can.
    pub(crate) fn asked_for(mut self, reference: &str) -> Self {
        let host = ImageRef::parse(reference).map(|reference| reference.host().to_owned());
        self.registry.private.extend(host);
        self
    }

    /// Images of `store`, and those that registries have.
    pub(crate) fn images(&self, store: LocalImages) -> BaseImages {
        let disk_bytes = limits::disk_bytes(limits::MEMORY_DEFAULT_MIB);
        let registry = oci::Registry::new(self.registry.clone());
        BaseImages::new(store, registry, self.aliases.clone(), disk_bytes)
    }
}

/// The table as written. A key that is none of these is the host name of a registry.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawRegistry {
    mirrors: BTreeMap<String, Vec<String>>,
    plain_http: Vec<String>,
    private: Vec<String>,
    docker_config: Option<PathBuf>,
    aliases: BTreeMap<String, String>,
    fallbacks: BTreeMap<String, String>,
    #[serde(flatten)]
    hosts: BTreeMap<String, RawHost>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    username: String,
    password_file: PathBuf,
}

/// Checks the table. `extra_ca_file` is that of builds.
pub(super) fn registry(
    raw: RawRegistry,
    extra_ca_file: Option<&Path>,
) -> Result<BaseImageConfig, ConfigError> {
    let plain_http: BTreeSet<String> = raw.plain_http.into_iter().collect();
    let mut private: BTreeSet<String> = raw.private.into_iter().collect();
    for host in plain_http
        .iter()
        .chain(&private)
        .chain(raw.mirrors.keys())
        .chain(raw.hosts.keys())
    {
        if !is_registry_host(host) {
            return Err(ConfigError::Value {
                key: "registry",
                problem: format!("{host:?} is neither a key nor the host name of a registry"),
                remedy: "write host names as images have them, as in \"docker.io\" or \"registry.example.com:5000\"",
            });
        }
    }
    let mut mirrors = BTreeMap::new();
    for (host, addresses) in raw.mirrors {
        let checked: Result<Vec<_>, _> = addresses
            .iter()
            .map(|text| mirror(text, &plain_http))
            .collect();
        mirrors.insert(host, checked?);
    }
    let credentials = raw.hosts.into_iter().map(|(host, raw)| {
        let RawHost {
            username,
            password_file,
        } = raw;
        (
            host,
            Credentials {
                username,
                password_file,
            },
        )
    });
    let mut fallbacks = raw.fallbacks;
    fallbacks
        .entry(AWS_BASE.to_owned())
        .or_insert_with(|| MANAGED_BASE.to_owned());
    let stand_ins = raw.aliases.values().chain(fallbacks.values());
    let stand_ins = stand_ins.filter_map(|text| ImageRef::parse(text).ok());
    let stand_ins = stand_ins.filter(|reference| !reference.is_of_this_host());
    private.extend(stand_ins.map(|reference| reference.host().to_owned()));
    Ok(BaseImageConfig {
        registry: RegistryConfig {
            mirrors,
            plain_http,
            private,
            credentials: credentials.collect(),
            docker_config: raw.docker_config,
            extra_ca_file: extra_ca_file.map(Path::to_owned),
        },
        aliases: Aliases {
            always: references("registry.aliases", raw.aliases)?,
            fallbacks: references("registry.fallbacks", fallbacks)?,
        },
    })
}

fn mirror(text: &str, plain_http: &BTreeSet<String>) -> Result<Mirror, ConfigError> {
    let mirror = text.parse::<Mirror>().map_err(|error| ConfigError::Value {
        key: "registry.mirrors",
        problem: format!("{text:?} is not a mirror: {error}"),
        remedy: "write its address, as in \"https://mirror.example.com\"",
    })?;
    if mirror.is_forbidden_plain(plain_http) {
        return Err(ConfigError::Value {
            key: "registry.mirrors",
            problem: format!("{text:?} would be spoken to over plain HTTP"),
            remedy: "use https, or list its host in registry.plain_http",
        });
    }
    Ok(mirror)
}

fn references(
    key: &'static str,
    raw: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let canonical = |text: &str| {
        ImageRef::parse(text).map_err(|error| ConfigError::Value {
            key,
            problem: error.to_string(),
            remedy: "write image references on both sides, as in \"debian:12\" = \"localhost/debian:12\"",
        })
    };
    raw.into_iter()
        .map(|(from, to)| {
            canonical(&to)?;
            Ok((canonical(&from)?.to_string(), to))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BaseImageConfig, String> {
        let raw: RawRegistry = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        registry(raw, None).map_err(|error| error.to_string())
    }

    #[test]
    fn registries_are_configured_by_their_host_names() {
        let found = parse(
            r#"
            plain_http = ["registry.lan:5000"]
            private = ["10.0.0.7:5000"]
            mirrors = { "docker.io" = ["http://127.0.0.1:5000", "http://registry.lan:5000/hub"] }
            aliases = { "debian:12" = "localhost/debian:12", "debian:13" = "10.0.0.8:5000/debian:13" }
            ["ghcr.io"]
            username = "me"
            password_file = "/etc/dormouse/ghcr"
            "#,
        )
        .unwrap();
        assert_eq!(found.registry.mirrors["docker.io"].len(), 2);
        let private: Vec<_> = found.registry.private.iter().collect();
        assert_eq!(private, ["10.0.0.7:5000", "10.0.0.8:5000"]);
        assert_eq!(found.registry.credentials["ghcr.io"].username, "me");
        assert_eq!(
            found.aliases.always["docker.io/library/debian:12"],
            MANAGED_BASE
        );
        // AWS's own base is there without being asked for, and can be set to another.
        assert_eq!(found.aliases.fallbacks[AWS_BASE], MANAGED_BASE);
        let other = parse(&format!(
            "fallbacks = {{ {AWS_BASE:?} = \"localhost/al:2023\" }}"
        ))
        .unwrap();
        assert_eq!(other.aliases.fallbacks[AWS_BASE], "localhost/al:2023");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, words) in [
            (
                "mirrors = { \"docker.io\" = [\"http://mirror.lan\"] }",
                "plain HTTP",
            ),
            (
                "mirrors = { \"docker.io\" = [\"mirror.lan\"] }",
                "not a mirror",
            ),
            ("mirors = { \"docker.io\" = [] }", ""),
            ("[typo]\nusername = \"a\"\npassword_file = \"b\"", "typo"),
            ("[\"ghcr.io\"]\nusername = \"a\"\npassword = \"b\"", ""),
            ("plain_http = [\"http://x\"]", "host name"),
            ("private = [\"10.0.0.0/8\"]", "host name"),
            (
                "aliases = { \"A\" = \"localhost/debian:12\" }",
                "registry.aliases",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
