//! Configuration: one TOML file, environment and command line over it, checked once.
//!
//! [`Raw`] is the file as written, [`Overrides`] what the command line and environment say, [`Config`] the
//! result that the rest of the program relies on. Each error names the key and what to write there.

mod build;
mod capacity;
mod listeners;
mod network;
mod quotas;
mod registry;
mod s3;
mod secrets;
mod tls;
mod traffic;

pub(crate) use build::BuildConfig;
pub(crate) use capacity::CapacityConfig;
pub(crate) use listeners::DnsConfig;
pub(crate) use network::{NetworkConfig, Subnets};
pub(crate) use quotas::QuotaConfig;
pub(crate) use registry::{BaseImageConfig, MANAGED_BASE};
pub(crate) use s3::{OutsideS3, S3Source};
pub(crate) use secrets::SecretsConfig;
pub(crate) use tls::TlsConfig;
pub(crate) use traffic::LimitConfig;

use clap::{Args, ValueEnum};
use dormouse_core::{AccountId, EndpointId, limits};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where everything is kept unless configured otherwise.
const DATA_DIR: &str = "/var/lib/dormouse";
const API_ADDR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9400);
const INGRESS_ADDR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9443);
const REGION: &str = "us-east-1";
const ACCOUNT: &str = "000000000000";
const HTTPS_PORT: u16 = 443;

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where everything is kept; absolute.
    pub(crate) data_dir: PathBuf,
    /// Where the control API and the embedded S3 listen.
    pub(crate) api_addr: SocketAddr,
    /// Where the TLS ingress listens.
    pub(crate) ingress_addr: SocketAddr,
    /// AWS region that the daemon stands for.
    pub(crate) region: String,
    /// AWS account of the first access key.
    pub(crate) account: AccountId,
    /// How guests are executed.
    pub(crate) accel: Accel,
    /// Host names of MicroVMs are `UUID.` and this.
    pub(crate) endpoint_domain: String,
    /// Port at which clients reach the ingress; none for the port that it listens on.
    pub(crate) endpoint_port: Option<u16>,
    /// Where endpoints are served without TLS; loopback.
    pub(crate) plain_addr: Option<SocketAddr>,
    /// Where `CONNECT` is served; loopback.
    pub(crate) connect_addr: Option<SocketAddr>,
    /// Where the endpoint domain is answered for, and how.
    pub(crate) dns: Option<DnsConfig>,
    /// Certificates other than the internal CA's.
    pub(crate) tls: TlsConfig,
    /// How secrets are sealed.
    pub(crate) secrets: SecretsConfig,
    /// How long one key signs endpoint tokens.
    pub(crate) token_rotation: Duration,
    /// Where kernel, agent and base images are; none to look in the usual places.
    pub(crate) assets_dir: Option<PathBuf>,
    /// Where `s3://` artifacts are read from.
    pub(crate) s3: S3Source,
    /// What guests may reach.
    pub(crate) network: NetworkConfig,
    /// Image builds that run at once.
    pub(crate) builds_at_once: usize,
    /// How builds go.
    pub(crate) build: BuildConfig,
    /// How base images are pulled, and what stands in for them.
    pub(crate) base_images: BaseImageConfig,
    /// What one account may have and do.
    pub(crate) quotas: QuotaConfig,
    /// What the host keeps free.
    pub(crate) capacity: CapacityConfig,
    /// What the endpoint of one MicroVM may carry.
    pub(crate) limits: LimitConfig,
    /// Where metrics are read; none for nowhere.
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// The daemon's log.
    pub(crate) log: LogConfig,
}

/// The daemon's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// Form of its lines.
    pub(crate) format: LogFormat,
    /// Whether each request to an endpoint has its line.
    pub(crate) access: bool,
    /// Whether each call of the API has.
    pub(crate) audit: bool,
}

/// How guests are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accel {
    /// KVM where it runs a probe guest, else software emulation.
    Auto,
    /// KVM.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Form of the daemon's log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the command line and the environment may say; it wins over the file.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Overrides {
    /// TOML file with the configuration
    #[arg(long, value_name = "FILE", env = "DORMOUSE_CONFIG", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/dormouse]
    #[arg(long, value_name = "DIR", env = "DORMOUSE_DATA_DIR", global = true)]
    pub(crate) data_dir: Option<PathBuf>,
}

/// What the command line and the environment may say of a daemon.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServeOverrides {
    /// Where the control API and S3 listen [default: 127.0.0.1:9400]
    #[arg(long, value_name = "ADDR", env = "DORMOUSE_API_ADDR")]
    pub(crate) api_addr: Option<SocketAddr>,
    /// Where the TLS ingress listens [default: 127.0.0.1:9443]
    #[arg(long, value_name = "ADDR", env = "DORMOUSE_INGRESS_ADDR")]
    pub(crate) ingress_addr: Option<SocketAddr>,
    /// How guests are executed [default: auto]
    #[arg(long, value_enum, env = "DORMOUSE_ACCEL")]
    pub(crate) accel: Option<Accel>,
    /// Host names of MicroVMs are UUID.DOMAIN [default: lambda-microvm.REGION.localhost]
    #[arg(long, value_name = "DOMAIN", env = "DORMOUSE_ENDPOINT_DOMAIN")]
    pub(crate) endpoint_domain: Option<String>,
    /// Port at which clients reach the ingress [default: the one that it listens on]
    #[arg(long, value_name = "PORT", env = "DORMOUSE_ENDPOINT_PORT")]
    pub(crate) endpoint_port: Option<u16>,
    /// Where kernel, agent and base images are
    #[arg(long, value_name = "DIR", env = "DORMOUSE_ASSETS")]
    pub(crate) assets_dir: Option<PathBuf>,
    /// Form of the log lines [default: text]
    #[arg(long, value_enum, env = "DORMOUSE_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key that does not exist.
    #[error("configuration {path}, line {line}: {problem}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's words.
        problem: String,
    },
    /// A value makes no sense.
    #[error("configuration key `{key}`: {problem}; {remedy}")]
    Value {
        /// The key, as in `network.dns`.
        key: &'static str,
        /// What is wrong.
        problem: String,
        /// What to write instead.
        remedy: &'static str,
    },
}

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    data_dir: Option<PathBuf>,
    api_addr: Option<SocketAddr>,
    ingress_addr: Option<SocketAddr>,
    region: Option<String>,
    account: Option<String>,
    accel: Option<Accel>,
    assets_dir: Option<PathBuf>,
    endpoint: RawEndpoint,
    tls: tls::RawTls,
    secrets: secrets::RawSecrets,
    tokens: RawTokens,
    dns: listeners::RawDns,
    connect: listeners::RawConnect,
    s3: Option<s3::RawS3>,
    network: network::RawNetwork,
    build: build::RawBuild,
    quotas: quotas::RawQuotas,
    capacity: CapacityConfig,
    registry: registry::RawRegistry,
    limits: traffic::RawLimits,
    metrics_addr: Option<SocketAddr>,
    log: RawLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawEndpoint {
    domain: Option<String>,
    port: Option<u16>,
    plain_addr: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTokens {
    rotate_days: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    format: Option<LogFormat>,
    access: Option<bool>,
    audit: Option<bool>,
}

impl Config {
    /// Reads the file, if one is named, and puts everything together.
    pub(crate) fn load(over: &Overrides, serve: &ServeOverrides) -> Result<Self, ConfigError> {
        let raw = over.config.as_deref().map_or(Ok(Raw::default()), read)?;
        let region = region(raw.region)?;
        let endpoint_domain = serve.endpoint_domain.clone().or(raw.endpoint.domain);
        let ingress_addr = serve.ingress_addr.or(raw.ingress_addr);
        let ingress_addr = ingress_addr.unwrap_or(INGRESS_ADDR);
        let dns = listeners::dns(raw.dns, ingress_addr)?;
        let account = account(raw.account)?;
        Ok(Self {
            data_dir: data_dir(over.data_dir.clone().or(raw.data_dir))?,
            api_addr: serve.api_addr.or(raw.api_addr).unwrap_or(API_ADDR),
            ingress_addr,
            accel: serve.accel.or(raw.accel).unwrap_or(Accel::Auto),
            endpoint_domain: domain(endpoint_domain, &region)?,
            endpoint_port: port(serve.endpoint_port.or(raw.endpoint.port))?,
            plain_addr: listeners::on_loopback("endpoint.plain_addr", raw.endpoint.plain_addr)?,
            connect_addr: listeners::on_loopback("connect.addr", raw.connect.addr)?,
            tls: tls::tls(raw.tls, dns.is_some())?,
            dns,
            secrets: secrets::secrets(raw.secrets, std::env::var_os("CREDENTIALS_DIRECTORY"))?,
            token_rotation: token_rotation(raw.tokens.rotate_days)?,
            assets_dir: serve.assets_dir.clone().or(raw.assets_dir),
            s3: s3::s3(raw.s3, &region, &account)?,
            account,
            network: network::network(&raw.network)?,
            builds_at_once: build::at_once(raw.build.concurrency)?,
            build: BuildConfig::new(&raw.build)?,
            base_images: registry::registry(raw.registry, raw.build.extra_ca_file.as_deref())?,
            quotas: quotas::quotas(raw.quotas)?,
            capacity: raw.capacity,
            limits: LimitConfig::new(raw.limits)?,
            metrics_addr: raw.metrics_addr,
            log: LogConfig {
                format: serve
                    .log_format
                    .or(raw.log.format)
                    .unwrap_or(LogFormat::Text),
                access: raw.log.access.unwrap_or(true),
                audit: raw.log.audit.unwrap_or(true),
            },
            region,
        })
    }

    /// The defaults, on a host that may be filled to the brim.
    #[cfg(test)]
    pub(crate) fn of_data_dir(dir: &Path) -> Self {
        let over = Overrides {
            config: None,
            data_dir: Some(dir.to_owned()),
        };
        let mut config = Self::load(&over, &ServeOverrides::default()).expect("defaults are valid");
        config.capacity.disk_free_min_bytes = 0;
        config
    }

    /// The metadata database.
    pub(crate) fn database(&self) -> PathBuf {
        self.data_dir.join("dormouse.db")
    }

    /// What clients are told to connect to: a bare host name where the port is HTTPS's own.
    ///
    /// `listening` is the port that the ingress really listens on.
    pub(crate) fn endpoint(&self, id: &EndpointId, listening: u16) -> String {
        match self.endpoint_port.unwrap_or(listening) {
            HTTPS_PORT => format!("{id}.{}", self.endpoint_domain),
            port => format!("{id}.{}:{port}", self.endpoint_domain),
        }
    }
}

fn read(path: &Path) -> Result<Raw, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        ConfigError::Parse {
            path: path.to_owned(),
            line: text[..start].lines().count().max(1),
            // Its own form quotes the line, and with it perhaps a secret.
            problem: error.message().to_owned(),
        }
    })
}

fn data_dir(path: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    let path = path.unwrap_or_else(|| DATA_DIR.into());
    std::path::absolute(&path).map_err(|error| ConfigError::Value {
        key: "data_dir",
        problem: format!("{path:?} is not a path: {error}"),
        remedy: "name a folder, as in \"/var/lib/dormouse\"",
    })
}

fn region(text: Option<String>) -> Result<String, ConfigError> {
    let region = text.unwrap_or_else(|| REGION.to_owned());
    if is_label(&region) {
        return Ok(region);
    }
    Err(ConfigError::Value {
        key: "region",
        problem: format!("{region:?} is not a region"),
        remedy: "write one as AWS does, as in \"us-east-1\"",
    })
}

fn account(text: Option<String>) -> Result<AccountId, ConfigError> {
    let text = text.unwrap_or_else(|| ACCOUNT.to_owned());
    AccountId::parse(&text).ok_or_else(|| ConfigError::Value {
        key: "account",
        problem: format!("{text:?} is not an account"),
        remedy: "write twelve digits in quotes, as in \"000000000000\"",
    })
}

fn domain(text: Option<String>, region: &str) -> Result<String, ConfigError> {
    // RFC 1035's 253, less the UUID and its dot in front.
    const DOMAIN_LEN_MAX: usize = 253 - 37;
    let domain = text.unwrap_or_else(|| format!("lambda-microvm.{region}.localhost"));
    if domain.len() <= DOMAIN_LEN_MAX && domain.split('.').all(is_label) {
        return Ok(domain);
    }
    Err(ConfigError::Value {
        key: "endpoint.domain",
        problem: format!("{domain:?} is not a domain name"),
        remedy: "write lower-case labels with dots between them, as in \"vm.example.com\"",
    })
}

/// Whether a name could be a MicroVM's own: labels in lower case, more than one, and no address.
pub(crate) fn is_host_name(name: &str) -> bool {
    const NAME_LEN_MAX: usize = 253;
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= NAME_LEN_MAX
        && name.contains('.')
        && name.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn port(port: Option<u16>) -> Result<Option<u16>, ConfigError> {
    if port == Some(0) {
        return Err(ConfigError::Value {
            key: "endpoint.port",
            problem: "0 is not a port".to_owned(),
            remedy: "write the port at which clients reach the ingress, as in 443",
        });
    }
    Ok(port)
}

fn token_rotation(days: Option<u32>) -> Result<Duration, ConfigError> {
    match days.unwrap_or(limits::TOKEN_ROTATE_DAYS) {
        days @ 1..=limits::TOKEN_ROTATE_DAYS_MAX => {
            Ok(Duration::from_secs(u64::from(days) * 24 * 3600))
        }
        days => Err(ConfigError::Value {
            key: "tokens.rotate_days",
            problem: format!("{days} days make no sense"),
            remedy: "write a number from 1 to 365",
        }),
    }
}

#[cfg(test)]
mod tests;
