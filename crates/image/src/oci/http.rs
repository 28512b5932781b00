//! Requests to registries: bounded, timed, and tried again where that can help.

use super::RegistryConfig;
use super::endpoint::{authority, may_be_plain};
use super::progress::Progress;
use dormouse_core::limits;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Method, Response, StatusCode, Url};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The client cannot be made.
    #[error("cannot trust `{}`", path.display())]
    Authorities {
        /// The file of authorities.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS or the client itself cannot be set up.
    #[error("cannot set up the client: {0}")]
    Setup(String),
    /// No answer comes from the server.
    #[error("{server} cannot be reached: {problem}")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why, without the address that it was asked for: a token may be in it.
        problem: String,
    },
    /// The server has no time for us.
    #[error("{server} answers {status}")]
    Busy {
        /// Its address.
        server: String,
        /// What it answers.
        status: StatusCode,
    },
    /// The answer is longer than such an answer may be.
    #[error("{server} answers with more than {limit} bytes")]
    TooLong {
        /// Its address.
        server: String,
        /// The limit.
        limit: usize,
    },
    /// Something would be said without TLS that must not be.
    #[error(
        "{server} is not spoken to over plain HTTP: list it in registry.plain_http if it may be"
    )]
    Plain {
        /// Its address.
        server: String,
    },
    /// An address is none.
    #[error("the registry names an address that is none")]
    Address,
}

/// What is sent.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    /// A form to post.
    pub(super) body: Option<String>,
}

/// The clients of all registries.
#[derive(Debug)]
pub(super) struct Http {
    /// Through the proxy of the environment, where it names one.
    proxied: Client,
    /// For this machine.
    direct: Client,
    plain_http: BTreeSet<String>,
}

impl Http {
    /// Blocking: reads the authorities that are trusted.
    pub(super) fn new(config: &RegistryConfig) -> Result<Self, HttpError> {
        let tls = tls(config)?;
        let client = |builder: reqwest::ClientBuilder| {
            let plain = config.plain_http.clone();
            let builder = builder
                .tls_backend_preconfigured(tls.clone())
                .redirect(Policy::custom(move |attempt| redirect(attempt, &plain)))
                .connect_timeout(limits::REGISTRY_CONNECT_TIMEOUT)
                .read_timeout(limits::REGISTRY_READ_TIMEOUT)
                .http1_only()
                .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")));
            builder
                .build()
                .map_err(|error| HttpError::Setup(cause(&error)))
        };
        Ok(Self {
            proxied: client(Client::builder())?,
            direct: client(Client::builder().no_proxy())?,
            plain_http: config.plain_http.clone(),
        })
    }

    /// Asks until there is an answer other than "try again"; 401, 404 and the like are answers.
    pub(super) async fn ask(
        &self,
        question: &Question,
        progress: &dyn Progress,
    ) -> Result<Response, HttpError> {
        let url = Url::parse(&question.url).map_err(|_| HttpError::Address)?;
        let server = format!("{}://{}", url.scheme(), authority(&url));
        if url.scheme() != "https"
            && !(url.scheme() == "http" && may_be_plain(&url, &self.plain_http))
        {
            return Err(HttpError::Plain { server });
        }
        let mut attempt = 1;
        loop {
            let (error, wanted) = match self.send(&url, question).await {
                Ok(response) if is_passing(response.status()) => {
                    let status = response.status();
                    let wanted = retry_after(response.headers());
                    (
                        HttpError::Busy {
                            server: server.clone(),
                            status,
                        },
                        wanted,
                    )
                }
                Ok(response) => return Ok(response),
                Err(error) => {
                    let problem = cause(&error);
                    (
                        HttpError::Unreachable {
                            server: server.clone(),
                            problem,
                        },
                        None,
                    )
                }
            };
            // A server that is not there is not waited for as long as one that is busy.
            let attempts = match error {
                HttpError::Busy { .. } => limits::REGISTRY_ATTEMPTS,
                _ => limits::REGISTRY_CONNECT_ATTEMPTS,
            };
            if attempt >= attempts {
                return Err(error);
            }
            let pause = wanted
                .unwrap_or_else(|| backoff(attempt))
                .min(limits::REGISTRY_BACKOFF_MAX);
            progress.line(&format!(
                "{error}; trying again in {:.1} s",
                pause.as_secs_f64()
            ));
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    async fn send(&self, url: &Url, question: &Question) -> Result<Response, reqwest::Error> {
        let client = match super::endpoint::is_loopback(&authority(url)) {
            true => &self.direct,
            false => &self.proxied,
        };
        let mut request = client
            .request(question.method.clone(), url.clone())
            .headers(question.headers.clone());
        if let Some(body) = &question.body {
            request = request.body(body.clone());
        }
        request.send().await
    }
}

/// Reads a short answer.
pub(super) async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, HttpError> {
    let server = authority(response.url());
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() <= limit => body.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(HttpError::TooLong { server, limit }),
            Err(error) => {
                let problem = cause(&error);
                return Err(HttpError::Unreachable { server, problem });
            }
        }
    }
}

/// A pause that grows with each attempt, and differs between those that wait for the same server.
pub(super) fn backoff(attempt: u32) -> Duration {
    let base = limits::REGISTRY_BACKOFF * 2_u32.saturating_pow(attempt.saturating_sub(1).min(10));
    let [byte, ..] = uuid::Uuid::new_v4().into_bytes();
    base.mul_f64(0.75 + f64::from(byte) / 512.0)
}

/// What an error comes from, without the address that the request was for.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut text = None;
    while let Some(error) = source {
        text = Some(error.to_string());
        source = error.source();
    }
    let text = text.unwrap_or_else(|| {
        if error.is_timeout() {
            "timed out"
        } else {
            "no answer"
        }
        .to_owned()
    });
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers
        .get(RETRY_AFTER)
        .and_then(|value: &HeaderValue| value.to_str().ok())?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// From TLS never to plain HTTP, and over plain HTTP only to where it is allowed.
fn redirect(attempt: Attempt<'_>, plain_http: &BTreeSet<String>) -> reqwest::redirect::Action {
    let from_plain = attempt
        .previous()
        .last()
        .is_some_and(|url| url.scheme() == "http");
    let allowed = match attempt.url().scheme() {
        "https" => true,
        "http" => from_plain && may_be_plain(attempt.url(), plain_http),
        _ => false,
    };
    if !allowed {
        return attempt.error("a redirect to plain HTTP");
    }
    if attempt.previous().len() > limits::REGISTRY_REDIRECTS_MAX {
        return attempt.error("too many redirects");
    }
    attempt.follow()
}

fn tls(config: &RegistryConfig) -> Result<rustls::ClientConfig, HttpError> {
    let mut roots = RootCertStore::empty();
    // Some system's bundle always has an entry that cannot be read; without any, TLS fails with its own words.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &config.extra_ca_file {
        let failed = |source: io::Error| HttpError::Authorities {
            path: path.clone(),
            source,
        };
        let pem = std::fs::read(path).map_err(failed)?;
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate =
                certificate.map_err(|error| failed(io::Error::other(error.to_string())))?;
            roots
                .add(certificate)
                .map_err(|error| failed(io::Error::other(error.to_string())))?;
            count += 1;
        }
        if count == 0 {
            return Err(failed(io::Error::other("it has no certificate")));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| HttpError::Setup(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
