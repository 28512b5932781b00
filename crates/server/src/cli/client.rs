//! The command line as a client of a daemon: found by the environment that `dormouse env` prints, as AWS's
//! tools find it, or by its data directory on this host.

use crate::config::{Config, Overrides, ServeOverrides};
use crate::daemon::DaemonFile;
use crate::keys::Keys;
use crate::sealing;
use anyhow::{Context, Result, bail};
use dormouse_api::ApiError;
use dormouse_api::sigv4::{self, Scope};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::SecretString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Longer than any answer that the daemon holds back on purpose.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What stays as it is in one segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Where a daemon is, and as whom to call it.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// `http://host:port`, without a slash at the end.
    pub(super) url: String,
    pub(super) region: String,
    pub(super) access_key_id: String,
    pub(super) secret: SecretString,
    /// Found by its data directory: it is on this host, and no proxy is between.
    pub(super) is_local: bool,
    /// Certificate of the CA that signs the endpoints' certificates, if it is not one that the system trusts.
    pub(super) ca_file: Option<PathBuf>,
    /// Where the ingress is, if that is known better than by the endpoints' names.
    pub(super) ingress: Option<SocketAddr>,
}

/// A call that the daemon refused.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refused {
    /// AWS's name of the error, as in `ConflictException`; empty when there is none.
    pub(super) name: String,
    message: String,
}

/// Calls a daemon's API.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    pub(super) endpoint: Endpoint,
}

impl Endpoint {
    /// A data directory or configuration that is named wins; then `AWS_ENDPOINT_URL`; then the default data
    /// directory.
    pub(super) fn find(over: &Overrides) -> Result<Self> {
        let named = over.data_dir.is_some() || over.config.is_some();
        match env::var("AWS_ENDPOINT_URL") {
            Ok(url) if !named && !url.is_empty() => Self::from_environment(&url),
            _ => Self::from_data_dir(&Config::load(over, &ServeOverrides::default())?),
        }
    }

    /// Whether the environment names the daemon rather than a data directory.
    pub(super) fn is_remote(over: &Overrides) -> bool {
        let named = over.data_dir.is_some() || over.config.is_some();
        !named && env::var("AWS_ENDPOINT_URL").is_ok_and(|url| !url.is_empty())
    }

    fn from_environment(url: &str) -> Result<Self> {
        let variable = |name: &str| {
            let value = env::var(name).ok().filter(|value| !value.is_empty());
            value.with_context(|| {
                format!(
                    "AWS_ENDPOINT_URL is set, but not {name}: eval \"$(dormouse env)\" sets both"
                )
            })
        };
        let region = variable("AWS_REGION").or_else(|_| variable("AWS_DEFAULT_REGION"))?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            region,
            access_key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret: variable("AWS_SECRET_ACCESS_KEY")?.into(),
            is_local: false,
            ca_file: variable("DORMOUSE_CA_FILE").ok().map(PathBuf::from),
            ingress: None,
        })
    }

    fn from_data_dir(config: &Config) -> Result<Self> {
        let daemon = DaemonFile::read(&config.data_dir)?;
        let keys = Keys::open(&config.data_dir, sealing::for_reading(config)?.into())?;
        let key = keys
            .first_of(&daemon.account)
            .with_context(|| format!("account {} has no access key", daemon.account))?;
        Ok(Self {
            url: daemon.api_url(),
            ingress: Some(daemon.ingress_reachable()),
            ca_file: Some(daemon.ca_file),
            region: daemon.region,
            access_key_id: key.id,
            secret: key.secret,
            is_local: true,
        })
    }
}

impl Client {
    /// A client of the daemon that the command line or the environment names.
    pub(super) fn connect(over: &Overrides) -> Result<Self> {
        Self::new(Endpoint::find(over)?)
    }

    pub(super) fn new(endpoint: Endpoint) -> Result<Self> {
        let mut http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if endpoint.is_local {
            http = http.no_proxy();
        }
        let http = http.build().context("start the HTTP client")?;
        Ok(Self { http, endpoint })
    }

    /// One call of the control API or its extension. `path` begins with a slash, its segments encoded.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let body = body
            .map(serde_json::to_vec)
            .transpose()?
            .unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint.url));
        if !body.is_empty() {
            let kind = HeaderValue::from_static("application/json");
            request = request.header(CONTENT_TYPE, kind);
        }
        let answer = self.send("lambda", request, body).await?;
        serde_json::from_slice(&answer)
            .with_context(|| format!("{} does not answer as Dormouse does", self.endpoint.url))
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// The account that the access key belongs to.
    pub(super) async fn account(&self) -> Result<String> {
        let body = b"Action=GetCallerIdentity&Version=2011-06-15".to_vec();
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        let request = Request::post(format!("{}/", self.endpoint.url)).header(CONTENT_TYPE, form);
        let answer = self.send("sts", request, body).await?;
        let text = String::from_utf8_lossy(&answer);
        let account = text
            .split_once("<Account>")
            .and_then(|(_, rest)| rest.split_once("</Account>"));
        let (account, _) = account.context("GetCallerIdentity names no account")?;
        Ok(account.to_owned())
    }

    /// Makes a bucket unless there is one of ours.
    pub(super) async fn make_bucket(&self, bucket: &str) -> Result<()> {
        const UNSIGNED: HeaderValue = HeaderValue::from_static("UNSIGNED-PAYLOAD");
        let url = format!("{}/{bucket}", self.endpoint.url);
        let request = Request::put(url).header("x-amz-content-sha256", UNSIGNED);
        match self.send("s3", request, Vec::new()).await {
            Err(error) if is_refused(&error, "BucketAlreadyOwnedByYou") => Ok(()),
            made => made
                .map(drop)
                .with_context(|| format!("make bucket {bucket}")),
        }
    }

    async fn send(
        &self,
        service: &str,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let endpoint = &self.endpoint;
        let bad = || format!("{} is not an address", endpoint.url);
        let (mut parts, body) = request.body(body).with_context(bad)?.into_parts();
        let scope = Scope {
            region: &endpoint.region,
            service,
        };
        let (id, now) = (&endpoint.access_key_id, Timestamp::now());
        sigv4::sign(&mut parts, &body, id, &endpoint.secret, scope, now).with_context(bad)?;
        let request =
            reqwest::Request::try_from(Request::from_parts(parts, body)).with_context(bad)?;
        let unreachable = || match endpoint.is_local {
            true => format!("reach {}: does `dormouse serve` run?", endpoint.url),
            false => format!("reach {}", endpoint.url),
        };
        let mut response = self.http.execute(request).await.with_context(unreachable)?;
        let status = response.status();
        let name = response.headers().get("x-amzn-errortype").cloned();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.with_context(unreachable)? {
            answer.extend_from_slice(&chunk);
            if answer.len() > ANSWER_BYTES_MAX {
                bail!("{} answers with more than anybody asked for", endpoint.url);
            }
        }
        if status.is_success() {
            return Ok(answer);
        }
        let name = name.and_then(|name| Some(name.to_str().ok()?.to_owned()));
        Err(refused(status.as_u16(), name, &answer).into())
    }
}

/// Whether an error is the daemon's refusal of this name.
pub(super) fn is_refused(error: &anyhow::Error, name: &str) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Refused>())
        .any(|refused| refused.name == name)
}

/// Whether an error is the daemon's refusal in these words, where the name alone would not tell.
pub(super) fn is_refused_as(error: &anyhow::Error, refusal: &ApiError) -> bool {
    let words = refusal.message().unwrap_or_default();
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Refused>())
        .any(|refused| refused.name == refusal.code().name() && refused.message.ends_with(words))
}

/// One segment of a path, encoded.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// What a refusal says: JSON from the control API, XML from S3 and STS.
fn refused(status: u16, name: Option<String>, answer: &[u8]) -> Refused {
    let text = String::from_utf8_lossy(answer);
    let element = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        let (value, _) = rest.split_once(&format!("</{tag}>"))?;
        Some(value.to_owned())
    };
    let json: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let member = |name: &str| Some(json.get(name)?.as_str()?.to_owned());
    let name = name.or_else(|| element("Code")).unwrap_or_default();
    let message = member("message")
        .or_else(|| member("Message"))
        .or_else(|| element("Message"))
        .filter(|message| !message.is_empty());
    let message = match (message, name.is_empty()) {
        (Some(message), true) => message,
        (Some(message), false) => format!("{name}: {message}"),
        (None, false) => name.clone(),
        (None, true) => format!("HTTP status {status}"),
    };
    Refused { name, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_daemons_words() {
        let said = |name: Option<&str>, answer: &str| {
            refused(418, name.map(str::to_owned), answer.as_bytes()).to_string()
        };
        let name = Some("ConflictException");
        assert_eq!(
            said(name, r#"{"message":"busy"}"#),
            "ConflictException: busy"
        );
        assert_eq!(
            said(name, r#"{"Message":"busy"}"#),
            "ConflictException: busy"
        );
        assert_eq!(said(name, "{}"), "ConflictException");
        let xml = "<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>";
        assert_eq!(said(None, xml), "NoSuchBucket: none");
        assert_eq!(said(None, "<html>"), "HTTP status 418");
    }

    #[test]
    fn a_refusal_is_known_by_its_words() {
        let taken = |name| ApiError::image_name_taken(name);
        let answer = taken("app").into_response(uuid::Uuid::nil());
        let name = answer.headers()["x-amzn-errortype"].to_str().unwrap();
        let refused = refused(400, Some(name.to_owned()), answer.body());
        let error = anyhow::Error::from(refused);
        assert!(is_refused_as(&error, &taken("app")));
        assert!(!is_refused_as(&error, &taken("other")));
    }

    #[test]
    fn an_arn_is_one_segment() {
        assert_eq!(segment("arn:aws:x/y z"), "arn%3Aaws%3Ax%2Fy%20z");
    }
}
