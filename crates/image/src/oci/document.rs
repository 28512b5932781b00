//! Manifests, indexes and image configurations, as registries and archives have them.

use crate::config::{Healthcheck, ImageConfig};
use crate::digest::Digest;
use dormouse_core::limits;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Media types that a manifest is asked for in.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is not what it should be.
    #[error("the {what} is damaged: {problem}")]
    Damaged {
        /// Which document.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// It is of a kind that is not supported.
    #[error("{0} are not supported")]
    Unsupported(&'static str),
    /// The image is for other machines.
    #[error("the image is not for {wanted}, only for {found}")]
    Platform {
        /// This host's platform.
        wanted: &'static str,
        /// What there is.
        found: String,
    },
    /// It speaks of more than there may be.
    #[error("the image has more than {limit} {what}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
}

/// What stands behind a reference.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Some content, by digest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: u64,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// An image: its configuration and its layers, the lowest first.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// Images of one name for several platforms.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let damaged = |problem: &str| DocumentError::Damaged {
            what: "manifest",
            problem: problem.to_owned(),
        };
        let version: Version =
            serde_json::from_slice(bytes).map_err(|e| damaged(&e.to_string()))?;
        if version.schema_version == 1 {
            return Err(DocumentError::Unsupported(
                "manifests of Docker's first schema",
            ));
        }
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|e| damaged(&e.to_string()))?;
        if raw.schema_version != 2 {
            return Err(damaged("its schema version is not 2"));
        }
        // What could be read as either is neither: readers would disagree on what its digest stands for.
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => {
                Manifest::checked(config, layers).map(Self::Manifest)
            }
            (None, None, Some(manifests)) => Ok(Self::Index(Index { manifests })),
            _ => Err(damaged("it is neither of an image nor an index of images")),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    schema_version: u32,
}

impl Manifest {
    fn checked(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, DocumentError> {
        if layers.len() > limits::REGISTRY_LAYERS_MAX {
            let limit = limits::REGISTRY_LAYERS_MAX as u64;
            return Err(DocumentError::TooLarge {
                limit,
                what: "layers",
            });
        }
        let kind = |layer: &Descriptor| layer.media_type.clone();
        if layers
            .iter()
            .map(kind)
            .any(|kind| kind.contains("foreign") || kind.contains("nondistributable"))
        {
            return Err(DocumentError::Unsupported(
                "layers that are kept outside of the registry",
            ));
        }
        if layers
            .iter()
            .map(kind)
            .any(|kind| kind.contains("+encrypted"))
        {
            return Err(DocumentError::Unsupported("encrypted layers"));
        }
        let is_config = ["", OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str());
        if !is_config {
            return Err(DocumentError::Unsupported(
                "artifacts that are no container images",
            ));
        }
        let manifest = Self { config, layers };
        if manifest.bytes() > limits::REGISTRY_IMAGE_BYTES_MAX {
            let limit = limits::REGISTRY_IMAGE_BYTES_MAX;
            return Err(DocumentError::TooLarge {
                limit,
                what: "bytes of packed layers",
            });
        }
        Ok(manifest)
    }

    /// Size of all packed layers.
    pub(super) fn bytes(&self) -> u64 {
        let sizes = self.layers.iter().map(|layer| layer.size);
        sizes.fold(0, u64::saturating_add)
    }
}

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

impl Index {
    /// The image for this host.
    pub(super) fn of_this_host(&self) -> Result<&Descriptor, DocumentError> {
        let platforms = || {
            self.manifests
                .iter()
                .filter_map(|m| Some((m, m.platform.as_ref()?)))
        };
        if let Some((found, _)) =
            platforms().find(|(_, p)| p.os == OS && p.architecture == ARCHITECTURE)
        {
            return Ok(found);
        }
        let found: Vec<_> = platforms()
            // Attestations stand in an index as images for no platform.
            .filter(|(_, platform)| platform.os != "unknown")
            .map(|(_, platform)| shown(&format!("{}/{}", platform.os, platform.architecture)))
            .take(20)
            .collect();
        Err(wrong_platform(found.join(", ")))
    }
}

const OS: &str = "linux";
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "amd64";
#[cfg(target_arch = "x86_64")]
const PLATFORM: &str = "linux/amd64";
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURE: &str = "arm64";
#[cfg(not(target_arch = "x86_64"))]
const PLATFORM: &str = "linux/arm64";

fn wrong_platform(found: String) -> DocumentError {
    DocumentError::Platform {
        wanted: PLATFORM,
        found: if found.is_empty() {
            "no platform at all".to_owned()
        } else {
            found
        },
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

/// An image's configuration, as far as it concerns us.
#[derive(Debug)]
pub(super) struct Configuration {
    /// What each layer unpacks to.
    pub(super) diff_ids: Vec<Digest>,
    pub(super) config: ImageConfig,
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    author: Option<String>,
    #[serde(default)]
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    env: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
    shell: Option<Vec<String>>,
    on_build: Option<Vec<String>>,
    stop_signal: Option<String>,
    healthcheck: Option<RawHealthcheck>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawHealthcheck {
    test: Option<Vec<String>>,
    interval: Option<u64>,
    timeout: Option<u64>,
    start_period: Option<u64>,
    start_interval: Option<u64>,
    retries: Option<u32>,
}

impl Configuration {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let damaged = |problem: String| DocumentError::Damaged {
            what: "image's configuration",
            problem,
        };
        let raw: RawConfiguration =
            serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        let said = |text: &str, ours: &str| text.is_empty() || text == ours;
        if !said(&raw.os, OS) || !said(&raw.architecture, ARCHITECTURE) {
            return Err(wrong_platform(shown(&format!(
                "{}/{}",
                raw.os, raw.architecture
            ))));
        }
        let mut config = image_config(raw.config.unwrap_or_default());
        config.author = raw.author.filter(|author| !author.is_empty());
        let text = serde_json::to_vec(&config).map_err(|e| damaged(e.to_string()))?;
        if text.len() > limits::IMAGE_CONFIG_BYTES_MAX {
            let limit = limits::IMAGE_CONFIG_BYTES_MAX as u64;
            return Err(DocumentError::TooLarge {
                limit,
                what: "bytes of environment, labels and ports",
            });
        }
        // JSON's own escape for a zero byte: no variable, path or argument can have one.
        if text.windows(6).any(|part| part == b"\\u0000") {
            return Err(damaged("it has a zero byte".to_owned()));
        }
        Ok(Self {
            diff_ids: raw.rootfs.diff_ids.unwrap_or_default(),
            config,
        })
    }
}

fn image_config(raw: RawConfig) -> ImageConfig {
    let mut config = ImageConfig {
        cwd: raw.working_dir.unwrap_or_default(),
        user: raw.user.unwrap_or_default(),
        entrypoint: raw.entrypoint.unwrap_or_default(),
        cmd: raw.cmd.unwrap_or_default(),
        exposed: raw.exposed_ports.unwrap_or_default().into_keys().collect(),
        labels: raw.labels.unwrap_or_default(),
        shell: raw.shell.unwrap_or_default(),
        onbuild: raw.on_build.unwrap_or_default(),
        volumes: raw.volumes.unwrap_or_default().into_keys().collect(),
        stop_signal: raw.stop_signal.filter(|signal| !signal.is_empty()),
        healthcheck: raw.healthcheck.map(healthcheck),
        ..ImageConfig::default()
    };
    for variable in raw.env.unwrap_or_default() {
        if let Some((name, value)) = variable.split_once('=')
            && !name.is_empty()
        {
            config.set_env(name, value.to_owned());
        }
    }
    config
}

/// Zero is how Docker writes that nothing was said.
fn healthcheck(raw: RawHealthcheck) -> Healthcheck {
    let said = |time: Option<u64>| time.filter(|time| *time > 0);
    Healthcheck {
        test: raw.test.unwrap_or_default(),
        interval_ns: said(raw.interval),
        timeout_ns: said(raw.timeout),
        start_period_ns: said(raw.start_period),
        start_interval_ns: said(raw.start_interval),
        retries: raw.retries.filter(|retries| *retries > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(kind: &str, rest: &str) -> String {
        let digest = Digest::of(kind.as_bytes());
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":5{rest}}}"#)
    }

    #[test]
    fn what_could_be_two_things_is_neither() {
        let config = descriptor(OCI_CONFIG, "");
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "");
        let image = format!(r#""config":{config},"layers":[{layer}]"#);
        let parse = |body: &str| Document::parse(format!("{{{body}}}").as_bytes());
        assert!(matches!(
            parse(&format!(r#""schemaVersion":2,{image}"#)),
            Ok(Document::Manifest(_))
        ));
        assert!(matches!(
            parse(r#""schemaVersion":2,"manifests":[]"#),
            Ok(Document::Index(_))
        ));
        parse(&format!(r#""schemaVersion":2,{image},"manifests":[]"#)).unwrap_err();
        parse(r#""schemaVersion":2"#).unwrap_err();
        parse(&format!(r#""schemaVersion":3,{image}"#)).unwrap_err();
        let old = parse(r#""schemaVersion":1,"fsLayers":[]"#).unwrap_err();
        assert!(old.to_string().contains("first schema"), "{old}");
        let foreign = descriptor(
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "",
        );
        parse(&format!(
            r#""schemaVersion":2,"config":{config},"layers":[{foreign}]"#
        ))
        .unwrap_err();
        let helm = descriptor("application/vnd.cncf.helm.config.v1+json", "");
        parse(&format!(r#""schemaVersion":2,"config":{helm},"layers":[]"#)).unwrap_err();
        let many = vec![layer; limits::REGISTRY_LAYERS_MAX + 1].join(",");
        let error = parse(&format!(
            r#""schemaVersion":2,"config":{config},"layers":[{many}]"#
        ))
        .unwrap_err();
        assert!(error.to_string().contains("127 layers"), "{error}");
        for bad in ["", "[]", "{", "null", r#"{"schemaVersion":"2"}"#] {
            Document::parse(bad.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn an_index_is_asked_for_this_hosts_image() {
        let platform = |os: &str, architecture: &str| {
            let kind = format!("{os}-{architecture}");
            descriptor(
                &kind,
                &format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#),
            )
        };
        let index = |parts: &[String]| {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, parts.join(","));
            match Document::parse(text.as_bytes()).unwrap() {
                Document::Index(index) => index,
                Document::Manifest(_) => panic!("no index"),
            }
        };
        let others = [
            platform("unknown", "unknown"),
            platform("linux", "s390x"),
            platform("windows", ARCHITECTURE),
        ];
        let mut all = others.to_vec();
        all.push(platform("linux", ARCHITECTURE));
        let found = index(&all).of_this_host().unwrap().media_type.clone();
        assert_eq!(found, format!("linux-{ARCHITECTURE}"));
        let error = index(&others).of_this_host().unwrap_err().to_string();
        assert!(
            error.contains("linux/s390x") && !error.contains("unknown"),
            "{error}"
        );
    }

    #[test]
    fn a_configuration_becomes_the_plans_start() {
        let text = r#"{"os":"linux","rootfs":{"type":"layers","diff_ids":[]},"author":"me","config":{
            "Env":["PATH=/bin","A=b=c","broken"],"Cmd":null,"Entrypoint":["/app"],"WorkingDir":"/srv","User":"1000:1000",
            "ExposedPorts":{"8080/tcp":{}},"Volumes":{"/data":{}},"OnBuild":["RUN x"],"StopSignal":"SIGINT",
            "Healthcheck":{"Test":["CMD","true"],"Interval":0,"Retries":3}}}"#;
        let found = Configuration::parse(text.as_bytes()).unwrap().config;
        assert_eq!(
            found.env,
            [("PATH".into(), "/bin".into()), ("A".into(), "b=c".into())]
        );
        assert_eq!(found.argv(), ["/app"]);
        assert_eq!(
            (found.cwd.as_str(), found.user.as_str()),
            ("/srv", "1000:1000")
        );
        assert_eq!(
            (found.exposed, found.volumes),
            (vec!["8080/tcp".to_owned()], vec!["/data".to_owned()])
        );
        assert_eq!(found.onbuild, ["RUN x"]);
        let health = found.healthcheck.unwrap();
        assert_eq!((health.interval_ns, health.retries), (None, Some(3)));
    }

    #[test]
    fn configurations_that_cannot_run_here_are_refused() {
        let parse = |text: &str| {
            Configuration::parse(text.as_bytes())
                .unwrap_err()
                .to_string()
        };
        assert!(
            parse(r#"{"os":"linux","architecture":"mips","rootfs":{}}"#).contains("linux/mips")
        );
        assert!(parse(r#"{"os":"windows","rootfs":{}}"#).contains("windows"));
        assert!(parse(r#"{"rootfs":{},"config":{"Env":["A=\u0000"]}}"#).contains("zero byte"));
        assert!(parse(r#"{"rootfs":{"diff_ids":["sha256:x"]}}"#).contains("damaged"));
        let large = format!(
            r#"{{"rootfs":{{}},"config":{{"Env":["A={}"]}}}}"#,
            "x".repeat(200 << 10)
        );
        assert!(parse(&large).contains("bytes of environment"));
    }
}
